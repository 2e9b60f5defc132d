//! What a tonic client is told when a call does not reach its service.

use std::sync::Arc;

use tollgate::{
    id::TenantId,
    identity::{NewKey, RequireScope},
    limit::{
        Decision, LimitCall, LimitStore, LimitStoreError, OnStoreFailure, OwnedLimitCall, Quota,
        Rate, Receipt, Settlement,
    },
    meter::CallOutcome,
    plan::Plan,
    tenant::AccessState,
};
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;
use tower::{Layer as _, ServiceExt as _};

use super::{COUNT, Echo, SAY, stand};

fn metadata<'a>(status: &'a Status, name: &str) -> &'a str {
    let value = status.metadata().get(name);
    let value = value.unwrap_or_else(|| panic!("no {name} in {status:?}"));
    value.to_str().expect("a text")
}

#[tokio::test]
async fn a_call_without_a_key_is_unauthenticated() {
    let stand = stand(|builder| builder).await;
    let status = stand.client(None).await.say("hello").await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(!status.message().is_empty());
    assert!(metadata(&status, "www-authenticate").contains("ApiKey"));
    assert!(!metadata(&status, "x-request-id").is_empty());
    let details = status.get_error_details();
    let info = details.error_info().expect("an ErrorInfo");
    assert_eq!(
        (&*info.reason, &*info.domain),
        ("MISSING_CREDENTIALS", "tollgate")
    );
    assert!(details.retry_info().is_none());
}

#[tokio::test]
async fn a_wrong_key_is_unauthenticated_and_a_key_may_come_either_way() {
    let stand = stand(|builder| builder).await;
    let status = stand.client(Some("tg_live_wrong")).await.say("hello").await;
    assert_eq!(status.unwrap_err().code(), Code::Unauthenticated);

    let key = stand.key().await;
    let mut client = stand.client(None).await;
    let mut request = client.ready(super::text("by bearer")).await;
    let bearer = format!("Bearer {key}").parse().expect("a field");
    request.metadata_mut().insert("authorization", bearer);
    let codec = tonic_prost::ProstCodec::<super::Text, super::Text>::default();
    let path = SAY.parse().expect("a path");
    let answer = client
        .grpc
        .unary(request, path, codec)
        .await
        .expect("an answer");
    assert_eq!(answer.into_inner().text, "by bearer");
    assert_eq!(
        stand.client(Some(&key)).await.say("hi").await.unwrap().text,
        "hi"
    );
}

#[tokio::test]
async fn a_limited_call_is_told_when_to_come_back() {
    let plan = || Plan::new("free").rule(Rate::per_minute(2).burst(2));
    let stand = stand(|builder| builder.plans([plan()])).await;
    let mut client = stand.caller().await;
    for _ in 0..2 {
        client.say("hello").await.expect("within the burst");
    }
    let status = client.say("hello").await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(metadata(&status, "retry-after"), "30");
    assert!(metadata(&status, "ratelimit").contains("r=0"));
    let details = status.get_error_details();
    let info = details.error_info().expect("an ErrorInfo");
    assert_eq!(info.reason, "RATE_LIMITED");
    assert_eq!(info.metadata["violated-policies"], r#"["rate"]"#);
    assert_eq!(
        (&*info.metadata["limit"], &*info.metadata["plan"]),
        ("2", "free")
    );
    let delay = details.retry_info().and_then(|info| info.retry_delay);
    assert_eq!(delay, Some(std::time::Duration::from_secs(30)));

    let event = stand.events(3).await.remove(2);
    assert_eq!((event.outcome, event.status), (CallOutcome::Refused, 429));
    assert_eq!(event.grpc_status, Some(8));
    stand.clock.advance(std::time::Duration::from_secs(30));
    client.say("hello").await.expect("after the wait");
}

#[tokio::test]
async fn an_exceeded_quota_is_exhausted_whatever_its_status_in_plain_http() {
    let plan = || Plan::new("free").rule(Quota::monthly(1));
    let status = http::StatusCode::PAYMENT_REQUIRED;
    let stand = stand(|builder| builder.plans([plan()]).quota_status(status)).await;
    let mut client = stand.caller().await;
    client.say("hello").await.expect("the one");
    let status = client.say("hello").await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(stand.events(2).await[1].grpc_status, Some(8));
}

#[tokio::test]
async fn a_read_only_tenant_may_call_the_methods_that_only_read() {
    let stand = stand(|builder| builder).await;
    let mut client = stand.caller().await;
    let acme = TenantId::new("acme").expect("an id");
    let tenants = stand.gate.tenants();
    tenants
        .set_access(&acme, AccessState::ReadOnly { suspend_at: None })
        .await
        .expect("set");
    let status = client.say("hello").await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(metadata(&status, "tollgate-access"), "read-only");
    client.count("1").await.expect("a method that only reads");
    tenants
        .set_access(&acme, AccessState::Closed)
        .await
        .expect("set");
    let status = client.count("1").await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_panic_is_internal_and_says_nothing_of_itself() {
    let stand = stand(|builder| builder).await;
    let status = stand.caller().await.say("panic now").await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert_eq!(status.message(), "Internal error");
    assert!(!format!("{status:?}").contains("canary"));
    let event = stand.event().await;
    assert_eq!(event.outcome, CallOutcome::Panicked);
    assert_eq!((event.status, event.grpc_status), (500, Some(13)));
}

#[derive(Debug)]
struct Down;

#[async_trait::async_trait]
impl LimitStore for Down {
    fn try_decide(&self, _: &LimitCall<'_>) -> Option<Result<Decision, LimitStoreError>> {
        None
    }

    async fn decide(self: Arc<Self>, _: OwnedLimitCall) -> Result<Decision, LimitStoreError> {
        Err(LimitStoreError::Unavailable("10.0.0.7 refused".into()))
    }

    fn settle(&self, _: &LimitCall<'_>, _: &Receipt, _: &Settlement) {}
}

#[tokio::test]
async fn a_store_that_is_down_is_unavailable() {
    let rule = || Quota::daily(5).on_store_failure(OnStoreFailure::Deny);
    let plan = || Plan::new("free").rule(rule());
    let stand = stand(|builder| builder.plans([plan()]).limits(Down)).await;
    let status = stand.caller().await.say("hello").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(metadata(&status, "retry-after"), "1");
    assert!(!format!("{status:?}").contains("10.0.0.7"));
}

#[tokio::test]
async fn a_route_layer_refuses_in_the_same_form() {
    let stand = stand(|builder| builder).await;
    let guarded = RequireScope::new("write").layer(Echo);
    let service = stand.gate.layer().layer(guarded);
    let new = NewKey::for_tenant("acme").plan("free");
    let key = stand.gate.keys().issue(new).await.expect("a key");
    let request = http::Request::post(SAY)
        .header("content-type", "application/grpc+proto")
        .header("x-api-key", key.key.expose())
        .body(tonic::body::Body::empty())
        .expect("a request");
    let response = service.oneshot(request).await.expect("an answer");
    assert_eq!(response.headers()["grpc-status"], "7");
    assert_eq!(response.status(), 200);
    assert_eq!(stand.event().await.outcome, CallOutcome::Refused);
}

#[tokio::test]
async fn what_the_service_says_by_itself_is_not_touched() {
    let stand = stand(|builder| builder).await;
    let mut client = stand.caller().await;
    for code in 1..=16 {
        let status = client.say(&format!("fail {code}")).await.unwrap_err();
        assert_eq!(status.code(), Code::from_i32(code));
        assert_eq!(status.message(), "told to fail");
        assert!(status.details().is_empty());
    }
    let status = client.unary("/test.Echo/Nothing", "x").await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unimplemented, "no such method")
    );
    let status = client.unary("/test.Nobody/Nothing", "x").await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn health_is_asked_without_a_key_and_makes_no_event() {
    let stand = stand(|builder| builder).await;
    let mut health = HealthClient::new(stand.channel().await);
    let request = HealthCheckRequest {
        service: String::new(),
    };
    let answer = health.check(request.clone()).await.expect("an answer");
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    let mut watch = health.watch(request).await.expect("a stream").into_inner();
    let first = watch.message().await.expect("a status").expect("a status");
    assert_eq!(first.status(), ServingStatus::Serving);
    drop(watch);
    let unidentified = || stand.gate.usage().counters().unidentified(200);
    crate::common::eventually(|| unidentified() == 2).await;
    assert!(stand.events(0).await.is_empty());
}

#[tokio::test]
async fn failed_attempts_are_counted_by_the_peer_that_tonic_knows() {
    let limit = tollgate::auth::FailureLimit::new(3, 3).expect("a limit");
    let stand = stand(|builder| builder.failure_limit(limit)).await;
    let mut client = stand.client(Some("tg_live_wrong")).await;
    for _ in 0..3 {
        let status = client.unary(COUNT, "1").await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
    }
    let status = client.unary(COUNT, "1").await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
}
