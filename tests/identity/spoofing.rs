//! What a client may not say of itself.

use std::sync::Arc;

use axum::{Router, extract::Request, routing::any};
use tollgate::identity::{AuthLayer, Identity, NewKey, PathSet};
use tower::Layer;

use super::{
    call::{Inner, request, send},
    fake::{Far, far},
};
use crate::common::{self, serve};

/// Twelve ways to name the headers that speak of an identity.
const SPELLINGS: [&str; 12] = [
    "X-Tenant-ID",
    "X_Tenant_ID",
    "x-tenant_id",
    "X-TENANT-ID",
    "X-Plan",
    "x_plan",
    "X-Consumer-ID",
    "X_Consumer_Username",
    "x-consumer-custom-id",
    "X-Credential-Identifier",
    "x_credential_id",
    "X.Tenant.Id",
];

fn layer(far: &Far) -> AuthLayer {
    AuthLayer::new(far.auth.clone())
        .clock(Arc::new(far.clock.clone()))
        .public(PathSet::new(["/public"]).unwrap())
}

/// Answers with the tenant it was called for and the names of all headers it received.
async fn echo(request: Request) -> String {
    let tenant = request.extensions().get::<Identity>();
    let tenant = tenant.map_or("nobody", |identity| identity.tenant().id().as_str());
    let mut names: Vec<_> = request.headers().keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    format!("{tenant}: {}", names.join(" "))
}

#[tokio::test]
async fn no_spelling_of_an_identity_header_reaches_the_service_over_http_1_or_2() {
    let far = far();
    let key = far.issue().await;
    let app = Router::new()
        .route("/v1/hello", any(echo))
        .route("/public", any(echo))
        .layer(layer(&far));
    let server = serve(app).await;
    for spelling in SPELLINGS {
        for (path, tenant) in [("/v1/hello", "acme"), ("/public", "nobody")] {
            let mut request = common::request("GET", path);
            let headers = request.headers_mut();
            let name = http::HeaderName::from_bytes(spelling.as_bytes()).unwrap();
            headers.append(name.clone(), "victim".parse().unwrap());
            headers.append(name, "second".parse().unwrap());
            headers.insert("x-unrelated", "kept".parse().unwrap());
            if path == "/v1/hello" {
                headers.insert("x-api-key", key.parse().unwrap());
            }
            for answer in [
                server.send(request.clone()).await,
                server.send_http2(request).await,
            ] {
                let seen = answer.text();
                assert!(seen.starts_with(tenant), "{spelling}: {seen}");
                assert!(seen.contains("x-unrelated"), "{spelling}: {seen}");
                let spelling = spelling.to_ascii_lowercase();
                assert!(!seen.contains(&spelling), "{spelling}: {seen}");
            }
        }
    }
}

#[tokio::test]
async fn our_own_headers_are_set_for_a_proxy_only_if_asked() {
    let far = far();
    let new = NewKey::for_tenant("acme").plan("free");
    let key = far.issue_as(new.plan_override("pro")).await;
    let id = far.id_of(&key).await;
    let forged = [
        ("x-api-key", &*key),
        ("x-tenant-id", "victim"),
        ("x_plan", "enterprise"),
        ("connection", "keep-alive, X-Tenant-ID"),
    ];
    let inner = Inner::default();
    let service = layer(&far).forward_headers(true).layer(inner.clone());
    assert_eq!(send(service, request(&forged)).await.status, 200);
    let seen = inner.last().headers;
    assert_eq!(seen["x-tenant-id"], "acme");
    assert_eq!(seen["x-plan"], "pro");
    assert_eq!(seen["x-consumer-id"], id.as_str());
    assert_eq!(
        seen["connection"], "keep-alive",
        "no proxy is told to drop them"
    );
    assert!(!seen.contains_key("x_plan"));
    assert_eq!(seen.get_all("x-tenant-id").iter().count(), 1);
    send(layer(&far).layer(inner.clone()), request(&forged)).await;
    assert!(!inner.last().headers.contains_key("x-tenant-id"));
}

#[tokio::test]
async fn requests_of_two_tenants_on_one_connection_never_cross() {
    let far = far();
    let mut keys = Vec::new();
    for name in ["acme", "other"] {
        keys.push((
            name,
            far.issue_as(NewKey::for_tenant(name).plan("free")).await,
        ));
    }
    let app = Router::new()
        .route("/v1/hello", any(echo))
        .layer(layer(&far));
    let server = serve(app).await;
    for round in 0..50 {
        let answers = keys.iter().map(|(name, key)| {
            let mut request = common::request("GET", "/v1/hello");
            request
                .headers_mut()
                .insert("x-api-key", key.parse().unwrap());
            request
                .headers_mut()
                .insert("x-tenant-id", "victim".parse().unwrap());
            let server = &server;
            async move { (name, server.send_http2(request).await) }
        });
        let [one, other]: [_; 2] = answers.collect::<Vec<_>>().try_into().ok().unwrap();
        let (one, other) = tokio::join!(one, other);
        for (name, answer) in [one, other] {
            assert!(
                answer.text().starts_with(*name),
                "{round}: {}",
                answer.text()
            );
        }
    }
}
