//! Every error code as a gRPC status.

use http::{HeaderValue, Request, StatusCode, header::RETRY_AFTER};
use http_body::Body as _;
use tollgate::{
    body::ResponseBody,
    error::{ErrorCode, Problem, ProblemLayer},
    grpc::GrpcCode,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower::{Layer as _, ServiceExt as _, service_fn};

/// The answer of gRPC's form that a problem becomes.
async fn answer(problem: Problem) -> http::Response<ResponseBody<ResponseBody<String>>> {
    let service = ProblemLayer::new().layer(service_fn(move |request: Request<()>| {
        let response = problem.clone().into_response::<String>(request.method());
        async { Ok::<_, std::convert::Infallible>(response) }
    }));
    let request = Request::post("/test.Echo/Say").header("content-type", "application/grpc");
    let request = request.body(()).expect("a request");
    service.oneshot(request).await.expect("an answer")
}

async fn status(problem: Problem) -> Status {
    let response = answer(problem).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "application/grpc");
    assert!(response.body().is_end_stream());
    Status::from_header_map(response.headers()).expect("a status")
}

#[tokio::test]
async fn every_code_has_its_status() {
    for code in ErrorCode::ALL {
        let expected = match code.as_str() {
            "ambiguous_credentials"
            | "mode_mismatch"
            | "invalid_signature"
            | "invalid_event"
            | "event_mismatch"
            | "bad_request"
            | "client_error" => Code::InvalidArgument,
            "missing_credentials" | "invalid_credentials" | "account_closed" | "unauthorized" => {
                Code::Unauthenticated
            }
            "not_subscribed"
            | "insufficient_scope"
            | "ip_not_allowed"
            | "feature_not_in_plan"
            | "payment_required"
            | "read_only"
            | "forbidden" => Code::PermissionDenied,
            "not_found" => Code::Unimplemented,
            "sunset" | "gone" => Code::FailedPrecondition,
            "too_many_failed_attempts"
            | "rate_limited"
            | "quota_exceeded"
            | "concurrency_limited"
            | "too_many_requests" => Code::ResourceExhausted,
            "auth_unavailable"
            | "store_unavailable"
            | "upstream_timeout"
            | "upstream_error"
            | "billing_unavailable"
            | "unavailable" => Code::Unavailable,
            "layer_missing" | "event_failed" | "internal" => Code::Internal,
            "method_not_allowed"
            | "request_timeout"
            | "conflict"
            | "event_in_progress"
            | "payload_too_large"
            | "unsupported_media_type"
            | "unprocessable_content" => Code::Unknown,
            other => panic!("{other} has no place in the table"),
        };
        let status = status(Problem::new(*code)).await;
        assert_eq!(status.code(), expected, "{code}");
        assert_eq!(status.message(), code.title());
        assert_eq!(i32::from(GrpcCode::from(*code).as_u8()), expected as i32);
        let details = status.get_error_details();
        let info = details.error_info().expect("an ErrorInfo");
        assert_eq!(info.reason, code.as_str().to_uppercase());
        assert!(details.retry_info().is_none());
    }
}

#[tokio::test]
async fn the_details_agree_with_the_fields() {
    let problem = Problem::new(ErrorCode::RateLimited)
        .detail("Slow down: 100% \u{2603}\r\nused")
        .with("limit", 20)
        .with("plan", "free")
        .with("violated-policies", ["rate", "quota"].as_slice())
        .header(RETRY_AFTER, HeaderValue::from(86_400_u32));
    let status = status(problem).await;
    assert_eq!(status.message(), "Slow down: 100% \u{2603}\r\nused");
    let decoded: tonic_types::pb::Status =
        prost::Message::decode(status.details()).expect("a google.rpc.Status");
    assert_eq!(decoded.code, status.code() as i32);
    assert_eq!(decoded.message, status.message());
    assert_eq!(decoded.details.len(), 2);
    let details = status.get_error_details();
    let info = details.error_info().expect("an ErrorInfo");
    let members: Vec<_> = ["limit", "plan", "violated-policies"]
        .map(|name| &*info.metadata[name])
        .into();
    assert_eq!(members, ["20", "free", r#"["rate","quota"]"#]);
    let delay = details.retry_info().and_then(|info| info.retry_delay);
    assert_eq!(delay, Some(std::time::Duration::from_secs(86_400)));
}

#[tokio::test]
async fn a_long_problem_stays_within_what_a_client_takes() {
    let problem = Problem::new(ErrorCode::Conflict)
        .detail("\u{2603}".repeat(10_000))
        .with("a", "short")
        .with("b", "x".repeat(10_000))
        .with("c", "also short");
    let response = answer(problem).await;
    let length: usize = response.headers().values().map(HeaderValue::len).sum();
    assert!(length < 8192, "{length}");
    let status = Status::from_header_map(response.headers()).expect("a status");
    assert_eq!(status.message(), "\u{2603}".repeat(341));
    let details = status.get_error_details();
    let info = details.error_info().expect("an ErrorInfo");
    assert_eq!(info.metadata.len(), 2);
    assert_eq!(info.metadata["c"], "also short");
}

#[tokio::test]
async fn a_problem_of_a_handler_goes_by_its_status() {
    let problem = Problem::new(ErrorCode::ClientError).status(StatusCode::IM_A_TEAPOT);
    assert_eq!(status(problem).await.code(), Code::Unknown);
    let problem = Problem::new(ErrorCode::Internal).status(StatusCode::NOT_IMPLEMENTED);
    assert_eq!(status(problem).await.code(), Code::Unknown);
    let refused = Problem::new(ErrorCode::ReadOnly).status(StatusCode::FORBIDDEN);
    assert_eq!(status(refused).await.code(), Code::PermissionDenied);
}
