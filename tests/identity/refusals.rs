use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::StatusCode;
use tollgate::{
    auth::{AuthEvent, AuthEventSink, AuthRefusal, FailureLimit},
    error::ErrorCode,
    head::RequestHead,
    identity::NewKey,
};
use tower::Layer;

use super::{
    call::{Answer, Inner, layer, request, send, to},
    fake::{Mood, far, invented},
};

#[tokio::test]
async fn nothing_without_a_valid_credential_reaches_the_service() {
    let far = far();
    let key = far.issue().await;
    let invented = invented();
    let inner = Inner::default();
    let service = layer(&far).failure_limit(None).layer(inner.clone());
    type Headers<'a> = &'a [(&'a str, &'a str)];
    let cases: [(Headers<'_>, u16, ErrorCode); 6] = [
        (&[], 401, ErrorCode::MissingCredentials),
        (
            &[("authorization", "Basic dXNlcjpwYXNz")],
            401,
            ErrorCode::MissingCredentials,
        ),
        (
            &[("x-api-key", &invented)],
            401,
            ErrorCode::InvalidCredentials,
        ),
        (
            &[("x-api-key", "nonsense")],
            401,
            ErrorCode::InvalidCredentials,
        ),
        (
            &[("x-api-key", &key), ("x-api-key", &key)],
            400,
            ErrorCode::AmbiguousCredentials,
        ),
        (
            &[("x-api-key", &key), ("authorization", "Bearer another")],
            400,
            ErrorCode::AmbiguousCredentials,
        ),
    ];
    for (headers, status, code) in cases {
        let answer = send(service.clone(), request(headers)).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (status, Some(code)),
            "{headers:?}"
        );
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        assert_eq!(
            answer.headers.contains_key("www-authenticate"),
            status == 401 || status == 400
        );
    }
    assert_eq!(inner.n_calls(), 0);
}

#[tokio::test]
async fn a_challenge_names_an_error_only_where_a_credential_was_sent() {
    let far = far();
    let service = layer(&far).layer(Inner::default());
    let challenges = |answer: &Answer| -> Vec<String> {
        let values = answer.headers.get_all("www-authenticate").iter();
        values
            .map(|value| value.to_str().unwrap().to_owned())
            .collect()
    };
    let missing = send(service.clone(), request(&[])).await;
    assert_eq!(
        challenges(&missing),
        ["ApiKey realm=\"api\"", "Bearer realm=\"api\""]
    );
    let invalid = send(service, request(&[("x-api-key", &invented())])).await;
    assert_eq!(
        challenges(&invalid),
        [
            "ApiKey realm=\"api\"",
            "Bearer realm=\"api\", error=\"invalid_token\", error_description=\"The credential is not valid.\""
        ]
    );
}

#[tokio::test]
async fn unknown_revoked_expired_and_malformed_keys_get_the_same_answer_byte_for_byte() {
    let far = far();
    let new = NewKey::for_tenant("acme").plan("free");
    let revoked = far.issue().await;
    far.admin.revoke(&far.id_of(&revoked).await).await.unwrap();
    let expired = far.issue_as(new.expires_in(Duration::from_secs(1))).await;
    far.advance(2);
    let mut wrong_checksum = invented();
    wrong_checksum.pop();
    wrong_checksum.push('!');
    let service = layer(&far).failure_limit(None).layer(Inner::default());
    let mut answers = Vec::new();
    for key in [
        &*invented(),
        &revoked,
        &expired,
        &wrong_checksum,
        "x",
        &"y".repeat(9_000),
    ] {
        let answer = send(service.clone(), request(&[("x-api-key", key)])).await;
        answers.push((answer.status, format!("{:?}", answer.headers), answer.body));
    }
    assert_eq!(answers[0].0, StatusCode::UNAUTHORIZED);
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "{answers:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_a_503_and_never_a_401() {
    let far = far();
    let key = far.issue().await;
    let inner = Inner::default();
    let service = layer(&far).layer(inner.clone());
    for mood in [Mood::Fail, Mood::Hang, Mood::Panic] {
        far.keys.behaviour.becomes(mood);
        let answer = send(service.clone(), request(&[("x-api-key", &key)])).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{mood:?}");
        assert_eq!(answer.code(), Some(ErrorCode::AuthUnavailable));
        assert_eq!(answer.headers["retry-after"], "1");
    }
    assert_eq!(inner.n_calls(), 0);
    far.keys.behaviour.becomes(Mood::Answer);
    assert_eq!(
        send(service, request(&[("x-api-key", &key)])).await.status,
        200
    );
}

#[tokio::test]
async fn an_address_with_too_many_failures_is_turned_away_before_the_store() {
    let far = far();
    let key = far.issue().await;
    let attacker: IpAddr = "192.0.2.1".parse().unwrap();
    let customer: IpAddr = "192.0.2.2".parse().unwrap();
    let limit = FailureLimit::new(60, 5).unwrap();
    let inner = Inner::default();
    let service = layer(&far)
        .failure_limit(limit)
        .client_addr(|head: &RequestHead<'_>| head.extensions().get::<IpAddr>().copied())
        .layer(inner.clone());
    let ask = async |address: IpAddr, key: &str| {
        let mut request = request(&[("x-api-key", key)]);
        request.extensions_mut().insert(address);
        send(service.clone(), request).await
    };
    for _ in 0..5 {
        assert_eq!(ask(attacker, &invented()).await.status, 401);
    }
    let n_asked = far.keys.behaviour.n_asked();
    let refused = ask(attacker, &key).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.code(), Some(ErrorCode::TooManyFailedAttempts));
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(far.keys.behaviour.n_asked(), n_asked);
    assert_eq!(ask(customer, &key).await.status, 200);
    far.advance(1);
    assert_eq!(ask(attacker, &key).await.status, 200);
}

#[tokio::test]
async fn a_key_bound_to_networks_is_refused_elsewhere() {
    let far = far();
    let new = NewKey::for_tenant("acme").plan("free");
    let key = far
        .issue_as(new.allow_networks(["192.0.2.0/24", "2001:db8::7"]))
        .await;
    let inner = Inner::default();
    let service = layer(&far)
        .client_addr(|head: &RequestHead<'_>| head.extensions().get::<IpAddr>().copied())
        .layer(inner.clone());
    let cases = [
        (Some("192.0.2.9"), 200),
        (Some("::ffff:192.0.2.9"), 200),
        (Some("2001:db8::7"), 200),
        (Some("198.51.100.1"), 403),
        (None, 403),
    ];
    for (address, status) in cases {
        let mut request = request(&[("x-api-key", &key), ("x-forwarded-for", "192.0.2.9")]);
        if let Some(address) = address {
            request
                .extensions_mut()
                .insert(address.parse::<IpAddr>().unwrap());
        }
        let answer = send(service.clone(), request).await;
        assert_eq!(answer.status.as_u16(), status, "{address:?}");
        if status == 403 {
            assert_eq!(answer.code(), Some(ErrorCode::IpNotAllowed));
        }
    }
    assert_eq!(inner.n_calls(), 3);
}

#[derive(Debug, Default)]
struct Recorded(Mutex<Vec<AuthEvent>>);

impl AuthEventSink for Recorded {
    fn auth_event(&self, event: &AuthEvent) {
        self.0.lock().unwrap().push(event.clone());
    }
}

#[tokio::test]
async fn refusals_are_told_to_the_sink_with_no_more_of_the_key_than_may_be_shown() {
    let far = far();
    let events = Arc::new(Recorded::default());
    let service = layer(&far)
        .events(Arc::clone(&events) as _)
        .layer(Inner::default());
    let key = invented();
    for key in [&*key, "not-a-key-of-ours-at-all"] {
        send(service.clone(), request(&[("x-api-key", key)])).await;
    }
    send(service.clone(), request(&[])).await;
    let events = events.0.lock().unwrap();
    let refusals: Vec<_> = events.iter().map(|event| event.refusal).collect();
    let expected = [
        AuthRefusal::Unknown,
        AuthRefusal::Malformed,
        AuthRefusal::Missing,
    ];
    assert_eq!(refusals, expected);
    let shown = events[0].credential.unwrap();
    assert_eq!(
        shown.as_str(),
        format!("tg_live_…{}", &key[key.len() - 4..])
    );
    assert!(!format!("{events:?}").contains(&key[8..20]));
}

#[tokio::test]
async fn an_answer_to_head_has_no_body() {
    let far = far();
    let service = layer(&far).layer(Inner::default());
    let answer = send(service, to("HEAD", "/v1/hello", &[])).await;
    assert_eq!(answer.status, 401);
    assert!(answer.body.is_empty());
}
