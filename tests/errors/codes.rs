//! The published codes and the members of a problem.

use axum::http::{HeaderValue, StatusCode, header};
use tollgate::error::{ErrorCode, Problem};

use super::body_of;

#[tokio::test]
async fn the_problem_of_each_code_is_as_published() {
    let mut documents = String::new();
    for code in ErrorCode::ALL {
        let response = Problem::new(*code).into_response::<String>(&http::Method::GET);
        assert_eq!(response.status(), code.status());
        assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
        assert_eq!(
            response.headers()[header::CONTENT_TYPE],
            "application/problem+json"
        );
        let body = body_of(response).await;
        documents.push_str(std::str::from_utf8(&body).expect("a text"));
        documents.push('\n');
    }
    assert_eq!(documents, include_str!("../golden/problems.jsonl"));
}

#[tokio::test]
async fn members_stand_in_order_and_extensions_cannot_replace_them() {
    let problem = Problem::new(ErrorCode::QuotaExceeded)
        .status(StatusCode::PAYMENT_REQUIRED)
        .detail("the month's calls are used up")
        .with("status", 200)
        .with("code", "fine")
        .with("quota", "month")
        .with("limit", 1_000)
        .header(header::RETRY_AFTER, HeaderValue::from_static("60"));
    let response = problem.into_response::<String>(&http::Method::GET);
    assert_eq!(response.status(), StatusCode::PAYMENT_REQUIRED);
    assert_eq!(response.headers()[header::RETRY_AFTER], "60");
    let expected = r#"{"type":"https://docs.rs/tollgate/latest/tollgate/guide/errors/index.html#quota_exceeded","title":"Quota exceeded","status":402,"code":"quota_exceeded","detail":"the month's calls are used up","limit":1000,"quota":"month"}"#;
    assert_eq!(body_of(response).await, expected);
}

#[tokio::test]
async fn a_problem_may_say_how_it_is_cached() {
    let problem = Problem::new(ErrorCode::Gone).header(
        header::CACHE_CONTROL,
        HeaderValue::from_static("max-age=60"),
    );
    let response = problem.into_response::<String>(&http::Method::GET);
    let fields = response.headers().get_all(header::CACHE_CONTROL);
    assert_eq!(fields.iter().collect::<Vec<_>>(), ["max-age=60"]);
}

#[test]
fn each_code_has_its_section_in_the_guide() {
    let guide = include_str!("../../src/guide/errors.md");
    for code in ErrorCode::ALL {
        let heading = format!("\n### {code}\n");
        assert_eq!(guide.matches(&heading).count(), 1, "{heading:?}");
        let row = format!("\n| [`{code}`](#{code}) | {} |", code.status().as_u16());
        assert_eq!(guide.matches(&row).count(), 1, "{row:?}");
    }
    let headings = guide.matches("\n### ").count();
    assert_eq!(headings, ErrorCode::ALL.len());
}

#[tokio::test]
async fn codes_of_statuses_have_those_statuses() {
    for status in 400..=599 {
        let status = StatusCode::from_u16(status).expect("a valid status");
        let code = ErrorCode::for_status(status);
        let catch_all = matches!(code, ErrorCode::ClientError | ErrorCode::Internal);
        assert!(catch_all || code.status() == status, "{status} {code}");
        assert_eq!(
            code.status().is_client_error(),
            status.is_client_error(),
            "{status} {code}"
        );
    }
}
