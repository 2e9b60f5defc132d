//! What is remembered of tokens, and what ends it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use serde_json::json;
use tollgate::{
    auth::{AuthRefusal, jwt::Claims},
    id::{Environment, PlanName},
    identity::{Attempt, CacheSettings, ClaimMapping, ClaimsToIdentity, JwtAuthenticator},
    plan::Plan,
    tenant::{AccessState, TenantRecord, TenantStore},
};

use super::{
    signer::P256,
    stand::{AUDIENCE, ISSUER, all_keys, claims, stand, stand_with, with},
};
use crate::{
    common::far_stores::{FarTenants, Mood},
    identity::fake::{answer, attempt, catalog, tenant},
};

#[test]
fn a_token_seen_before_is_the_same_identity_and_is_mapped_once() {
    let n_mapped = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&n_mapped);
    let stand = stand_with(|builder| {
        builder.claims(move |claims: &Claims| {
            count.fetch_add(1, Ordering::Relaxed);
            ClaimMapping::new().token_grant(claims)
        })
    });
    let token = P256.token(&stand.claims());
    let first = stand.ask(&token).unwrap();
    let again = stand.ask(&token).unwrap();
    assert!(Arc::ptr_eq(first.limits(), again.limits()));
    assert_eq!(n_mapped.load(Ordering::Relaxed), 1);
    assert_eq!(stand.auth.n_cached(), 1);
}

#[test]
fn a_remembered_token_ends_with_its_time_and_counts_when_the_clock_is_set_back() {
    let stand = stand();
    let token = P256.token(&stand.claims());
    assert!(stand.ask(&token).is_ok());
    stand.advance(359);
    assert!(stand.ask(&token).is_ok());
    stand.advance(1);
    assert_eq!(stand.refusal(&token), AuthRefusal::Expired);
    assert_eq!(stand.auth.n_cached(), 0);
    assert_eq!(stand.refusal(&token), AuthRefusal::Expired);
    // The wall clock is the judge of a token's times.
    let begin = tollgate::clock::ManualClock::default();
    stand
        .clock
        .set_wall(tollgate::clock::Clock::now(&begin).wall());
    assert!(stand.ask(&token).is_ok());
}

#[test]
fn refused_tokens_are_not_remembered_and_the_rest_is_bounded() {
    let stand = stand_with(|builder| builder.capacity(100));
    for n in 0..1_000 {
        let good = P256.token(&with(stand.claims(), "jti", n.into()));
        assert!(stand.ask(&good).is_ok());
    }
    let n_cached = stand.auth.n_cached();
    assert!((50..=110).contains(&n_cached), "{n_cached}");
    let empty = stand_with(|builder| builder);
    for n in 0..100 {
        let bad = P256.token(&with(
            with(empty.claims(), "aud", "x".into()),
            "jti",
            n.into(),
        ));
        assert!(empty.ask(&bad).is_err());
    }
    assert_eq!(empty.auth.n_cached(), 0);
}

#[tokio::test]
async fn a_changed_tenant_is_seen_by_the_next_call() {
    let stand = stand();
    let token = P256.token(&stand.claims());
    let access = || stand.ask(&token).unwrap().tenant().access();
    assert_eq!(access(), AccessState::Active);
    let tenants = stand.tenants();
    let suspended = AccessState::Suspended;
    tenants
        .set_access(&tenant("acme"), suspended)
        .await
        .unwrap();
    assert_eq!(access(), suspended);
    let pro = PlanName::new("pro").unwrap();
    tenants.set_plan(&tenant("acme"), &pro).await.unwrap();
    assert_eq!(stand.ask(&token).unwrap().plan().name().as_str(), "pro");
}

#[test]
fn an_edited_plan_is_seen_by_the_next_call() {
    let stand = stand();
    let token = P256.token(&stand.claims());
    assert!(
        !stand
            .ask(&token)
            .unwrap()
            .plan()
            .entitlements()
            .has_feature("new")
    );
    stand
        .catalog
        .replace([Plan::new("free").feature("new"), Plan::new("pro")])
        .unwrap();
    assert!(
        stand
            .ask(&token)
            .unwrap()
            .plan()
            .entitlements()
            .has_feature("new")
    );
    stand.catalog.replace([Plan::new("pro")]).unwrap();
    assert_eq!(stand.refusal(&token), AuthRefusal::PlanUnknown);
}

#[tokio::test]
async fn a_tenant_that_nobody_created_is_refused_and_works_once_it_exists() {
    let stand = stand();
    let token = P256.token(&with(stand.claims(), "tenant", json!("later")));
    assert_eq!(stand.refusal(&token), AuthRefusal::TenantUnknown);
    let record = TenantRecord::new(tenant("later"), PlanName::new("free").unwrap());
    stand.tenants.create(record).await.unwrap();
    assert!(stand.ask(&token).is_ok());
}

#[test]
fn test_tokens_are_under_the_sandbox_plan_or_not_served() {
    let mapping = || ClaimMapping::new().environment("env");
    let stand = stand_with(|builder| {
        builder
            .claims(mapping())
            .sandbox_plan(PlanName::new("pro").unwrap())
    });
    let test = P256.token(&with(stand.claims(), "env", json!("test")));
    let identity = stand.ask(&test).unwrap();
    assert_eq!(identity.environment(), Environment::Test);
    assert_eq!(identity.plan().name().as_str(), "pro");
    let live = stand_with(|builder| builder.claims(mapping()).only(Environment::Live));
    assert_eq!(live.refusal(&test), AuthRefusal::WrongEnvironment);
    assert!(live.ask(&P256.token(&live.claims())).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_tenant_store_behind_a_trip_is_asked_once_and_survived_when_it_fails() {
    let tenants = FarTenants::far();
    let record = TenantRecord::new(tenant("acme"), PlanName::new("free").unwrap());
    tenants.create(record).await.unwrap();
    let store = Arc::clone(&tenants) as Arc<dyn TenantStore>;
    let auth = JwtAuthenticator::builder()
        .issuer(ISSUER, all_keys())
        .audience(AUDIENCE)
        .cache(CacheSettings::new())
        .build(store, catalog())
        .unwrap();
    let clock = tollgate::clock::ManualClock::default();
    let now = || tollgate::clock::Clock::now(&clock);
    let seconds = std::time::Duration::from_secs;
    let token = P256.token(&with(claims(now()), "exp", json!(9_999_999_999_u64)));
    // The middle of the signature: the last character may hold bits that are no part of it.
    let (start, end) = token.split_at(token.len() - 20);
    let other = if end.starts_with('A') { "B" } else { "A" };
    let forged = format!("{start}{other}{}", &end[1..]);
    assert!(matches!(
        attempt(&auth, &forged, now()),
        Attempt::Done(Err(AuthRefusal::BadSignature | AuthRefusal::Malformed))
    ));
    assert_eq!(tenants.behaviour.n_asked(), 0, "a forged token asks nobody");
    let (one, two) = tokio::join!(answer(&auth, &token, now()), answer(&auth, &token, now()));
    assert!(one.is_ok() && two.is_ok());
    assert_eq!(tenants.behaviour.n_asked(), 1);
    assert!(matches!(
        attempt(&auth, &token, now()),
        Attempt::Done(Ok(_))
    ));
    for mood in [Mood::Fail, Mood::Hang] {
        tenants.behaviour.becomes(mood);
        clock.advance(seconds(10));
        assert!(answer(&auth, &token, now()).await.is_ok(), "{mood:?}");
    }
    clock.advance(seconds(70));
    let gone = answer(&auth, &token, now()).await;
    assert_eq!(gone.unwrap_err(), AuthRefusal::StoreUnavailable);
    tenants.behaviour.becomes(Mood::Answer);
    assert!(answer(&auth, &token, now()).await.is_ok());
}
