use std::time::Duration;

use http::{HeaderValue, StatusCode, header::WWW_AUTHENTICATE};
use tollgate::{
    auth::{AuthRefusal, Challenge, Extractor, KeySource},
    error::{ErrorCode, Problem},
};

fn challenges(problem: &Problem) -> Vec<&str> {
    let values = problem.headers().get_all(WWW_AUTHENTICATE).iter();
    values.map(|value| value.to_str().unwrap()).collect()
}

fn retry_after(problem: &Problem) -> Option<&str> {
    let value = problem.headers().get("retry-after");
    value.map(|value| value.to_str().unwrap())
}

#[test]
fn a_missing_credential_is_told_no_error() {
    let problem = Challenge::default().problem(&AuthRefusal::Missing);
    assert_eq!(problem.code(), ErrorCode::MissingCredentials);
    assert_eq!(problem.status_code(), StatusCode::UNAUTHORIZED);
    assert_eq!(
        challenges(&problem),
        ["ApiKey realm=\"api\"", "Bearer realm=\"api\""]
    );
}

#[test]
fn every_credential_that_does_not_work_gets_the_same_answer() {
    let challenge = Challenge::new("acme api").unwrap();
    let answers = [
        AuthRefusal::Malformed,
        AuthRefusal::Unknown,
        AuthRefusal::Expired,
        AuthRefusal::Revoked,
        AuthRefusal::TenantUnknown,
    ]
    .map(|refusal| challenge.problem(&refusal));
    for problem in &answers {
        assert_eq!(problem.code(), ErrorCode::InvalidCredentials);
        assert_eq!(problem.status_code(), StatusCode::UNAUTHORIZED);
        assert_eq!(
            challenges(problem),
            [
                "ApiKey realm=\"acme api\"",
                "Bearer realm=\"acme api\", error=\"invalid_token\", error_description=\"The credential is not valid.\""
            ]
        );
        assert_eq!(format!("{problem:?}"), format!("{:?}", answers[0]));
    }
}

#[test]
fn every_other_refusal_has_its_status() {
    let challenge = Challenge::default();
    let answer = |refusal| {
        let problem = challenge.problem(&refusal);
        let status = problem.status_code().as_u16();
        (
            status,
            problem.code().as_str(),
            retry_after(&problem).map(str::to_owned),
        )
    };
    let wait = |millis| AuthRefusal::TooManyFailures {
        retry_after: Duration::from_millis(millis),
    };
    let after = |seconds: &str| Some(seconds.to_owned());
    assert_eq!(
        answer(AuthRefusal::Ambiguous),
        (400, "ambiguous_credentials", None)
    );
    assert_eq!(
        answer(AuthRefusal::WrongEnvironment),
        (400, "mode_mismatch", None)
    );
    assert_eq!(
        answer(AuthRefusal::AddressNotAllowed),
        (403, "ip_not_allowed", None)
    );
    assert_eq!(
        answer(AuthRefusal::StoreUnavailable),
        (503, "auth_unavailable", after("1"))
    );
    assert_eq!(
        answer(AuthRefusal::PlanUnknown),
        (503, "auth_unavailable", after("1"))
    );
    assert_eq!(
        answer(wait(1)),
        (429, "too_many_failed_attempts", after("1"))
    );
    assert_eq!(
        answer(wait(2_001)),
        (429, "too_many_failed_attempts", after("3"))
    );
    let ambiguous = challenge.problem(&AuthRefusal::Ambiguous);
    assert_eq!(
        challenges(&ambiguous),
        [
            "Bearer realm=\"api\", error=\"invalid_request\", error_description=\"Send one credential, once.\""
        ]
    );
}

#[test]
fn names_the_schemes_that_are_read() {
    let header = || KeySource::header("x-api-key").unwrap();
    let missing = |sources: Vec<KeySource>| {
        let extractor = Extractor::new(sources).unwrap();
        let challenge = Challenge::for_extractor("r", &extractor).unwrap();
        let problem = challenge.problem(&AuthRefusal::Missing);
        challenges(&problem).join(" | ")
    };
    assert_eq!(missing(vec![header()]), "ApiKey realm=\"r\"");
    assert_eq!(missing(vec![KeySource::Bearer]), "Bearer realm=\"r\"");
    assert_eq!(
        missing(vec![KeySource::Bearer, header()]),
        "ApiKey realm=\"r\" | Bearer realm=\"r\""
    );
}

#[test]
fn a_realm_or_scheme_that_would_break_the_header_is_refused_at_build() {
    for realm in ["", "a\"b", "a\\b", "a\nb", "réalm", "a\u{7f}"] {
        assert_eq!(
            Challenge::new(realm).unwrap_err().path(),
            "realm",
            "{realm:?}"
        );
    }
    for scheme in ["", "Api Key", "Api,Key", "Key\"", "Clé"] {
        let error = Challenge::with_schemes("api", ["Bearer", scheme]).unwrap_err();
        assert_eq!(error.path(), "schemes[1]", "{scheme:?}");
    }
    let none: [&str; 0] = [];
    assert_eq!(
        Challenge::with_schemes("api", none).unwrap_err().path(),
        "schemes"
    );
}

#[test]
fn reasons_are_a_closed_set_of_labels() {
    let refusals = [
        AuthRefusal::Missing,
        AuthRefusal::Ambiguous,
        AuthRefusal::Malformed,
        AuthRefusal::Unknown,
        AuthRefusal::Expired,
        AuthRefusal::Revoked,
        AuthRefusal::WrongEnvironment,
        AuthRefusal::AddressNotAllowed,
        AuthRefusal::TenantUnknown,
        AuthRefusal::PlanUnknown,
        AuthRefusal::StoreUnavailable,
        AuthRefusal::TooManyFailures {
            retry_after: Duration::ZERO,
        },
    ];
    let labels: std::collections::HashSet<_> = refusals.iter().map(AuthRefusal::reason).collect();
    assert_eq!(labels.len(), refusals.len());
    let counted: Vec<_> = refusals
        .iter()
        .filter(|refusal| refusal.counts_as_failure())
        .collect();
    assert_eq!(
        counted,
        [
            &AuthRefusal::Malformed,
            &AuthRefusal::Unknown,
            &AuthRefusal::Expired,
            &AuthRefusal::Revoked,
            &AuthRefusal::TenantUnknown,
        ]
    );
    for refusal in &refusals {
        let problem = Challenge::default().problem(refusal);
        assert!(
            problem
                .headers()
                .values()
                .all(|value| HeaderValue::to_str(value).is_ok()),
            "{refusal:?}"
        );
        let unauthorized = problem.status_code() == StatusCode::UNAUTHORIZED;
        assert!(
            !unauthorized || !challenges(&problem).is_empty(),
            "{refusal:?}"
        );
    }
}
