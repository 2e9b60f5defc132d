//! Rules of the gate beside those of a plan.

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
    routing::get,
};
use tollgate::{
    LimitLayer, auth::TrustedProxies, head::RequestHead, limit::MemoryLimits, prelude::*,
};
use tower::ServiceExt;

use super::{acme, hello, stand};
use crate::common::request;

#[tokio::test]
async fn a_ceiling_counts_all_tenants_and_is_given_back_what_a_tenants_own_rule_refuses() {
    let stand = stand(|builder| {
        builder
            .plans([Plan::new("free").rule(Quota::daily(1))])
            .ceiling(Rate::per_minute(3))
    })
    .await;
    let (red, blue) = (
        stand.issue(acme()).await.key,
        NewKey::for_tenant("blue").plan("free"),
    );
    let blue = stand.issue(blue).await.key;
    let status = async |key: &str| stand.call("GET", "/v1/hello", key).await.status.as_u16();
    assert_eq!(status(red.expose()).await, 200);
    for _ in 0..5 {
        let refused = stand.call("GET", "/v1/hello", red.expose()).await;
        assert_eq!(
            refused.json()["code"],
            "quota_exceeded",
            "the ceiling of three is not eaten up"
        );
    }
    assert_eq!(status(blue.expose()).await, 200);
    assert_eq!(
        stand.call("GET", "/v1/hello", blue.expose()).await.json()["code"],
        "quota_exceeded"
    );
}

#[tokio::test]
async fn a_ceiling_sees_the_client_behind_a_proxy_and_leaves_public_paths_alone() {
    let stand = stand(|builder| {
        builder
            .client_addr(TrustedProxies::new(["127.0.0.1"]).unwrap())
            .ceiling(Rate::per_minute(1).scope(Scope::Address))
    })
    .await;
    let key = stand.issue(acme()).await.key;
    let status = async |from: &str| {
        let mut request = request("GET", "/v1/hello");
        for (name, value) in [("x-api-key", key.expose()), ("x-forwarded-for", from)] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        stand.server.send(request).await.status.as_u16()
    };
    assert_eq!(
        [status("192.0.2.1").await, status("192.0.2.1").await],
        [200, 429]
    );
    assert_eq!(status("192.0.2.2").await, 200);
    for _ in 0..3 {
        assert_eq!(stand.server.get("/open").await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn what_a_route_layer_refuses_or_the_service_fails_is_given_back_to_the_quota() {
    let stand = stand(|builder| builder.plans([Plan::new("free").rule(Quota::daily(1))])).await;
    let key = stand.issue(acme()).await.key;
    for path in ["/v1/export", "/v1/fails", "/v1/panics", "/v1/export"] {
        let answer = stand.call("GET", path, key.expose()).await;
        assert_ne!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{path}");
    }
    assert_eq!(
        stand.call("GET", "/v1/hello", key.expose()).await.status,
        StatusCode::OK
    );
    assert_eq!(
        stand.call("GET", "/v1/hello", key.expose()).await.status,
        StatusCode::TOO_MANY_REQUESTS
    );
}

#[tokio::test]
async fn limits_can_be_by_route_by_address_and_by_the_callers_own_word() {
    let stand = stand(|builder| {
        let by = |scope, name: &str| Rate::per_minute(2).scope(scope).named(name);
        let plan = Plan::new("free")
            .rule(by(Scope::Route, "by-route"))
            .rule(by(Scope::Custom("model".into()), "by-model"))
            .rule(
                Rate::per_minute(4)
                    .scope(Scope::Address)
                    .named("by-address"),
            );
        builder
            .plans([plan])
            .client_addr(TrustedProxies::new(["127.0.0.1"]).unwrap())
            .scope("model", |head: &RequestHead<'_>| {
                head.uri().query().map(str::to_owned)
            })
    })
    .await;
    let key = stand.issue(acme()).await.key;
    let code = async |path: &str, from: &str| {
        let mut request = request("GET", path);
        request
            .headers_mut()
            .insert("x-api-key", key.expose().parse().unwrap());
        request
            .headers_mut()
            .insert("x-forwarded-for", from.parse().unwrap());
        let answer = stand.server.send(request).await;
        match answer.status {
            StatusCode::OK => "ok".to_owned(),
            _ => answer.json()["violated-policies"][0]
                .as_str()
                .unwrap()
                .to_owned(),
        }
    };
    assert_eq!(code("/v1/hello?a", "192.0.2.1").await, "ok");
    assert_eq!(code("/v1/hello?a", "192.0.2.1").await, "ok");
    assert_eq!(code("/v1/hello?b", "192.0.2.1").await, "by-route");
    assert_eq!(code("/v1/item/1?a", "192.0.2.1").await, "by-model");
    assert_eq!(code("/v1/item/1?b", "192.0.2.1").await, "ok");
    assert_eq!(code("/v1/item/2", "192.0.2.1").await, "ok");
    assert_eq!(code("/v1/streams", "192.0.2.1").await, "by-address");
    assert_eq!(code("/v1/streams", "192.0.2.2").await, "ok");
}

#[tokio::test]
async fn a_limit_on_one_route_tells_of_itself_beside_the_plan() {
    let stand = stand(|builder| builder).await;
    let own = LimitLayer::new(MemoryLimits::new(), [Rate::per_minute(1).named("export")]).unwrap();
    let app = Router::new()
        .route("/export", get(hello).route_layer(own))
        .layer(stand.gate.layer());
    let key = stand.issue(acme()).await.key;
    let call = async || {
        let request = Request::get("/export")
            .header("x-api-key", key.expose())
            .body(Body::empty());
        app.clone().oneshot(request.unwrap()).await.unwrap()
    };
    for status in [200, 429] {
        let response = call().await;
        assert_eq!(response.status().as_u16(), status);
        let fields = response.headers().get_all("ratelimit").iter();
        let list: Vec<&str> = fields.map(|field| field.to_str().unwrap()).collect();
        assert!(list[0].starts_with("\"export\";r=0"), "{list:?}");
        assert!(list[1].starts_with("\"rate\";r="), "{list:?}");
    }
}
