//! Stores behind a trip: each answer takes a few polls.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use async_trait::async_trait;
use tollgate::{
    auth::{KeyDigest, KeyListener, KeyRecord, KeyStore, KeyStoreError, MemoryKeyStore},
    clock::Timestamp,
    id::{KeyId, TenantId},
    limit::{
        Decision, LimitCall, LimitStore, LimitStoreError, MemoryLimits, OwnedLimitCall, Receipt,
        Settlement,
    },
    tenant::{MemoryTenantStore, TenantListener, TenantRecord, TenantStore, TenantStoreError},
};

pub(super) async fn trip() {
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}

#[derive(Debug)]
pub(super) struct SlowKeys {
    pub(super) store: MemoryKeyStore,
    pub(super) n_asked: AtomicUsize,
    pub(super) fails: AtomicBool,
}

impl SlowKeys {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            store: MemoryKeyStore::new(),
            n_asked: AtomicUsize::new(0),
            fails: AtomicBool::new(false),
        })
    }
}

#[async_trait]
impl KeyStore for SlowKeys {
    async fn find(&self, digest: &KeyDigest) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
        self.n_asked.fetch_add(1, Ordering::SeqCst);
        trip().await;
        if self.fails.load(Ordering::SeqCst) {
            return Err(KeyStoreError::Unavailable("told to fail".into()));
        }
        self.store.find(digest).await
    }

    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
        self.store.find_by_id(id).await
    }

    async fn list(&self, tenant: &TenantId) -> Result<Vec<Arc<KeyRecord>>, KeyStoreError> {
        self.store.list(tenant).await
    }

    async fn create(
        &self,
        digest: KeyDigest,
        record: KeyRecord,
    ) -> Result<Arc<KeyRecord>, KeyStoreError> {
        self.store.create(digest, record).await
    }

    async fn rotate(
        &self,
        old: &KeyId,
        old_expires_at: Timestamp,
        digest: KeyDigest,
        record: KeyRecord,
        now: Timestamp,
    ) -> Result<Arc<KeyRecord>, KeyStoreError> {
        self.store
            .rotate(old, old_expires_at, digest, record, now)
            .await
    }

    async fn revoke(&self, id: &KeyId, at: Timestamp) -> Result<Arc<KeyRecord>, KeyStoreError> {
        self.store.revoke(id, at).await
    }

    fn subscribe(&self, listener: Weak<dyn KeyListener>) {
        self.store.subscribe(listener);
    }
}

#[derive(Debug, Default)]
pub(super) struct SlowTenants(MemoryTenantStore);

#[async_trait]
impl TenantStore for SlowTenants {
    async fn find(&self, id: &TenantId) -> Result<Option<Arc<TenantRecord>>, TenantStoreError> {
        trip().await;
        self.0.find(id).await
    }

    async fn create(&self, record: TenantRecord) -> Result<Arc<TenantRecord>, TenantStoreError> {
        self.0.create(record).await
    }

    async fn replace(&self, record: TenantRecord) -> Result<Arc<TenantRecord>, TenantStoreError> {
        self.0.replace(record).await
    }

    fn subscribe(&self, listener: Weak<dyn TenantListener>) {
        self.0.subscribe(listener);
    }
}

/// Charges when its trip ends, and counts what it charged and settled.
#[derive(Debug, Default)]
pub(super) struct SlowLimits {
    store: MemoryLimits,
    pub(super) n_charged: AtomicUsize,
    pub(super) n_settled: AtomicUsize,
}

#[async_trait]
impl LimitStore for SlowLimits {
    fn try_decide(&self, _: &LimitCall<'_>) -> Option<Result<Decision, LimitStoreError>> {
        None
    }

    async fn decide(self: Arc<Self>, call: OwnedLimitCall) -> Result<Decision, LimitStoreError> {
        trip().await;
        let decision = Arc::new(&self.store)
            .try_decide(&call.as_call())
            .expect("counts in memory are at hand");
        if decision.as_ref().is_ok_and(Decision::is_admitted) {
            self.n_charged.fetch_add(1, Ordering::SeqCst);
        }
        decision
    }

    fn settle(&self, call: &LimitCall<'_>, receipt: &Receipt, settlement: &Settlement) {
        self.n_settled.fetch_add(1, Ordering::SeqCst);
        self.store.settle(call, receipt, settlement);
    }
}
