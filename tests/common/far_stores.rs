//! Stores in memory that stand for stores elsewhere: they count, wait, fail, hang and lag on command.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use tokio::sync::Semaphore;
use tollgate::{
    auth::{KeyDigest, KeyListener, KeyRecord, KeyStore, KeyStoreError, KeyUse, MemoryKeyStore},
    clock::Timestamp,
    id::{KeyId, TenantId},
    tenant::{
        AccessState, MemoryTenantStore, TenantListener, TenantRecord, TenantStore, TenantStoreError,
    },
};

/// What a store does when it is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    #[default]
    Answer,
    /// Answers after a few polls.
    Trip,
    Fail,
    Hang,
    Panic,
    /// Reads its answer, and hands it out only when a permit is given.
    WaitAfterReading,
    /// Gives its answer to the first question of the run for ever: a replica that lags behind.
    Lag,
}

/// An answer that takes a few polls.
pub(crate) async fn trip() {
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}

#[derive(Debug)]
pub(crate) struct Behaviour {
    mood: Mutex<Mood>,
    pub(crate) n_asked: AtomicUsize,
    pub(crate) permits: Semaphore,
}

impl Behaviour {
    fn new(mood: Mood) -> Self {
        Self {
            mood: Mutex::new(mood),
            n_asked: AtomicUsize::new(0),
            permits: Semaphore::new(0),
        }
    }

    pub(crate) fn becomes(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    pub(crate) fn n_asked(&self) -> usize {
        self.n_asked.load(Ordering::SeqCst)
    }

    /// Waits until somebody asks for the n-th time.
    pub(crate) async fn asked(&self, n: usize) {
        while self.n_asked() < n {
            tokio::task::yield_now().await;
        }
    }

    async fn act(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mood = *self.mood.lock().unwrap();
        self.n_asked.fetch_add(1, Ordering::SeqCst);
        match mood {
            Mood::Answer | Mood::Lag => {}
            Mood::Trip => trip().await,
            Mood::Fail => return Err("the store was told to fail".into()),
            Mood::Hang => std::future::pending().await,
            Mood::Panic => panic!("the store was told to panic"),
            Mood::WaitAfterReading => self.permits.acquire().await.unwrap().forget(),
        }
        Ok(())
    }

    fn lags(&self) -> bool {
        *self.mood.lock().unwrap() == Mood::Lag
    }
}

/// Keys in memory, behind a trip or at hand.
pub(crate) struct FakeKeys {
    pub(crate) store: MemoryKeyStore,
    pub(crate) behaviour: Behaviour,
    pub(crate) n_touched: AtomicUsize,
    is_near: bool,
    /// Happens between reading and answering, once, where the answer is at hand.
    pub(crate) before_answer: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    relay: Arc<Relay>,
    snapshot: Mutex<Option<Option<Arc<KeyRecord>>>>,
}

impl FakeKeys {
    fn new(mood: Mood, is_near: bool) -> Arc<Self> {
        let (store, relay) = (MemoryKeyStore::new(), Arc::new(Relay::default()));
        let of_store: Weak<Relay> = Arc::downgrade(&relay);
        store.subscribe(of_store);
        Arc::new(Self {
            store,
            behaviour: Behaviour::new(mood),
            n_touched: AtomicUsize::new(0),
            is_near,
            before_answer: Mutex::default(),
            relay,
            snapshot: Mutex::default(),
        })
    }

    /// Never answers at once.
    pub(crate) fn far() -> Arc<Self> {
        Self::new(Mood::Answer, false)
    }

    /// Answers after a few polls.
    pub(crate) fn slow() -> Arc<Self> {
        Self::new(Mood::Trip, false)
    }

    /// Answers at once.
    pub(crate) fn near() -> Arc<Self> {
        Self::new(Mood::Answer, true)
    }

    /// From now on, changes are not announced.
    pub(crate) fn fall_silent(&self) {
        self.relay.is_silent.store(true, Ordering::SeqCst);
    }

    pub(crate) fn tell_lost(&self) {
        self.relay.keys_lost();
    }

    /// Remembers what the store says of a digest, for `Mood::Lag`.
    pub(crate) async fn freeze(&self, digest: &KeyDigest) {
        let record = self.store.find(digest).await.unwrap();
        *self.snapshot.lock().unwrap() = Some(record);
    }
}

impl fmt::Debug for FakeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeKeys").finish_non_exhaustive()
    }
}

/// Passes the store's announcements on until it is told not to.
#[derive(Default)]
struct Relay {
    is_silent: AtomicBool,
    listeners: Mutex<Vec<Weak<dyn KeyListener>>>,
}

impl Relay {
    fn listening(&self) -> Vec<Arc<dyn KeyListener>> {
        let listeners = self.listeners.lock().unwrap();
        listeners.iter().filter_map(Weak::upgrade).collect()
    }
}

impl KeyListener for Relay {
    fn key_changed(&self, digest: &KeyDigest, version: u64) {
        if !self.is_silent.load(Ordering::SeqCst) {
            for listener in self.listening() {
                listener.key_changed(digest, version);
            }
        }
    }

    fn keys_lost(&self) {
        for listener in self.listening() {
            listener.keys_lost();
        }
    }
}

#[async_trait]
impl KeyStore for FakeKeys {
    fn find_now(&self, digest: &KeyDigest) -> Option<Option<Arc<KeyRecord>>> {
        if !self.is_near {
            return None;
        }
        let found = self.store.find_now(digest)?;
        let happens = self.before_answer.lock().unwrap().take();
        if let Some(happens) = happens {
            happens();
        }
        Some(found)
    }

    async fn find(&self, digest: &KeyDigest) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
        let record = self.store.find(digest).await?;
        let acted = self.behaviour.act().await;
        acted.map_err(KeyStoreError::Unavailable)?;
        if self.behaviour.lags() {
            return Ok(self.snapshot.lock().unwrap().clone().unwrap_or(record));
        }
        Ok(record)
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

    async fn touch(&self, uses: &[KeyUse]) -> Result<(), KeyStoreError> {
        // Not a question: nobody waits for it.
        self.n_touched.fetch_add(1, Ordering::SeqCst);
        let mood = *self.behaviour.mood.lock().unwrap();
        match mood {
            Mood::Fail => {
                let error = "the store was told to fail".into();
                Err(KeyStoreError::Unavailable(error))
            }
            Mood::Hang => std::future::pending().await,
            _ => self.store.touch(uses).await,
        }
    }

    async fn last_used(
        &self,
        tenant: &TenantId,
    ) -> Result<HashMap<KeyId, Timestamp>, KeyStoreError> {
        self.store.last_used(tenant).await
    }

    fn subscribe(&self, listener: Weak<dyn KeyListener>) {
        self.relay.listeners.lock().unwrap().push(listener);
    }
}

/// Tenants in memory, behind a trip.
#[derive(Debug)]
pub(crate) struct FarTenants {
    store: MemoryTenantStore,
    pub(crate) behaviour: Behaviour,
}

impl FarTenants {
    fn new(mood: Mood) -> Arc<Self> {
        Arc::new(Self {
            store: MemoryTenantStore::new(),
            behaviour: Behaviour::new(mood),
        })
    }

    pub(crate) fn far() -> Arc<Self> {
        Self::new(Mood::Answer)
    }

    /// Answers after a few polls.
    pub(crate) fn slow() -> Arc<Self> {
        Self::new(Mood::Trip)
    }

    /// Changes a tenant without a question that is counted.
    pub(crate) async fn set_access_unseen(&self, id: &TenantId, access: AccessState) {
        let record = self.store.find(id).await.unwrap().unwrap();
        let mut record = TenantRecord::clone(&record);
        record.access = access;
        self.store.replace(record).await.unwrap();
    }
}

#[async_trait]
impl TenantStore for FarTenants {
    async fn find(&self, id: &TenantId) -> Result<Option<Arc<TenantRecord>>, TenantStoreError> {
        let record = self.store.find(id).await?;
        let acted = self.behaviour.act().await;
        acted.map_err(TenantStoreError::Unavailable)?;
        Ok(record)
    }

    async fn create(&self, record: TenantRecord) -> Result<Arc<TenantRecord>, TenantStoreError> {
        self.store.create(record).await
    }

    async fn replace(&self, record: TenantRecord) -> Result<Arc<TenantRecord>, TenantStoreError> {
        self.store.replace(record).await
    }

    fn subscribe(&self, listener: Weak<dyn TenantListener>) {
        self.store.subscribe(listener);
    }
}
