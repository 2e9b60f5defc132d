use std::{sync::Arc, time::Duration};

use tollgate::{
    auth::{AuthRefusal, KeyFormat, KeyHasher, Pepper},
    clock::{Clock, ManualClock},
    id::Environment,
    identity::{Attempt, CacheSettings, KeyAuthenticator, Keys, NewKey},
};

use super::fake::{Mood, answer, attempt, catalog, far, far_with, invented, plan};

#[tokio::test]
async fn a_thousand_requests_for_a_key_not_seen_before_ask_the_store_once() {
    let far = Arc::new(far());
    let key = far.issue().await;
    far.keys.behaviour.becomes(Mood::WaitAfterReading);
    let requests: Vec<_> = (0..1_000)
        .map(|_| {
            let (far, key) = (Arc::clone(&far), key.clone());
            tokio::spawn(async move { far.ask(&key).await })
        })
        .collect();
    far.keys.behaviour.asked(1).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    far.keys.behaviour.permits.add_permits(1_000);
    for request in requests {
        let identity = request.await.unwrap().unwrap();
        assert_eq!(identity.tenant().id().as_str(), "acme");
    }
    assert_eq!(far.keys.behaviour.n_asked(), 1);
    assert_eq!(far.tenants.behaviour.n_asked(), 1);
}

#[tokio::test]
async fn a_key_seen_before_is_answered_without_a_trip_or_a_future() {
    let far = far();
    let key = far.issue().await;
    assert!(far.ask_now(&key).is_none(), "the first time takes a trip");
    let first = far.ask(&key).await.unwrap();
    let second = far.ask_now(&key).unwrap().unwrap();
    assert!(Arc::ptr_eq(first.limits(), second.limits()));
    assert_eq!(far.keys.behaviour.n_asked(), 1);
}

#[tokio::test]
async fn after_its_lifetime_an_entry_is_fetched_again_and_keeps_its_identity() {
    let far = far();
    let key = far.issue().await;
    let first = far.ask(&key).await.unwrap();
    far.advance(9);
    assert!(far.ask_now(&key).is_some());
    far.advance(1);
    assert!(far.ask_now(&key).is_none());
    let again = far.ask(&key).await.unwrap();
    assert_eq!(far.keys.behaviour.n_asked(), 2);
    assert!(
        Arc::ptr_eq(first.limits(), again.limits()),
        "the counts are found as before"
    );
}

#[tokio::test]
async fn with_stores_in_memory_even_the_first_request_needs_no_trip() {
    let (keys, tenants) = memory_stores();
    let clock = ManualClock::default();
    let admin = Keys::new(
        Arc::clone(&keys) as _,
        Arc::clone(&tenants) as _,
        catalog(),
        Arc::new(clock.clone()),
    );
    let auth = KeyAuthenticator::builder(keys, tenants, catalog())
        .build()
        .unwrap();
    let issued = admin
        .issue(NewKey::for_tenant("acme").plan("free"))
        .await
        .unwrap();
    let first = attempt(&auth, issued.key.expose(), clock.now());
    assert!(matches!(first, Attempt::Done(Ok(_))), "{first:?}");
    let unknown = attempt(&auth, &invented(), clock.now());
    assert!(matches!(unknown, Attempt::Done(Err(AuthRefusal::Unknown))));
    assert_eq!(auth.n_cached(), (1, 0));
}

fn memory_stores() -> (
    Arc<tollgate::auth::MemoryKeyStore>,
    Arc<tollgate::tenant::MemoryTenantStore>,
) {
    Default::default()
}

#[tokio::test]
async fn while_the_store_fails_a_key_seen_to_work_is_served_and_no_other() {
    let far = far();
    let (seen, unseen) = (far.issue().await, far.issue().await);
    far.ask(&seen).await.unwrap();
    far.keys.behaviour.becomes(Mood::Fail);
    far.advance(15);
    far.ask(&seen).await.unwrap();
    let n_asked = far.keys.behaviour.n_asked();
    assert!(
        far.ask_now(&seen).is_some(),
        "served at once while the store has a rest"
    );
    assert_eq!(
        far.ask(&unseen).await.unwrap_err(),
        AuthRefusal::StoreUnavailable
    );
    assert_eq!(
        far.ask(&invented()).await.unwrap_err(),
        AuthRefusal::StoreUnavailable
    );
    far.advance(1);
    far.ask(&seen).await.unwrap();
    assert_eq!(
        far.keys.behaviour.n_asked(),
        n_asked + 3,
        "asked again after a second"
    );
    far.advance(53);
    far.ask(&seen).await.unwrap();
    far.advance(1);
    let refusal = far.ask(&seen).await.unwrap_err();
    assert_eq!(
        refusal,
        AuthRefusal::StoreUnavailable,
        "70 seconds after it was seen"
    );
    far.keys.behaviour.becomes(Mood::Answer);
    far.ask(&seen).await.unwrap();
}

#[tokio::test]
async fn while_the_tenant_store_fails_a_tenant_seen_before_is_served() {
    let far = far();
    let (seen, unseen) = (
        far.issue().await,
        far.issue_as(NewKey::for_tenant("other").plan("free")).await,
    );
    far.ask(&seen).await.unwrap();
    far.tenants.behaviour.becomes(Mood::Fail);
    far.advance(15);
    far.ask(&seen).await.unwrap();
    assert_eq!(
        far.ask(&unseen).await.unwrap_err(),
        AuthRefusal::StoreUnavailable
    );
    far.advance(60);
    assert_eq!(
        far.ask(&seen).await.unwrap_err(),
        AuthRefusal::StoreUnavailable
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_given_up_after_its_deadline() {
    let far = far();
    let key = far.issue().await;
    far.keys.behaviour.becomes(Mood::Hang);
    let before = tokio::time::Instant::now();
    assert_eq!(
        far.ask(&key).await.unwrap_err(),
        AuthRefusal::StoreUnavailable
    );
    assert_eq!(before.elapsed(), Duration::from_secs(1));
    far.keys.behaviour.becomes(Mood::Answer);
    far.tenants.behaviour.becomes(Mood::Hang);
    assert_eq!(
        far.ask(&key).await.unwrap_err(),
        AuthRefusal::StoreUnavailable
    );
    far.tenants.behaviour.becomes(Mood::Answer);
    far.ask(&key).await.unwrap();
}

#[tokio::test]
async fn the_others_wait_on_when_the_first_request_is_given_up() {
    let far = Arc::new(far());
    let key = far.issue().await;
    far.keys.behaviour.becomes(Mood::WaitAfterReading);
    let ask = || {
        let (far, key) = (Arc::clone(&far), key.clone());
        tokio::spawn(async move { far.ask(&key).await })
    };
    let first = ask();
    far.keys.behaviour.asked(1).await;
    let second = ask();
    tokio::task::yield_now().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    far.keys.behaviour.permits.add_permits(1);
    second.await.unwrap().unwrap();
    assert_eq!(far.keys.behaviour.n_asked(), 1);
}

#[tokio::test]
async fn a_store_that_panics_strands_nobody() {
    let far = far();
    let key = far.issue().await;
    far.keys.behaviour.becomes(Mood::Panic);
    assert_eq!(
        far.ask(&key).await.unwrap_err(),
        AuthRefusal::StoreUnavailable
    );
    far.keys.behaviour.becomes(Mood::Answer);
    far.ask(&key).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn only_so_many_requests_wait_for_a_store() {
    let far = Arc::new(far_with(CacheSettings::new().max_waiting(10)));
    let key = far.issue().await;
    far.keys.behaviour.becomes(Mood::Hang);
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let (far, key) = (Arc::clone(&far), key.clone());
            tokio::spawn(async move { far.ask(&key).await })
        })
        .collect();
    far.keys.behaviour.asked(1).await;
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    let before = tokio::time::Instant::now();
    assert_eq!(
        far.ask(&key).await.unwrap_err(),
        AuthRefusal::StoreUnavailable
    );
    assert_eq!(
        before.elapsed(),
        Duration::ZERO,
        "turned away, not timed out"
    );
    for request in waiting {
        request.await.unwrap().unwrap_err();
    }
    far.keys.behaviour.becomes(Mood::Answer);
    far.ask(&key).await.unwrap();
}

#[tokio::test]
async fn invented_keys_are_bounded_and_displace_no_working_key() {
    let settings = CacheSettings::new().capacity(1_000);
    let far = far_with(settings);
    let mut good = Vec::new();
    for n in 0..100 {
        let key = far
            .issue_as(NewKey::for_tenant(format!("t{n}")).plan("free"))
            .await;
        far.ask(&key).await.unwrap();
        good.push(key);
    }
    for _ in 0..100_000 {
        let refusal = far.ask(&invented()).await.unwrap_err();
        assert_eq!(refusal, AuthRefusal::Unknown);
    }
    let (n_working, n_refused) = far.auth.n_cached();
    assert_eq!(n_working, 100);
    assert!(n_refused <= 10_000, "{n_refused}");
    assert!(
        good.iter()
            .all(|key| far.ask_now(key).is_some_and(|result| result.is_ok()))
    );
}

#[tokio::test]
async fn a_key_that_does_not_work_is_remembered_for_a_short_time() {
    let far = far();
    let key = invented();
    assert_eq!(far.ask(&key).await.unwrap_err(), AuthRefusal::Unknown);
    far.advance(4);
    assert_eq!(
        far.ask_now(&key).unwrap().unwrap_err(),
        AuthRefusal::Unknown
    );
    assert_eq!(far.keys.behaviour.n_asked(), 1);
    far.advance(1);
    assert!(far.ask_now(&key).is_none());
}

#[tokio::test]
async fn a_key_with_a_wrong_checksum_never_reaches_the_store() {
    let far = far();
    let key = far.issue().await;
    for place in [8, 20, key.len() - 1] {
        let mut wrong = key.clone().into_bytes();
        wrong[place] = if wrong[place] == b'x' { b'y' } else { b'x' };
        let wrong = String::from_utf8(wrong).unwrap();
        let attempt = attempt(&far.auth, &wrong, far.now());
        assert!(matches!(attempt, Attempt::NotMine), "{attempt:?}");
    }
    assert_eq!(far.keys.behaviour.n_asked(), 0);
}

#[tokio::test]
async fn expiry_is_checked_on_every_hit() {
    let far = far();
    let new = NewKey::for_tenant("acme").plan("free");
    let key = far.issue_as(new.expires_in(Duration::from_secs(5))).await;
    far.ask(&key).await.unwrap();
    far.advance(4);
    far.ask_now(&key).unwrap().unwrap();
    far.advance(1);
    assert_eq!(
        far.ask_now(&key).unwrap().unwrap_err(),
        AuthRefusal::Expired
    );
    far.advance(10);
    assert_eq!(far.ask(&key).await.unwrap_err(), AuthRefusal::Expired);
}

#[tokio::test]
async fn a_key_of_another_environment_is_refused_by_its_text_or_else_by_its_record() {
    let far = far();
    let only = |format: KeyFormat| {
        let (keys, tenants) = (Arc::clone(&far.keys), Arc::clone(&far.tenants));
        let builder = KeyAuthenticator::builder(keys, tenants, catalog());
        builder
            .format(format)
            .only(Environment::Live)
            .build()
            .unwrap()
    };
    let new = NewKey::for_tenant("acme").plan("free");
    let live = far.issue_as(new.clone()).await;
    let test = far
        .issue_as(new.clone().environment(Environment::Test))
        .await;
    let with_text = only(KeyFormat::default());
    let refusal = answer(&with_text, &test, far.now()).await.unwrap_err();
    assert_eq!(refusal, AuthRefusal::WrongEnvironment);
    assert_eq!(far.keys.behaviour.n_asked(), 0, "the text tells");
    answer(&with_text, &live, far.now()).await.unwrap();
    // Keys of this form do not tell their environment.
    let without_text = only(KeyFormat::opaque());
    let refusal = answer(&without_text, &test, far.now()).await.unwrap_err();
    assert_eq!(refusal, AuthRefusal::WrongEnvironment);
    answer(&without_text, &live, far.now()).await.unwrap();
}

#[tokio::test]
async fn many_keys_of_one_tenant_ask_for_the_tenant_once() {
    let far = Arc::new(far());
    let mut keys = Vec::new();
    for _ in 0..20 {
        keys.push(far.issue().await);
    }
    far.tenants.behaviour.becomes(Mood::WaitAfterReading);
    let requests: Vec<_> = keys
        .into_iter()
        .map(|key| {
            let far = Arc::clone(&far);
            tokio::spawn(async move { far.ask(&key).await })
        })
        .collect();
    far.keys.behaviour.asked(20).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    far.tenants.behaviour.permits.add_permits(20);
    for request in requests {
        request.await.unwrap().unwrap();
    }
    assert_eq!(far.tenants.behaviour.n_asked(), 1);
}

#[tokio::test]
async fn a_test_key_is_governed_by_the_sandbox_plan_unless_it_has_its_own() {
    let (keys, tenants) = memory_stores();
    let clock = ManualClock::default();
    let admin = Keys::new(
        Arc::clone(&keys) as _,
        Arc::clone(&tenants) as _,
        catalog(),
        Arc::new(clock.clone()),
    );
    let builder = KeyAuthenticator::builder(keys, tenants, catalog());
    let auth = builder.sandbox_plan(plan("free")).build().unwrap();
    let of = |new: NewKey| {
        let (admin, auth, now) = (admin.clone(), auth.clone(), clock.now());
        async move {
            let issued = admin.issue(new).await.unwrap();
            let identity = answer(&auth, issued.key.expose(), now).await.unwrap();
            identity.plan().name().as_str().to_owned()
        }
    };
    let live = NewKey::for_tenant("acme").plan("pro");
    let test = live.clone().environment(Environment::Test);
    assert_eq!(of(live).await, "pro");
    assert_eq!(of(test.clone()).await, "free");
    assert_eq!(of(test.plan_override("pro")).await, "pro");
}

#[tokio::test]
async fn a_key_digested_under_an_older_pepper_still_works() {
    let (keys, tenants) = memory_stores();
    let clock = ManualClock::default();
    let pepper = |text: &str| Pepper::new(text).unwrap();
    let old = KeyHasher::hmac(pepper("the pepper of last year"));
    let admin = Keys::new(
        Arc::clone(&keys) as _,
        Arc::clone(&tenants) as _,
        catalog(),
        Arc::new(clock.clone()),
    );
    let issued = admin
        .hasher(old)
        .issue(NewKey::for_tenant("acme").plan("free"))
        .await
        .unwrap();
    let new = KeyHasher::hmac(pepper("the pepper of this year"));
    let with = |hasher: KeyHasher| {
        KeyAuthenticator::builder(Arc::clone(&keys) as _, Arc::clone(&tenants) as _, catalog())
            .hasher(hasher)
            .build()
            .unwrap()
    };
    let key = issued.key.expose();
    let strict = with(new.clone());
    assert_eq!(
        answer(&strict, key, clock.now()).await.unwrap_err(),
        AuthRefusal::Unknown
    );
    let lenient = with(new.accept_old(pepper("the pepper of last year")));
    for _ in 0..2 {
        answer(&lenient, key, clock.now()).await.unwrap();
    }
}

#[test]
fn a_setting_that_cannot_work_is_refused_by_its_name() {
    let path = |settings: CacheSettings| {
        let (keys, tenants) = memory_stores();
        let builder = KeyAuthenticator::builder(keys, tenants, catalog());
        builder
            .cache(settings)
            .build()
            .unwrap_err()
            .path()
            .to_owned()
    };
    let settings = CacheSettings::new();
    assert_eq!(path(settings.capacity(0)), "cache.capacity");
    assert_eq!(
        path(settings.negative_capacity(0)),
        "cache.negative_capacity"
    );
    assert_eq!(path(settings.max_waiting(0)), "cache.max_waiting");
    assert_eq!(
        path(settings.store_deadline(Duration::ZERO)),
        "cache.store_deadline"
    );
    let (keys, tenants) = memory_stores();
    let builder = KeyAuthenticator::builder(keys, tenants, catalog());
    let error = builder.sandbox_plan(plan("sandbox")).build().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("sandbox_plan: the catalog has no plan `sandbox`")
    );
}
