//! From claims to a tenant and what it may do.

use serde_json::{Value, json};
use tollgate::{
    auth::{AuthRefusal, jwt::Claims},
    clock::Timestamp,
    id::{KeyId, TenantId},
    identity::{ClaimMapping, Grant, TokenGrant},
};

use super::{
    signer::P256,
    stand::{stand, stand_with, with},
};

#[test]
fn the_default_reads_tenant_scopes_and_client() {
    let stand = stand();
    let identity = stand.ask(&P256.token(&stand.claims())).unwrap();
    assert_eq!(identity.tenant().id().as_str(), "acme");
    assert_eq!(identity.plan().name().as_str(), "free");
    assert_eq!(identity.key().unwrap().as_str(), "app-1");
    assert!(identity.has_scope("read") && identity.has_scope("write"));
    assert!(!identity.has_scope("read write"));
    let end = stand.now().wall().as_unix_seconds() + 300;
    assert_eq!(
        identity.expires_at(),
        Some(Timestamp::from_unix_seconds(end))
    );
}

#[test]
fn the_key_id_is_the_first_claim_that_is_there() {
    let stand = stand();
    let key = |claims: Value| {
        let identity = stand.ask(&P256.token(&claims)).unwrap();
        identity.key().map(|id| id.as_str().to_owned())
    };
    let claims = with(stand.claims(), "azp", json!("app-2"));
    assert_eq!(key(claims.clone()).as_deref(), Some("app-1"));
    let claims = with(claims, "client_id", json!(null));
    assert_eq!(key(claims.clone()).as_deref(), Some("app-2"));
    let claims = with(claims, "azp", json!(null));
    assert_eq!(key(claims.clone()).as_deref(), Some("user-1"));
    assert_eq!(key(with(claims.clone(), "sub", json!(null))), None);
    assert_eq!(key(with(claims, "sub", json!("a\nforged line"))), None);
}

#[test]
fn a_token_that_names_no_tenant_is_refused() {
    let stand = stand();
    for name in [
        json!(null),
        json!(""),
        json!("a\nb"),
        json!("x".repeat(300)),
    ] {
        let token = P256.token(&with(stand.claims(), "tenant", name.clone()));
        assert_eq!(stand.refusal(&token), AuthRefusal::TenantUnknown, "{name}");
    }
    for name in [json!(7), json!(["acme"]), json!({"id": "acme"})] {
        let token = P256.token(&with(stand.claims(), "tenant", name.clone()));
        assert_eq!(stand.refusal(&token), AuthRefusal::Malformed, "{name}");
    }
}

#[test]
fn each_claim_can_have_another_name() {
    let stand = stand_with(|builder| {
        let mapping = ClaimMapping::new()
            .tenant("org_id")
            .plan("tier")
            .environment("env")
            .key(["jti"]);
        builder.claims(mapping)
    });
    let claims = with(stand.claims(), "org_id", json!("globex"));
    let claims = with(claims, "jti", json!("t-1"));
    let ask = |claims: &Value| stand.ask(&P256.token(claims));
    let identity = ask(&claims).unwrap();
    assert_eq!(identity.tenant().id().as_str(), "globex");
    assert_eq!(identity.plan().name().as_str(), "pro");
    assert_eq!(identity.key().unwrap().as_str(), "t-1");
    let own = with(claims.clone(), "tier", json!("free"));
    assert_eq!(ask(&own).unwrap().plan().name().as_str(), "free");
    let unknown = with(claims.clone(), "tier", json!("gone"));
    assert_eq!(ask(&unknown).unwrap_err(), AuthRefusal::PlanUnknown);
    for (name, value) in [
        ("tier", json!(1)),
        ("env", json!("prod")),
        ("env", json!(1)),
    ] {
        let wrong = with(claims.clone(), name, value);
        assert_eq!(ask(&wrong).unwrap_err(), AuthRefusal::Malformed, "{name}");
    }
}

#[test]
fn a_closure_decides_and_may_end_a_token_sooner_but_not_later() {
    let stand = stand_with(|builder| {
        builder.claims(|claims: &Claims| {
            let organisation = claims.get("org").and_then(|org| org.get("id"));
            let id = organisation.and_then(Value::as_str);
            let tenant =
                TenantId::new(id.unwrap_or_default()).map_err(|_| AuthRefusal::TenantUnknown)?;
            let mut grant = Grant::default();
            grant.key = KeyId::new(claims.issuer()).ok();
            let days = claims.get("days").and_then(Value::as_u64).unwrap_or(0);
            grant.expires_at = Some(Timestamp::from_unix_seconds(days * 86_400));
            Ok(TokenGrant::new(tenant, grant))
        })
    });
    let today = stand.now().wall().as_unix_seconds() / 86_400;
    let claims = |days: u64| {
        let claims = with(stand.claims(), "org", json!({"id": "globex"}));
        P256.token(&with(claims, "days", json!(days)))
    };
    let identity = stand.ask(&claims(today + 1)).unwrap();
    assert_eq!(identity.tenant().id().as_str(), "globex");
    assert_eq!(identity.key().unwrap().as_str(), "https://idp.example/");
    let end = stand.now().wall().as_unix_seconds() + 300;
    assert_eq!(
        identity.expires_at(),
        Some(Timestamp::from_unix_seconds(end)),
        "not later than the token"
    );
    assert_eq!(stand.refusal(&claims(today)), AuthRefusal::Expired);
    assert_eq!(
        stand.refusal(&P256.token(&stand.claims())),
        AuthRefusal::TenantUnknown
    );
}
