//! What a call counts under and what it takes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tollgate::{
    clock::ManualClock,
    head::RequestHead,
    limit::{Cost, LimitLayer, MemoryLimits, Quota, Rate, Rule, Scope, Window},
};
use tower::{Layer, ServiceExt, service_fn};

use super::{hello, layer, request, status};

#[tokio::test]
async fn refuses_the_request_after_the_burst_is_spent_and_the_service_never_sees_it() {
    let clock = ManualClock::default();
    let seen = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&seen);
    let service = layer(&clock, [Rate::per_second(1).burst(3)]).layer(service_fn(move |request| {
        counted.fetch_add(1, Ordering::Relaxed);
        hello(request)
    }));
    for _ in 0..3 {
        assert_eq!(status(&service, request()).await, StatusCode::OK);
    }
    let refused = service.clone().oneshot(request()).await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(
        refused.headers()["content-type"],
        "application/problem+json"
    );
    let body = refused.into_body().collect().await.unwrap().to_bytes();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["code"], "rate_limited");
    assert_eq!(body["violated-policies"], serde_json::json!(["rate"]));
    assert_eq!(seen.load(Ordering::Relaxed), 3);
    clock.advance(Duration::from_secs(1));
    assert_eq!(status(&service, request()).await, StatusCode::OK);
}

#[tokio::test]
async fn counts_each_value_of_a_hook_apart_and_leaves_the_rest_alone() {
    let clock = ManualClock::default();
    let by_team = layer(&clock, [Rate::per_minute(1)]).by(|head: &RequestHead<'_>| {
        head.headers()
            .get("x-team")
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    });
    let service = by_team.layer(service_fn(hello));
    let from = |team: &[u8]| {
        let mut request = request();
        request
            .headers_mut()
            .insert("x-team", http::HeaderValue::from_bytes(team).unwrap());
        request
    };
    for team in [&b"red"[..], b"blue", b"\xff\xfe", &[b'x'; 4096]] {
        assert_eq!(status(&service, from(team)).await, StatusCode::OK);
        assert_eq!(
            status(&service, from(team)).await,
            StatusCode::TOO_MANY_REQUESTS
        );
    }
    for _ in 0..5 {
        assert_eq!(
            status(&service, request()).await,
            StatusCode::OK,
            "no team, no count"
        );
    }
}

#[tokio::test]
async fn a_custom_scope_counts_within_its_rule_only() {
    let clock = ManualClock::default();
    let rules = [Rate::per_minute(1).scope(Scope::Custom("model".into()))];
    let service = layer(&clock, rules)
        .scope("model", |head: &RequestHead<'_>| {
            head.uri().query().map(str::to_owned)
        })
        .layer(service_fn(hello));
    let ask = |model: &str| Request::get(format!("/?{model}")).body(()).unwrap();
    assert_eq!(status(&service, ask("small")).await, StatusCode::OK);
    assert_eq!(status(&service, ask("large")).await, StatusCode::OK);
    assert_eq!(
        status(&service, ask("small")).await,
        StatusCode::TOO_MANY_REQUESTS
    );
}

#[tokio::test]
async fn a_call_costs_what_the_hook_says() {
    let clock = ManualClock::default();
    let service = layer(&clock, [Quota::daily(10)])
        .cost(|head: &RequestHead<'_>| {
            let rows = head.uri().query().and_then(|query| query.parse().ok());
            Cost::requests(rows.unwrap_or(1))
        })
        .layer(service_fn(hello));
    let rows = |n: u32| Request::get(format!("/?{n}")).body(()).unwrap();
    assert_eq!(status(&service, rows(6)).await, StatusCode::OK);
    assert_eq!(
        status(&service, rows(6)).await,
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(status(&service, rows(4)).await, StatusCode::OK);
    let never = service.clone().oneshot(rows(11)).await.unwrap();
    assert_eq!(never.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(
        !never.headers().contains_key("retry-after"),
        "it can never pass"
    );
}

#[tokio::test]
async fn a_limit_of_zero_is_not_blamed_on_the_size_of_the_call() {
    let clock = ManualClock::default();
    let service = layer(&clock, [Quota::daily(0)]).layer(service_fn(hello));
    let refused = service.oneshot(request()).await.unwrap();
    assert!(!refused.headers().contains_key("retry-after"));
    let body = refused.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("The plan does not allow this"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_calls_at_once_admit_exactly_the_limit() {
    let clock = ManualClock::default();
    let rules: [Rule; 2] = [
        Quota::daily(100).into(),
        Window::new(500, Duration::from_secs(60)).into(),
    ];
    let service = layer(&clock, rules).layer(service_fn(hello));
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let service = service.clone();
        calls.spawn(async move { status(&service, request()).await });
    }
    let admitted = calls
        .join_all()
        .await
        .into_iter()
        .filter(|status| status.is_success())
        .count();
    assert_eq!(admitted, 100);
}

#[test]
fn a_rule_that_cannot_work_is_refused_when_the_layer_is_built() {
    let error = LimitLayer::new(MemoryLimits::new(), [Rate::per(5, Duration::ZERO)]).unwrap_err();
    assert!(error.path().starts_with("rules[0]"), "{error}");
}
