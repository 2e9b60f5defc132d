use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tollgate::{
    auth::{KeyDigest, KeyHasher, KeyListener, KeyRecord, KeyStore, KeyStoreError, MemoryKeyStore},
    clock::{Clock, ManualClock, Timestamp},
    id::{KeyId, TenantId},
};

fn now() -> Timestamp {
    ManualClock::default().now().wall()
}

fn id(text: &str) -> KeyId {
    KeyId::new(text).unwrap()
}

fn digest(text: &str) -> KeyDigest {
    KeyHasher::sha256().digest(text)
}

fn record(name: &str, tenant: &str) -> KeyRecord {
    let tenant = TenantId::new(tenant).unwrap();
    KeyRecord::new(id(name), tenant, Arc::from("tg_live_…abcd"), now())
}

async fn store_with(names: &[&str]) -> MemoryKeyStore {
    let store = MemoryKeyStore::new();
    for name in names {
        store
            .create(digest(name), record(name, "acme"))
            .await
            .unwrap();
    }
    store
}

/// What the store says at once, without waiting.
fn found(store: &MemoryKeyStore, name: &str) -> Option<Arc<KeyRecord>> {
    store.find_now(&digest(name)).unwrap()
}

#[tokio::test]
async fn finds_a_key_by_digest_by_id_and_by_tenant() {
    let store = store_with(&["a", "b"]).await;
    let record = found(&store, "a").unwrap();
    assert_eq!((record.id.as_str(), record.version), ("a", 1));
    assert!(found(&store, "unknown").is_none());
    assert_eq!(
        store.find(&digest("a")).await.unwrap(),
        Some(Arc::clone(&record))
    );
    assert_eq!(store.find_by_id(&id("a")).await.unwrap(), Some(record));
    assert_eq!(store.find_by_id(&id("c")).await.unwrap(), None);
    let list = |tenant: &str| {
        let tenant = TenantId::new(tenant).unwrap();
        let store = &store;
        async move { store.list(&tenant).await.unwrap().len() }
    };
    assert_eq!(list("acme").await, 2);
    assert_eq!(list("other").await, 0);
}

#[tokio::test]
async fn lists_the_oldest_first() {
    let store = MemoryKeyStore::new();
    for (name, age) in [("young", 1), ("old", 3), ("middle", 2)] {
        let mut record = record(name, "acme");
        record.created_at = now().saturating_sub(Duration::from_secs(age));
        store.create(digest(name), record).await.unwrap();
    }
    store.revoke(&id("old"), now()).await.unwrap();
    let keys = store.list(&TenantId::new("acme").unwrap()).await.unwrap();
    let names: Vec<_> = keys.iter().map(|key| key.id.as_str()).collect();
    assert_eq!(names, ["old", "middle", "young"]);
}

#[tokio::test]
async fn a_digest_or_an_id_that_exists_is_refused_and_nothing_changes() {
    let store = store_with(&["a"]).await;
    let before = found(&store, "a");
    for (key, name) in [("a", "new"), ("new", "a")] {
        let refused = store.create(digest(key), record(name, "other")).await;
        assert!(matches!(refused, Err(KeyStoreError::AlreadyExists)));
        let refused = store
            .rotate(&id("a"), now(), digest(key), record(name, "other"), now())
            .await;
        assert!(matches!(refused, Err(KeyStoreError::AlreadyExists)));
    }
    assert_eq!(found(&store, "a"), before);
    assert!(found(&store, "new").is_none());
    assert!(
        store
            .list(&TenantId::new("other").unwrap())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn a_rotation_leaves_both_keys_usable_until_the_overlap_ends() {
    let store = store_with(&["old"]).await;
    let end = now().saturating_add(Duration::from_secs(60));
    let new = store
        .rotate(&id("old"), end, digest("new"), record("new", "acme"), now())
        .await
        .unwrap();
    assert_eq!(new.version, 1);
    let (old, new) = (found(&store, "old").unwrap(), found(&store, "new").unwrap());
    assert_eq!(old.version, 2);
    assert!(old.is_usable_at(end.saturating_sub(Duration::from_micros(1))));
    assert!(!old.is_usable_at(end));
    assert!(new.is_usable_at(end));
    // The old key may be rotated once more during the overlap, but lives no longer for it.
    let later = end.saturating_add(Duration::from_secs(60));
    store
        .rotate(
            &id("old"),
            later,
            digest("newer"),
            record("newer", "acme"),
            now(),
        )
        .await
        .unwrap();
    assert_eq!(found(&store, "old").unwrap().expires_at, Some(end));
    let sooner = now().saturating_add(Duration::from_secs(1));
    store
        .rotate(
            &id("old"),
            sooner,
            digest("newest"),
            record("newest", "acme"),
            now(),
        )
        .await
        .unwrap();
    assert_eq!(found(&store, "old").unwrap().expires_at, Some(sooner));
}

#[tokio::test]
async fn a_key_that_no_longer_works_is_not_rotated() {
    let store = store_with(&["revoked"]).await;
    store.revoke(&id("revoked"), now()).await.unwrap();
    let mut expired = record("expired", "acme");
    expired.expires_at = Some(now());
    store.create(digest("expired"), expired).await.unwrap();
    let rotate = |name: &'static str| {
        let store = &store;
        async move {
            store
                .rotate(
                    &id(name),
                    now(),
                    digest("new"),
                    record("new", "acme"),
                    now(),
                )
                .await
                .unwrap_err()
        }
    };
    assert!(matches!(rotate("revoked").await, KeyStoreError::NotUsable));
    assert!(matches!(rotate("expired").await, KeyStoreError::NotUsable));
    assert!(matches!(rotate("unknown").await, KeyStoreError::NotFound));
    assert!(found(&store, "new").is_none());
}

#[tokio::test]
async fn a_revocation_is_final_and_keeps_its_first_time() {
    let store = store_with(&["a"]).await;
    let first = store.revoke(&id("a"), now()).await.unwrap();
    assert_eq!((first.revoked_at, first.version), (Some(now()), 2));
    let later = now().saturating_add(Duration::from_secs(5));
    let second = store.revoke(&id("a"), later).await.unwrap();
    assert_eq!((second.revoked_at, second.version), (Some(now()), 2));
    assert!(!found(&store, "a").unwrap().is_usable_at(now()));
    assert!(
        store
            .create(digest("a"), record("again", "acme"))
            .await
            .is_err()
    );
    let unknown = store.revoke(&id("b"), now()).await;
    assert!(matches!(unknown, Err(KeyStoreError::NotFound)));
}

/// Asks the store in the middle of a notification: what it hears of must be readable, and no lock be held.
struct Witness {
    store: Weak<MemoryKeyStore>,
    heard: Mutex<Vec<(KeyDigest, u64)>>,
}

impl KeyListener for Witness {
    fn key_changed(&self, digest: &KeyDigest, version: u64) {
        let store = self.store.upgrade().unwrap();
        let record = store.find_now(digest).unwrap().unwrap();
        assert_eq!(record.version, version);
        assert!(!store.to_document().is_empty());
        self.heard.lock().unwrap().push((*digest, version));
    }

    fn keys_lost(&self) {}
}

#[tokio::test]
async fn listeners_hear_of_a_change_before_it_returns() {
    let store = Arc::new(MemoryKeyStore::new());
    let witness = Arc::new(Witness {
        store: Arc::downgrade(&store),
        heard: Mutex::default(),
    });
    let weak: Weak<Witness> = Arc::downgrade(&witness);
    store.subscribe(weak);
    let heard = || std::mem::take(&mut *witness.heard.lock().unwrap());

    store
        .create(digest("a"), record("a", "acme"))
        .await
        .unwrap();
    assert_eq!(heard(), [(digest("a"), 1)]);
    store
        .rotate(
            &id("a"),
            Timestamp::MAX,
            digest("b"),
            record("b", "acme"),
            now(),
        )
        .await
        .unwrap();
    assert_eq!(heard(), [(digest("a"), 2), (digest("b"), 1)]);
    store.revoke(&id("a"), now()).await.unwrap();
    assert_eq!(heard(), [(digest("a"), 3)]);
    // What changes nothing is not told.
    store.revoke(&id("a"), now()).await.unwrap();
    let _ = store.create(digest("a"), record("a", "acme")).await;
    assert_eq!(heard(), []);
}

#[tokio::test]
async fn a_listener_that_is_gone_is_passed_over() {
    struct Counter(AtomicUsize);
    impl KeyListener for Counter {
        fn key_changed(&self, _: &KeyDigest, _: u64) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn keys_lost(&self) {}
    }
    let store = MemoryKeyStore::new();
    let (gone, stays) = (Arc::new(Counter(0.into())), Arc::new(Counter(0.into())));
    let (weak_gone, weak_stays) = (Arc::downgrade(&gone), Arc::downgrade(&stays));
    store.subscribe(weak_gone);
    store.subscribe(weak_stays);
    drop(gone);
    store
        .create(digest("a"), record("a", "acme"))
        .await
        .unwrap();
    assert_eq!(stays.0.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_concurrent_changes_exactly_one_wins() {
    for round in 0..50 {
        let store = Arc::new(store_with(&["old"]).await);
        let tasks: Vec<_> = (0..8)
            .map(|n| {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    // All want the same new digest.
                    let name = format!("new-{n}");
                    let end = now().saturating_add(Duration::from_secs(n));
                    store
                        .rotate(&id("old"), end, digest("new"), record(&name, "acme"), now())
                        .await
                })
            })
            .collect();
        let mut winners = Vec::new();
        for task in tasks {
            match task.await.unwrap() {
                Ok(record) => winners.push(record),
                Err(KeyStoreError::AlreadyExists | KeyStoreError::NotUsable) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}");
        let acme = TenantId::new("acme").unwrap();
        assert_eq!(store.list(&acme).await.unwrap().len(), 2);
        assert_eq!(found(&store, "old").unwrap().version, 2);
    }
}

#[tokio::test]
async fn a_shared_handle_is_the_same_store() {
    async fn issue(store: impl KeyStore) {
        store
            .create(digest("a"), record("a", "acme"))
            .await
            .unwrap();
        assert!(store.find_now(&digest("a")).unwrap().is_some());
    }
    let store = Arc::new(MemoryKeyStore::new());
    issue(Arc::clone(&store)).await;
    let shared: Arc<dyn KeyStore> = store;
    assert!(shared.find(&digest("a")).await.unwrap().is_some());
    assert_eq!(
        shared
            .list(&TenantId::new("acme").unwrap())
            .await
            .unwrap()
            .len(),
        1
    );
}
