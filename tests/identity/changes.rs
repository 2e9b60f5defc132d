use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tollgate::{
    auth::{AuthRefusal, KeyHasher, KeyStore},
    clock::{Clock, Timestamp},
    identity::{CacheSettings, NewKey, Tenants},
    plan::Plan,
    tenant::AccessState,
};

use super::fake::{Mood, answer, far, far_with, near, plan, tenant};

#[tokio::test]
async fn a_revoked_key_is_refused_by_the_next_request() {
    let far = far();
    let key = far.issue().await;
    far.ask(&key).await.unwrap();
    far.admin.revoke(&far.id_of(&key).await).await.unwrap();
    assert_eq!(far.ask(&key).await.unwrap_err(), AuthRefusal::Revoked);
    assert_eq!(
        far.ask_now(&key).unwrap().unwrap_err(),
        AuthRefusal::Revoked
    );
}

#[tokio::test]
async fn without_an_announcement_a_revocation_is_seen_when_the_entry_ends() {
    let far = far();
    let key = far.issue().await;
    far.ask(&key).await.unwrap();
    far.keys.fall_silent();
    far.admin.revoke(&far.id_of(&key).await).await.unwrap();
    far.advance(9);
    far.ask(&key).await.unwrap();
    far.advance(1);
    assert_eq!(far.ask(&key).await.unwrap_err(), AuthRefusal::Revoked);
}

#[tokio::test]
async fn a_key_seen_to_be_revoked_is_never_served_stale() {
    let far = far();
    let key = far.issue().await;
    far.ask(&key).await.unwrap();
    far.keys.fall_silent();
    far.admin.revoke(&far.id_of(&key).await).await.unwrap();
    far.advance(10);
    assert_eq!(far.ask(&key).await.unwrap_err(), AuthRefusal::Revoked);
    far.keys.behaviour.becomes(Mood::Fail);
    assert_eq!(far.ask(&key).await.unwrap_err(), AuthRefusal::Revoked);
    far.advance(6);
    assert_eq!(
        far.ask(&key).await.unwrap_err(),
        AuthRefusal::StoreUnavailable
    );
}

#[tokio::test]
async fn a_key_announced_as_changed_is_not_served_stale_while_the_store_fails() {
    let far = far();
    let key = far.issue().await;
    far.ask(&key).await.unwrap();
    far.keys.behaviour.becomes(Mood::Fail);
    far.admin.revoke(&far.id_of(&key).await).await.unwrap();
    assert_eq!(
        far.ask(&key).await.unwrap_err(),
        AuthRefusal::StoreUnavailable
    );
}

/// The fetch has read the old record when the key is revoked; what it brings must not be kept.
#[tokio::test]
async fn a_fetch_that_began_before_a_revocation_is_not_kept_after_it() {
    let far = Arc::new(far());
    let key = far.issue().await;
    let id = far.id_of(&key).await;
    far.keys.behaviour.becomes(Mood::WaitAfterReading);
    let early = {
        let (far, key) = (Arc::clone(&far), key.clone());
        tokio::spawn(async move { far.ask(&key).await })
    };
    far.keys.behaviour.asked(1).await;
    far.admin.revoke(&id).await.unwrap();
    far.keys.behaviour.becomes(Mood::Answer);
    // Who asks after the revocation does not wait for the fetch that began before it.
    assert_eq!(far.ask(&key).await.unwrap_err(), AuthRefusal::Revoked);
    far.keys.behaviour.permits.add_permits(1);
    assert_eq!(early.await.unwrap().unwrap_err(), AuthRefusal::Revoked);
    assert_eq!(far.ask(&key).await.unwrap_err(), AuthRefusal::Revoked);
    assert_eq!(far.auth.n_cached().0, 0);
}

#[tokio::test]
async fn a_replica_that_lags_behind_does_not_bring_a_revoked_key_back() {
    let far = far();
    let key = far.issue().await;
    far.keys.freeze(&KeyHasher::sha256().digest(&key)).await;
    far.admin.revoke(&far.id_of(&key).await).await.unwrap();
    far.keys.behaviour.becomes(Mood::Lag);
    assert_eq!(
        far.ask(&key).await.unwrap_err(),
        AuthRefusal::StoreUnavailable
    );
    far.advance(69);
    assert_eq!(
        far.ask(&key).await.unwrap_err(),
        AuthRefusal::StoreUnavailable
    );
    far.keys.behaviour.becomes(Mood::Answer);
    assert_eq!(far.ask(&key).await.unwrap_err(), AuthRefusal::Revoked);
}

#[tokio::test]
async fn when_announcements_may_have_been_missed_everything_is_asked_again() {
    let far = far();
    let key = far.issue().await;
    far.ask(&key).await.unwrap();
    far.keys.fall_silent();
    far.admin.revoke(&far.id_of(&key).await).await.unwrap();
    far.ask_now(&key).unwrap().unwrap();
    far.keys.tell_lost();
    assert_eq!(far.ask(&key).await.unwrap_err(), AuthRefusal::Revoked);
}

#[tokio::test]
async fn a_key_probed_before_it_was_issued_works_at_once() {
    let far = far();
    let imported = super::fake::invented();
    assert_eq!(far.ask(&imported).await.unwrap_err(), AuthRefusal::Unknown);
    far.import(&imported, "acme").await;
    far.ask(&imported).await.unwrap();
}

/// The store has been asked and knows no such key when the key is issued; that must not be remembered.
#[tokio::test]
async fn a_probe_that_began_before_a_key_was_issued_is_not_kept_after_it() {
    let far = Arc::new(far());
    let imported = super::fake::invented();
    far.keys.behaviour.becomes(Mood::WaitAfterReading);
    let probe = {
        let (far, key) = (Arc::clone(&far), imported.clone());
        tokio::spawn(async move { far.ask(&key).await })
    };
    far.keys.behaviour.asked(1).await;
    far.import(&imported, "acme").await;
    far.keys.behaviour.permits.add_permits(1);
    assert_eq!(probe.await.unwrap().unwrap_err(), AuthRefusal::Unknown);
    far.keys.behaviour.becomes(Mood::Answer);
    far.ask(&imported).await.unwrap();
}

#[tokio::test]
async fn an_edited_plan_takes_effect_on_the_next_call() {
    let far = far();
    let key = far.issue().await;
    assert!(!has_feature(&far.ask(&key).await.unwrap(), "beta"));
    let edited = [Plan::new("free").feature("beta"), Plan::new("pro")];
    far.catalog.replace(edited).unwrap();
    assert!(has_feature(&far.ask_now(&key).unwrap().unwrap(), "beta"));
    far.catalog.replace([Plan::new("pro")]).unwrap();
    assert_eq!(
        far.ask_now(&key).unwrap().unwrap_err(),
        AuthRefusal::PlanUnknown
    );
    far.catalog.replace([Plan::new("free")]).unwrap();
    far.ask_now(&key).unwrap().unwrap();
    assert_eq!(far.keys.behaviour.n_asked(), 1, "no trip for any of it");
}

fn has_feature(identity: &tollgate::identity::Identity, name: &str) -> bool {
    identity.plan().entitlements().has_feature(name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_are_swapped_while_traffic_flows() {
    let far = Arc::new(far());
    let key = far.issue().await;
    far.ask(&key).await.unwrap();
    let traffic: Vec<_> = (0..4)
        .map(|_| {
            let (far, key) = (Arc::clone(&far), key.clone());
            tokio::spawn(async move {
                let mut last = 0;
                for _ in 0..2_000 {
                    let identity = far.ask(&key).await.unwrap();
                    let edition = identity
                        .plan()
                        .entitlements()
                        .allowance("edition")
                        .unwrap_or(0);
                    assert!(edition >= last, "a later request saw an older plan");
                    last = edition;
                }
            })
        })
        .collect();
    for edition in 1..=200 {
        let plans = [
            Plan::new("free").allowance("edition", edition),
            Plan::new("pro"),
        ];
        far.catalog.replace(plans).unwrap();
        let identity = far.ask(&key).await.unwrap();
        let seen = identity.plan().entitlements().allowance("edition");
        assert_eq!(seen, Some(edition), "the next call sees the plan");
        tokio::task::yield_now().await;
    }
    for task in traffic {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_change_of_a_tenant_reaches_all_its_keys_and_nobody_elses() {
    let far = far();
    let new = NewKey::for_tenant("acme").plan("free");
    let mut keys = Vec::new();
    for _ in 0..20 {
        keys.push(far.issue_as(new.clone()).await);
    }
    let other = far.issue_as(NewKey::for_tenant("other").plan("free")).await;
    for key in keys.iter().chain([&other]) {
        far.ask(key).await.unwrap();
    }
    let n_asked = far.tenants.behaviour.n_asked();
    let tenants = Tenants::new(Arc::clone(&far.tenants) as _, far.catalog.clone());
    let acme = tenant("acme");
    tenants
        .set_access(&acme, AccessState::Suspended)
        .await
        .unwrap();
    tenants.set_plan(&acme, &plan("pro")).await.unwrap();
    let n_of_admin = 2;
    for key in &keys {
        let identity = far.ask(key).await.unwrap();
        assert_eq!(identity.tenant().access(), AccessState::Suspended);
        assert_eq!(identity.plan().name().as_str(), "pro");
    }
    let n_fetches = far.tenants.behaviour.n_asked() - n_asked - n_of_admin;
    assert_eq!(n_fetches, 1, "one fetch for all the tenant's keys");
    let other = far.ask_now(&other).unwrap().unwrap();
    assert_eq!(other.tenant().access(), AccessState::Active);
    assert_eq!(other.plan().name().as_str(), "free");
}

#[tokio::test]
async fn a_fetch_of_a_tenant_that_changes_meanwhile_is_repeated() {
    let far = Arc::new(far());
    let key = far.issue().await;
    let tenants = Tenants::new(Arc::clone(&far.tenants) as _, far.catalog.clone());
    far.tenants.behaviour.becomes(Mood::WaitAfterReading);
    let early = {
        let (far, key) = (Arc::clone(&far), key.clone());
        tokio::spawn(async move { far.ask(&key).await })
    };
    far.tenants.behaviour.asked(1).await;
    far.tenants.behaviour.becomes(Mood::Answer);
    let acme = tenant("acme");
    tenants
        .set_access(&acme, AccessState::Closed)
        .await
        .unwrap();
    far.tenants.behaviour.permits.add_permits(1);
    let identity = early.await.unwrap().unwrap();
    assert_eq!(identity.tenant().access(), AccessState::Closed);
}

/// Each fetch of the tenant is overtaken by a change, more often than one fetch is repeated.
#[tokio::test]
async fn a_tenant_that_changes_all_the_time_is_not_served_as_it_was() {
    let far = Arc::new(far());
    let key = far.issue().await;
    far.tenants.behaviour.becomes(Mood::WaitAfterReading);
    let request = {
        let (far, key) = (Arc::clone(&far), key.clone());
        tokio::spawn(async move { far.ask(&key).await })
    };
    for (n, access) in [
        (1, AccessState::Suspended),
        (2, AccessState::Active),
        (3, AccessState::Closed),
    ] {
        far.tenants.behaviour.asked(n).await;
        far.tenants.set_access_unseen(&tenant("acme"), access).await;
        if n == 3 {
            far.tenants.behaviour.becomes(Mood::Answer);
        }
        far.tenants.behaviour.permits.add_permits(1);
    }
    let identity = request.await.unwrap().unwrap();
    assert_eq!(identity.tenant().access(), AccessState::Closed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_that_call_at_the_same_time_never_cross() {
    // A cache too small for all of them, so that entries come and go all the time.
    let far = Arc::new(far_with(CacheSettings::new().capacity(8)));
    let mut keys = Vec::new();
    for n in 0..32 {
        let name = format!("tenant-{n}");
        keys.push((
            far.issue_as(NewKey::for_tenant(&name).plan("free")).await,
            name,
        ));
    }
    let keys = Arc::new(keys);
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let (far, keys) = (Arc::clone(&far), Arc::clone(&keys));
            tokio::spawn(async move {
                for n in 0..1_000 {
                    let (key, name) = &keys[(n * (task + 1) * 7 + task) % keys.len()];
                    let identity = far.ask(key).await.unwrap();
                    assert_eq!(identity.tenant().id().as_str(), name);
                    assert_eq!(identity.limits().owner().tenant.as_str(), name);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_key_whose_tenant_does_not_exist_works_when_the_tenant_does() {
    let far = far();
    let key = super::fake::invented();
    far.import_key(&key, "late").await;
    assert_eq!(far.ask(&key).await.unwrap_err(), AuthRefusal::TenantUnknown);
    far.create_tenant("late").await;
    assert_eq!(far.ask(&key).await.unwrap().tenant().id().as_str(), "late");
}

/// A request that begins after `set_access` has returned sees what it set, whatever was under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_that_begins_after_a_change_of_its_tenant_sees_the_old_one() {
    let far = Arc::new(far_with(CacheSettings::new().capacity(4)));
    let tenants = Tenants::new(Arc::clone(&far.tenants) as _, far.catalog.clone());
    let mut keys = Vec::new();
    for _ in 0..16 {
        keys.push(far.issue().await);
    }
    let keys = Arc::new(keys);
    for _ in 0..100 {
        let acme = tenant("acme");
        tenants
            .set_access(&acme, AccessState::Active)
            .await
            .unwrap();
        let suspended = Arc::new(AtomicBool::new(false));
        let requests: Vec<_> = (0..3)
            .map(|task| {
                let (far, keys) = (Arc::clone(&far), Arc::clone(&keys));
                let suspended = Arc::clone(&suspended);
                tokio::spawn(async move {
                    let mut n_seen = 0;
                    for n in 0.. {
                        let begins_after = suspended.load(Ordering::SeqCst);
                        let identity = far.ask(&keys[(n + task) % keys.len()]).await.unwrap();
                        let sees_it = identity.tenant().access() == AccessState::Suspended;
                        assert!(
                            !begins_after || sees_it,
                            "saw the old state after the change"
                        );
                        n_seen += u32::from(begins_after);
                        if n_seen == 3 {
                            break;
                        }
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        tokio::task::yield_now().await;
        tenants
            .set_access(&acme, AccessState::Suspended)
            .await
            .unwrap();
        suspended.store(true, Ordering::SeqCst);
        for request in requests {
            request.await.unwrap();
        }
    }
}

/// A request that begins after `revoke` has returned is never served, whatever was under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_that_begins_after_a_revocation_is_served() {
    let far = Arc::new(far());
    let near = Arc::new(near());
    let auths = [far.auth.clone(), near.auth.clone()];
    for (auth, admin) in auths
        .into_iter()
        .zip([far.admin.clone(), near.admin.clone()])
    {
        for _ in 0..200 {
            let new = NewKey::for_tenant("acme").plan("free");
            let issued = admin.issue(new).await.unwrap();
            let key: Arc<str> = issued.key.expose().into();
            let revoked = Arc::new(AtomicBool::new(false));
            let requests: Vec<_> = (0..3)
                .map(|_| {
                    let (auth, key) = (auth.clone(), Arc::clone(&key));
                    let (revoked, now) = (Arc::clone(&revoked), far.now());
                    tokio::spawn(async move {
                        let mut n_refused = 0;
                        while n_refused < 3 {
                            let begins_after = revoked.load(Ordering::SeqCst);
                            let result = answer(&auth, &key, now).await;
                            assert!(
                                !begins_after || result.is_err(),
                                "served after the revocation"
                            );
                            n_refused += u32::from(result.is_err());
                            tokio::task::yield_now().await;
                        }
                    })
                })
                .collect();
            tokio::task::yield_now().await;
            admin.revoke(&issued.record.id).await.unwrap();
            revoked.store(true, Ordering::SeqCst);
            for request in requests {
                request.await.unwrap();
            }
        }
    }
}

/// The store has read the old record when the key is revoked, in the midst of its answer.
#[tokio::test]
async fn an_answer_at_once_that_was_overtaken_by_a_revocation_is_not_kept() {
    let near = near();
    let new = NewKey::for_tenant("acme").plan("free");
    let issued = near.admin.issue(new).await.unwrap();
    let key = issued.key.expose();
    let (keys, id) = (Arc::clone(&near.keys), issued.record.id.clone());
    *near.keys.before_answer.lock().unwrap() = Some(Box::new(move || {
        let revoking = async { keys.store.revoke(&id, Timestamp::MAX).await };
        run_at_once(revoking).unwrap();
    }));
    let overtaken = answer(&near.auth, key, near.clock.now()).await;
    assert_eq!(overtaken.unwrap_err(), AuthRefusal::Revoked, "asked again");
    assert_eq!(near.auth.n_cached().0, 0);
    let after = answer(&near.auth, key, near.clock.now()).await;
    assert_eq!(after.unwrap_err(), AuthRefusal::Revoked);
}

/// Runs a future that never waits.
fn run_at_once<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => panic!("the future waits"),
    }
}

#[tokio::test]
async fn a_tenant_announced_as_changed_is_not_served_stale_while_its_store_fails() {
    let far = far();
    let key = far.issue().await;
    far.ask(&key).await.unwrap();
    let tenants = Tenants::new(Arc::clone(&far.tenants) as _, far.catalog.clone());
    let acme = tenant("acme");
    tenants
        .set_access(&acme, AccessState::Closed)
        .await
        .unwrap();
    far.tenants.behaviour.becomes(Mood::Fail);
    assert_eq!(
        far.ask(&key).await.unwrap_err(),
        AuthRefusal::StoreUnavailable
    );
    far.tenants.behaviour.becomes(Mood::Answer);
    assert_eq!(
        far.ask(&key).await.unwrap().tenant().access(),
        AccessState::Closed
    );
}

#[tokio::test]
async fn a_replica_that_lags_behind_what_is_known_takes_nothing_back() {
    let far = far();
    let key = far.issue().await;
    far.keys.freeze(&KeyHasher::sha256().digest(&key)).await;
    far.keys.fall_silent();
    let successor = far.id_of(&key).await;
    far.admin
        .rotate(&successor, std::time::Duration::from_secs(40))
        .await
        .unwrap();
    let known = far.ask(&key).await.unwrap();
    assert!(known.expires_at().is_some());
    far.keys.behaviour.becomes(Mood::Lag);
    far.advance(15);
    let later = far.ask(&key).await.unwrap();
    assert_eq!(
        later.expires_at(),
        known.expires_at(),
        "the old record knows no expiry"
    );
    far.advance(25);
    assert_eq!(far.ask(&key).await.unwrap_err(), AuthRefusal::Expired);
}
