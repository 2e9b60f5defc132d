//! Settings that cannot work are found at the start.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tollgate::{
    Tollgate,
    auth::jwt::{Jwks, JwksError, JwksRefresh, SharedSecret, StaticJwks},
    id::PlanName,
    identity::{CacheSettings, JwtAuthenticator, JwtAuthenticatorBuilder},
    plan::Plan,
    tenant::MemoryTenantStore,
};

use super::{
    signer::{P256, document},
    stand::{AUDIENCE, ISSUER, all_keys},
};
use crate::identity::fake::catalog;

fn wrong(builder: JwtAuthenticatorBuilder) -> String {
    let error = builder
        .build(Arc::new(MemoryTenantStore::new()), catalog())
        .expect_err("an error");
    error.path().to_owned()
}

fn good() -> JwtAuthenticatorBuilder {
    JwtAuthenticator::builder()
        .issuer(ISSUER, all_keys())
        .audience(AUDIENCE)
}

#[test]
fn what_cannot_work_is_named() {
    let seconds = Duration::from_secs;
    let refresh = JwksRefresh::new();
    let bare = JwtAuthenticator::builder;
    for (path, builder) in [
        ("issuer", bare().audience(AUDIENCE)),
        ("issuer", good().issuer("", all_keys())),
        ("issuer", good().issuer(ISSUER, all_keys())),
        (
            "issuer",
            good().issuer_with_secret(ISSUER, SharedSecret::hs256([1; 32]).unwrap()),
        ),
        ("audience", bare().issuer(ISSUER, all_keys())),
        ("audience", good().audience("")),
        ("algorithms", good().algorithms([])),
        ("leeway", good().leeway(seconds(301))),
        ("max_bytes", good().max_bytes(0)),
        ("max_bytes", good().max_bytes(8_193)),
        ("capacity", good().capacity(0)),
        (
            "cache.max_waiting",
            good().cache(CacheSettings::new().max_waiting(0)),
        ),
        (
            "sandbox_plan",
            good().sandbox_plan(PlanName::new("gone").unwrap()),
        ),
        (
            "refresh.deadline",
            good().refresh(refresh.deadline(seconds(0))),
        ),
        (
            "refresh.min_interval",
            good().refresh(refresh.min_interval(seconds(0))),
        ),
        (
            "refresh.min_interval",
            good().refresh(refresh.min_interval(seconds(301))),
        ),
        (
            "refresh.min_interval",
            good().refresh(refresh.max_age(seconds(19))),
        ),
    ] {
        assert_eq!(wrong(builder), path);
    }
    assert!(
        good()
            .any_audience()
            .audience("again")
            .build(Arc::new(MemoryTenantStore::new()), catalog())
            .is_ok()
    );
}

#[test]
fn the_gate_names_it_too() {
    let builder = JwtAuthenticator::builder().issuer(ISSUER, all_keys());
    let gate = Tollgate::builder().plans([Plan::new("free")]).jwt(builder);
    assert_eq!(gate.build().unwrap_err().path(), "jwt.audience");
}

#[test]
fn a_short_secret_is_refused() {
    for (n_bytes, secret) in [
        (32, SharedSecret::hs256 as fn(Vec<u8>) -> _),
        (48, SharedSecret::hs384),
        (64, SharedSecret::hs512),
    ] {
        assert!(secret(vec![1; n_bytes]).is_ok());
        assert_eq!(secret(vec![1; n_bytes - 1]).unwrap_err().path(), "secret");
    }
}

#[test]
fn nothing_shows_a_secret_or_a_key() {
    let secret = SharedSecret::hs256(b"canary-canary-canary-canary-canary").unwrap();
    let builder = good().issuer_with_secret("https://old.example/", secret.clone());
    let shown = format!("{secret:?} {builder:?}");
    let auth = builder
        .build(Arc::new(MemoryTenantStore::new()), catalog())
        .unwrap();
    let shown = format!("{shown} {auth:?}");
    assert!(
        !shown.contains("canary") && !shown.contains("99, 97"),
        "{shown}"
    );
}

#[test]
fn a_document_is_read_with_what_it_has_of_use() {
    let text = document([
        json!({"kty": "new"}),
        P256.jwk(),
        json!(7),
        json!({"kty": "EC"}),
    ]);
    let keys = Jwks::from_json(text).unwrap();
    assert_eq!(keys.n_keys(), 1);
    assert_eq!(keys.key_ids().collect::<Vec<_>>(), ["p256"]);
    let more = json!({"keys": [P256.jwk()], "issued": "today"}).to_string();
    assert!(StaticJwks::from_json(more).is_ok());
    for (text, fits) in [
        ("{}", false),
        ("", false),
        ("[]", false),
        ("{\"keys\":1}", false),
        ("{\"keys\":null}", false),
    ] {
        let error = Jwks::from_json(text).unwrap_err();
        assert_eq!(!matches!(error, JwksError::Malformed(_)), fits, "{text}");
    }
    let none = Jwks::from_json(document([json!({"kty": "oct", "k": "AA"})]));
    assert!(matches!(none, Err(JwksError::NoKeys)));
    let many = Jwks::from_json(document((0..101).map(|_| P256.jwk())));
    assert!(matches!(many, Err(JwksError::TooManyKeys)));
    assert!(Jwks::from_json(document((0..100).map(|_| P256.jwk()))).is_ok());
}
