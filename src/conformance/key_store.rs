//! The contract of [`KeyStore`], call by call.

#![expect(
    clippy::panic,
    reason = "a conformance suite reports a difference by a panic, as a test does"
)]

use std::{
    fmt::Debug,
    future::Future,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use super::expect;
use crate::{
    auth::{KeyDigest, KeyListener, KeyRecord, KeyStore, KeyStoreError, KeyUse},
    clock::Timestamp,
    id::{KeyId, TenantId},
};

/// Tests a key store against the contract of [`KeyStore`]. `make` gives an empty store each time it is called.
///
/// Needs a multi-thread runtime for the races to be races. A store that cannot push changes passes: it is
/// heard, but need not speak. So does one that keeps no uses of keys.
///
/// # Panics
///
/// With the difference, when the store does not keep the contract.
pub async fn key_store<S, F>(make: impl Fn() -> F)
where
    S: KeyStore,
    F: Future<Output = S>,
{
    finds_what_was_created(&make().await).await;
    refuses_a_digest_or_an_id_that_exists(&make().await).await;
    lists_the_keys_of_one_tenant_oldest_first(&make().await).await;
    rotation_adds_a_successor_and_never_extends_the_old_key(&make().await).await;
    rotation_of_a_key_that_no_longer_works_changes_nothing(&make().await).await;
    revocation_is_final_and_keeps_its_first_time(&make().await).await;
    of_racing_rotations_and_creations_each_is_whole(Arc::new(make().await)).await;
    announces_only_what_has_happened(&make().await).await;
    keeps_the_latest_use_of_each_key_or_none(&make().await).await;
}

const DAY: Duration = Duration::from_secs(86_400);

fn noon() -> Timestamp {
    Timestamp::from_unix_seconds(1_768_478_400)
}

fn digest(n: u8) -> KeyDigest {
    KeyDigest::from_bytes([n; 32])
}

fn id(text: &str) -> KeyId {
    KeyId::from_checked(text)
}

fn record(text: &str, tenant: &str, age: Duration) -> KeyRecord {
    let tenant = TenantId::from_checked(tenant);
    let created = noon().saturating_sub(age);
    KeyRecord::new(id(text), tenant, "tg_live_…0000".into(), created)
}

async fn find(store: &impl KeyStore, digest: KeyDigest) -> Option<Arc<KeyRecord>> {
    let found = expect(store.find(&digest).await, "find");
    if let Some(now) = store.find_now(&digest) {
        assert_eq!(now, found, "`find_now` and `find` differ");
    }
    found
}

async fn create(store: &impl KeyStore, n: u8, record: KeyRecord) -> Arc<KeyRecord> {
    expect(store.create(digest(n), record).await, "create")
}

fn assert_fails<T: Debug>(
    result: Result<T, KeyStoreError>,
    matches: fn(&KeyStoreError) -> bool,
    what: &str,
) {
    match result {
        Err(error) => assert!(
            matches(&error),
            "{what}: another error was due than {error:?}"
        ),
        Ok(value) => panic!("{what}: an error was due, not {value:?}"),
    }
}

async fn finds_what_was_created(store: &impl KeyStore) {
    assert_eq!(
        find(store, digest(1)).await,
        None,
        "an empty store knows no key"
    );
    let mut expected = record("k1", "acme", DAY);
    expected.scopes.insert(Arc::from("chat:write"));
    expected.expires_at = Some(noon());
    let created = create(store, 1, expected.clone()).await;
    expected.version = 1;
    assert_eq!(
        *created, expected,
        "a new record has version 1 and is otherwise as given"
    );
    assert_eq!(find(store, digest(1)).await.as_deref(), Some(&expected));
    let by_id = expect(store.find_by_id(&id("k1")).await, "find_by_id");
    assert_eq!(by_id.as_deref(), Some(&expected));
    assert_eq!(
        expect(store.find_by_id(&id("k2")).await, "find_by_id"),
        None
    );
    assert_eq!(find(store, digest(2)).await, None);
}

async fn refuses_a_digest_or_an_id_that_exists(store: &impl KeyStore) {
    create(store, 1, record("k1", "acme", DAY)).await;
    let exists: fn(&KeyStoreError) -> bool = |error| matches!(error, KeyStoreError::AlreadyExists);
    let same_digest = store.create(digest(1), record("k2", "acme", DAY)).await;
    assert_fails(same_digest, exists, "a second key of one digest");
    let same_id = store.create(digest(2), record("k1", "other", DAY)).await;
    assert_fails(same_id, exists, "a second key of one id");
    assert_eq!(
        find(store, digest(2)).await,
        None,
        "what was refused is not kept"
    );
    let until = noon().saturating_add(DAY);
    let next = record("k1", "acme", Duration::ZERO);
    let rotated = store
        .rotate(&id("k1"), until, digest(3), next, noon())
        .await;
    assert_fails(rotated, exists, "a successor with its own id taken");
    let old = find(store, digest(1)).await;
    assert_eq!(
        old.and_then(|old| old.expires_at),
        None,
        "a refused rotation bounds nothing"
    );
}

async fn lists_the_keys_of_one_tenant_oldest_first(store: &impl KeyStore) {
    create(store, 1, record("young", "acme", DAY)).await;
    create(store, 2, record("old", "acme", DAY * 3)).await;
    create(store, 3, record("middle", "acme", DAY * 2)).await;
    create(store, 4, record("other", "else", DAY)).await;
    expect(store.revoke(&id("middle"), noon()).await, "revoke");
    let listed = expect(store.list(&TenantId::from_checked("acme")).await, "list");
    let ids: Vec<&str> = listed.iter().map(|record| record.id.as_str()).collect();
    assert_eq!(
        ids,
        ["old", "middle", "young"],
        "revoked keys are listed too"
    );
    let none = expect(store.list(&TenantId::from_checked("nobody")).await, "list");
    assert!(none.is_empty());
}

async fn rotation_adds_a_successor_and_never_extends_the_old_key(store: &impl KeyStore) {
    let until = noon().saturating_add(DAY);
    create(store, 1, record("open", "acme", DAY)).await;
    let next = record("open-2", "acme", Duration::ZERO);
    let rotated = store
        .rotate(&id("open"), until, digest(2), next, noon())
        .await;
    assert_eq!(
        expect(rotated, "rotate").version,
        1,
        "the successor is a new record"
    );
    let old = find(store, digest(1)).await;
    let (expiry, version) = old.map_or((None, 0), |old| (old.expires_at, old.version));
    assert_eq!(expiry, Some(until), "both work until the overlap ends");
    assert_eq!(version, 2, "the old record has changed once");
    assert!(find(store, digest(2)).await.is_some());

    let soon = noon().saturating_add(Duration::from_secs(60));
    let mut bounded = record("bounded", "acme", DAY);
    bounded.expires_at = Some(soon);
    create(store, 3, bounded).await;
    let next = record("bounded-2", "acme", Duration::ZERO);
    expect(
        store
            .rotate(&id("bounded"), until, digest(4), next, noon())
            .await,
        "rotate",
    );
    let old = find(store, digest(3)).await.and_then(|old| old.expires_at);
    assert_eq!(old, Some(soon), "the earlier of the two expiries stays");
}

async fn rotation_of_a_key_that_no_longer_works_changes_nothing(store: &impl KeyStore) {
    let until = noon().saturating_add(DAY);
    let unusable: fn(&KeyStoreError) -> bool = |error| matches!(error, KeyStoreError::NotUsable);
    let unknown: fn(&KeyStoreError) -> bool = |error| matches!(error, KeyStoreError::NotFound);
    create(store, 1, record("revoked", "acme", DAY)).await;
    expect(store.revoke(&id("revoked"), noon()).await, "revoke");
    let mut expired = record("expired", "acme", DAY);
    expired.expires_at = Some(noon());
    create(store, 2, expired).await;
    for (old, matches) in [
        ("revoked", unusable),
        ("expired", unusable),
        ("nobody", unknown),
    ] {
        let next = record("next", "acme", Duration::ZERO);
        let rotated = store.rotate(&id(old), until, digest(9), next, noon()).await;
        assert_fails(rotated, matches, old);
        assert_eq!(
            find(store, digest(9)).await,
            None,
            "{old}: no successor is left behind"
        );
    }
}

async fn revocation_is_final_and_keeps_its_first_time(store: &impl KeyStore) {
    create(store, 1, record("k1", "acme", DAY)).await;
    let revoked = expect(store.revoke(&id("k1"), noon()).await, "revoke");
    assert_eq!(revoked.revoked_at, Some(noon()));
    assert!(revoked.version > 1, "a change grows the version");
    let again = store.revoke(&id("k1"), noon().saturating_add(DAY)).await;
    assert_eq!(
        expect(again, "revoke").revoked_at,
        Some(noon()),
        "the first time stays"
    );
    let found = find(store, digest(1)).await;
    assert!(
        found.is_some_and(|found| !found.is_usable_at(noon())),
        "a revoked key is kept, unusable"
    );
    let unknown: fn(&KeyStoreError) -> bool = |error| matches!(error, KeyStoreError::NotFound);
    assert_fails(
        store.revoke(&id("k2"), noon()).await,
        unknown,
        "a key that does not exist",
    );
}

async fn of_racing_rotations_and_creations_each_is_whole(store: Arc<impl KeyStore>) {
    create(&store, 0, record("old", "acme", DAY)).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 1..=32_u8 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            if n % 2 == 0 {
                let new = record("same", "acme", Duration::ZERO);
                store.create(digest(n), new).await.is_ok()
            } else {
                let until = noon().saturating_add(DAY * u32::from(n));
                let next = record(&format!("next-{n}"), "acme", Duration::ZERO);
                let rotated = store
                    .rotate(&id("old"), until, digest(n), next, noon())
                    .await;
                expect(rotated, "rotate");
                false
            }
        });
    }
    let mut n_created = 0;
    while let Some(created) = tasks.join_next().await {
        n_created += u32::from(expect(created, "a racing task"));
    }
    assert_eq!(n_created, 1, "one of sixteen creations of one id succeeds");
    let old = find(&*store, digest(0))
        .await
        .and_then(|old| old.expires_at);
    let earliest = noon().saturating_add(DAY);
    assert_eq!(
        old,
        Some(earliest),
        "of many rotations the earliest expiry stays"
    );
    let all = expect(store.list(&TenantId::from_checked("acme")).await, "list");
    assert_eq!(
        all.len(),
        18,
        "the old key, sixteen successors and one created"
    );
}

#[derive(Debug, Default)]
struct Heard(Mutex<Vec<(KeyDigest, u64)>>);

impl KeyListener for Heard {
    fn key_changed(&self, digest: &KeyDigest, version: u64) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((*digest, version));
    }

    fn keys_lost(&self) {}
}

async fn announces_only_what_has_happened(store: &impl KeyStore) {
    let heard = Arc::new(Heard::default());
    let listener: Arc<dyn KeyListener> = Arc::<Heard>::clone(&heard);
    store.subscribe(Weak::clone(&Arc::downgrade(&listener)));
    create(store, 1, record("k1", "acme", DAY)).await;
    expect(store.revoke(&id("k1"), noon()).await, "revoke");
    let heard = heard
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let current = find(store, digest(1))
        .await
        .map_or(0, |record| record.version);
    for (changed, version) in heard {
        assert_eq!(changed, digest(1), "a change of a key that did not change");
        assert!(
            (1..=current).contains(&version),
            "version {version} of {current} was announced"
        );
    }
}

async fn keeps_the_latest_use_of_each_key_or_none(store: &impl KeyStore) {
    let tenant = TenantId::from_checked("acme");
    let used_at = |n: u8, text: &str, minutes: u64| {
        let at = noon().saturating_add(Duration::from_secs(60 * minutes));
        KeyUse::new(digest(n), id(text), at)
    };
    create(store, 1, record("k1", "acme", DAY)).await;
    create(store, 2, record("k2", "acme", DAY)).await;
    create(store, 3, record("k3", "other", DAY)).await;
    let before = find(store, digest(1)).await;
    expect(store.touch(&[]).await, "touch");
    let uses = [
        used_at(1, "k1", 5),
        used_at(9, "nobody", 5),
        used_at(3, "k3", 7),
    ];
    expect(store.touch(&uses).await, "touch");
    let late = [used_at(1, "k1", 9), used_at(1, "k1", 4)];
    expect(store.touch(&late).await, "touch");
    expect(store.touch(&uses).await, "touch");
    assert_eq!(
        find(store, digest(1)).await,
        before,
        "a use changes no record"
    );
    assert_eq!(
        find(store, digest(9)).await,
        None,
        "a use makes no key of one that is not known"
    );
    let kept = expect(store.last_used(&tenant).await, "last_used");
    if kept.is_empty() {
        return;
    }
    let (key, time) = (id("k1"), used_at(1, "k1", 9).at);
    assert_eq!(
        kept.into_iter().collect::<Vec<_>>(),
        [(key, time)],
        "of each used key of the tenant the latest time"
    );
}
