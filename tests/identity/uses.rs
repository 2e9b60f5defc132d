//! When a key was last used, on its way to the store.

use std::{collections::HashMap, sync::atomic::Ordering, time::Duration};

use tollgate::{
    clock::Timestamp,
    id::KeyId,
    identity::{CacheSettings, NewKey},
};

use super::fake::{Far, Mood, far, far_with, tenant};

async fn last_used(far: &Far) -> HashMap<KeyId, Timestamp> {
    far.admin.last_used(&tenant("acme")).await.unwrap()
}

#[tokio::test]
async fn the_first_use_of_a_minute_is_written_once_and_never_by_the_call() {
    let far = far();
    let (used, unused) = (far.issue().await, far.issue().await);
    let first = far.now().wall();
    for _ in 0..10 {
        far.ask(&used).await.unwrap();
    }
    assert!(last_used(&far).await.is_empty(), "no call writes");
    far.auth.write_uses().await;
    far.auth.write_uses().await;
    let n_touched = far.keys.n_touched.load(Ordering::SeqCst);
    assert_eq!(n_touched, 1, "ten uses are one write");
    let id = far.id_of(&used).await;
    assert_eq!(last_used(&far).await, HashMap::from([(id.clone(), first)]));

    // The cache's own lifetime ends meanwhile, which makes no use new.
    far.advance(30);
    far.ask(&used).await.unwrap();
    far.auth.write_uses().await;
    assert_eq!(last_used(&far).await[&id], first);
    far.advance(30);
    far.ask(&used).await.unwrap();
    far.auth.write_uses().await;
    assert_eq!(last_used(&far).await[&id], far.now().wall());
    assert!(
        !last_used(&far)
            .await
            .contains_key(&far.id_of(&unused).await)
    );
}

#[tokio::test]
async fn what_does_not_work_is_not_used() {
    let far = far();
    let key = far
        .issue_as(
            NewKey::for_tenant("acme")
                .plan("free")
                .expires_in(Duration::from_secs(5)),
        )
        .await;
    far.advance(5);
    far.ask(&key).await.unwrap_err();
    far.auth.write_uses().await;
    assert!(last_used(&far).await.is_empty());
}

#[tokio::test]
async fn a_store_that_fails_or_hangs_costs_no_call_and_the_next_minute_is_written() {
    let far = far_with(CacheSettings::new().store_deadline(Duration::from_millis(20)));
    let key = far.issue().await;
    for mood in [Mood::Fail, Mood::Hang] {
        far.ask(&key).await.unwrap();
        far.keys.behaviour.becomes(mood);
        far.auth.write_uses().await;
        far.ask_now(&key).unwrap().unwrap();
        assert!(last_used(&far).await.is_empty());
        far.keys.behaviour.becomes(Mood::Answer);
        far.advance(60);
    }
    far.ask(&key).await.unwrap();
    far.auth.write_uses().await;
    assert_eq!(last_used(&far).await.len(), 1);
}

#[tokio::test]
async fn a_cache_that_is_too_small_writes_no_key_twice_a_minute() {
    let far = far_with(CacheSettings::new().capacity(1));
    let keys = [far.issue().await, far.issue().await, far.issue().await];
    let first = far.now().wall();
    for _ in 0..5 {
        for key in &keys {
            far.ask(key).await.unwrap();
        }
        far.auth.write_uses().await;
        far.advance(1);
    }
    let used = last_used(&far).await;
    assert_eq!(used.len(), 3);
    assert!(used.values().all(|at| *at == first));
}
