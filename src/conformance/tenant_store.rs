//! The contract of [`TenantStore`], call by call.

#![expect(
    clippy::panic,
    reason = "a conformance suite reports a difference by a panic, as a test does"
)]

use std::{future::Future, sync::Arc};

use super::expect;
use crate::{
    id::{PlanName, TenantId},
    tenant::{AccessState, TenantRecord, TenantStore, TenantStoreError},
};

/// Tests a tenant store against the contract of [`TenantStore`]. `make` gives an empty store each time it is
/// called.
///
/// Needs a multi-thread runtime for the races to be races.
///
/// # Panics
///
/// With the difference, when the store does not keep the contract.
pub async fn tenant_store<S, F>(make: impl Fn() -> F)
where
    S: TenantStore,
    F: Future<Output = S>,
{
    finds_what_was_created(&make().await).await;
    replaces_the_version_that_was_read_and_no_other(&make().await).await;
    of_racing_replacements_each_version_has_one(Arc::new(make().await)).await;
}

fn acme() -> TenantId {
    TenantId::from_checked("acme")
}

fn record() -> TenantRecord {
    TenantRecord::new(acme(), PlanName::from_checked("free"))
}

async fn find(store: &impl TenantStore) -> Option<Arc<TenantRecord>> {
    let found = expect(store.find(&acme()).await, "find");
    if let Some(now) = store.find_now(&acme()) {
        assert_eq!(now, found, "`find_now` and `find` differ");
    }
    found
}

async fn finds_what_was_created(store: &impl TenantStore) {
    assert_eq!(find(store).await, None, "an empty store knows no tenant");
    let created = expect(store.create(record()).await, "create");
    assert_eq!(created.version, 1, "a new record has version 1");
    assert_eq!(find(store).await, Some(created));
    match store.create(record()).await {
        Err(TenantStoreError::AlreadyExists) => {}
        other => panic!("a second tenant of one name: {other:?}"),
    }
    let other = expect(store.find(&TenantId::from_checked("other")).await, "find");
    assert_eq!(other, None);
}

async fn replaces_the_version_that_was_read_and_no_other(store: &impl TenantStore) {
    match store.replace(record()).await {
        Err(TenantStoreError::NotFound) => {}
        other => panic!("a tenant that does not exist: {other:?}"),
    }
    let created = expect(store.create(record()).await, "create");
    let mut changed = TenantRecord::clone(&created);
    changed.access = AccessState::Suspended;
    changed.plan = PlanName::from_checked("pro");
    let replaced = expect(store.replace(changed.clone()).await, "replace");
    changed.version = 2;
    assert_eq!(
        *replaced, changed,
        "the version grows by one, the rest is as given"
    );
    assert_eq!(find(store).await, Some(replaced));
    match store.replace(TenantRecord::clone(&created)).await {
        Err(TenantStoreError::Conflict) => {}
        other => panic!("a record that was read before the last change: {other:?}"),
    }
    assert_eq!(
        find(store).await.map(|found| found.version),
        Some(2),
        "a conflict changes nothing"
    );
}

async fn of_racing_replacements_each_version_has_one(store: Arc<impl TenantStore>) {
    const N_CHANGES: u64 = 32;
    expect(store.create(record()).await, "create");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..N_CHANGES {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            loop {
                let Some(current) = expect(store.find(&acme()).await, "find") else {
                    panic!("the tenant is gone")
                };
                match store.replace(TenantRecord::clone(&current)).await {
                    Ok(replaced) => return assert_eq!(replaced.version, current.version + 1),
                    Err(TenantStoreError::Conflict) => tokio::task::yield_now().await,
                    Err(error) => panic!("replace: {error:?}"),
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        expect(done, "a racing task");
    }
    let version = find(&*store).await.map(|found| found.version);
    assert_eq!(
        version,
        Some(1 + N_CHANGES),
        "no change was lost and none happened twice"
    );
}
