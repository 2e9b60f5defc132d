use std::sync::Arc;

use http::StatusCode;
use tollgate::{
    auth::TrustedProxies,
    error::ErrorCode,
    head::PeerAddress,
    identity::{AuthLayer, IpAllowLayer, NewKey, PathSet, RequireFeature, RequireScope},
};
use tower::{Layer, ServiceBuilder};

use super::{
    call::{Answer, Inner, request, send, to},
    fake::{Far, far},
};

fn auth(far: &Far) -> AuthLayer {
    AuthLayer::new(far.auth.clone())
        .clock(Arc::new(far.clock.clone()))
        .public(PathSet::new(["/public"]).unwrap())
}

#[tokio::test]
async fn a_route_asks_for_all_of_its_scopes() {
    let far = far();
    let inner = Inner::default();
    let service = ServiceBuilder::new()
        .layer(auth(&far))
        .layer(RequireScope::new("chat:read chat:write"))
        .service(inner.clone());
    let new = NewKey::for_tenant("acme").plan("free");
    for (scopes, status) in [
        (vec!["chat:read", "chat:write", "other"], 200),
        (vec!["chat:read"], 403),
        (vec!["chat:write:all"], 403),
        (vec![], 403),
    ] {
        let key = far.issue_as(new.clone().scopes(scopes.clone())).await;
        let answer = send(service.clone(), request(&[("x-api-key", &key)])).await;
        assert_eq!(answer.status.as_u16(), status, "{scopes:?}");
        if status == 403 {
            assert_eq!(answer.code(), Some(ErrorCode::InsufficientScope));
            assert_eq!(
                answer.headers["www-authenticate"],
                "Bearer error=\"insufficient_scope\", scope=\"chat:read chat:write\""
            );
        }
    }
    assert_eq!(inner.n_calls(), 1);
}

#[tokio::test]
async fn a_scope_that_cannot_stand_in_a_header_is_left_out_of_the_challenge() {
    let far = far();
    let key = far.issue().await;
    let service = ServiceBuilder::new()
        .layer(auth(&far))
        .layer(RequireScope::new("a\"b"))
        .service(Inner::default());
    let answer = send(service, request(&[("x-api-key", &key)])).await;
    assert_eq!(
        answer.headers["www-authenticate"],
        "Bearer error=\"insufficient_scope\""
    );
}

#[tokio::test]
async fn a_route_asks_for_a_feature_of_the_plan() {
    let far = far();
    let inner = Inner::default();
    let service = ServiceBuilder::new()
        .layer(auth(&far))
        .layer(RequireFeature::new("export"))
        .service(inner.clone());
    let pro = far.issue_as(NewKey::for_tenant("paying").plan("pro")).await;
    let free = far.issue().await;
    assert_eq!(
        send(service.clone(), request(&[("x-api-key", &pro)]))
            .await
            .status,
        200
    );
    let answer = send(service, request(&[("x-api-key", &free)])).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(problem["code"], "feature_not_in_plan");
    assert_eq!(problem["feature"], "export");
    assert_eq!(problem["upgrade_url"], "https://example.com/upgrade");
    assert_eq!(inner.n_calls(), 1);
}

#[tokio::test]
async fn a_guard_without_an_identity_is_a_fault_of_the_service() {
    let far = far();
    let inner = Inner::default();
    let scope = RequireScope::new("chat:write").layer(inner.clone());
    let feature = RequireFeature::new("export").layer(inner.clone());
    let public = auth(&far).layer(scope.clone());
    let check = |answer: Answer, name: &str| {
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(answer.code(), Some(ErrorCode::LayerMissing));
        let detail = answer.problem.unwrap().detail_text().unwrap().to_owned();
        assert!(
            detail.contains(name) && detail.contains("AuthLayer"),
            "{detail}"
        );
    };
    check(send(scope, request(&[])).await, "RequireScope");
    check(send(feature, request(&[])).await, "RequireFeature");
    check(
        send(public, to("GET", "/public", &[])).await,
        "RequireScope",
    );
    assert_eq!(inner.n_calls(), 0);
}

#[tokio::test]
async fn a_route_asks_for_an_address_and_believes_only_trusted_proxies() {
    let inner = Inner::default();
    let networks = ["192.0.2.0/24", "2001:db8::/32", "::ffff:203.0.113.0/120"];
    let allow = IpAllowLayer::parse(networks).unwrap();
    let direct = allow.clone().layer(inner.clone());
    let proxied = allow
        .client_addr(TrustedProxies::new(["10.0.0.0/8"]).unwrap())
        .layer(inner.clone());
    let from = |peer: Option<&str>, forwarded: &str| {
        let mut request = request(&[("x-forwarded-for", forwarded)]);
        if let Some(peer) = peer {
            let peer = PeerAddress((peer.parse::<std::net::IpAddr>().unwrap(), 443).into());
            request.extensions_mut().insert(peer);
        }
        request
    };
    for (peer, forwarded, status) in [
        (Some("192.0.2.1"), "198.51.100.1", 200),
        (Some("::ffff:192.0.2.1"), "198.51.100.1", 200),
        (Some("203.0.113.5"), "198.51.100.1", 200),
        (Some("2001:db8::9"), "198.51.100.1", 200),
        (Some("198.51.100.1"), "192.0.2.1", 403),
        (None, "192.0.2.1", 403),
    ] {
        let answer = send(direct.clone(), from(peer, forwarded)).await;
        assert_eq!(answer.status.as_u16(), status, "{peer:?} {forwarded}");
    }
    for (peer, forwarded, status) in [
        (Some("10.0.0.1"), "192.0.2.1", 200),
        (Some("10.0.0.1"), "192.0.2.1, 198.51.100.1", 403),
        (Some("198.51.100.1"), "192.0.2.1", 403),
    ] {
        let answer = send(proxied.clone(), from(peer, forwarded)).await;
        assert_eq!(answer.status.as_u16(), status, "{peer:?} {forwarded}");
    }
    let refused = send(direct, from(None, "192.0.2.1")).await;
    assert_eq!(refused.code(), Some(ErrorCode::IpNotAllowed));
    assert_eq!(inner.n_calls(), 5);
    let error = IpAllowLayer::parse(["192.0.2.0/24", "everywhere"]).unwrap_err();
    assert_eq!(error.path(), "allowed_networks[1]");
}
