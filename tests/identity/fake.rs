//! Stores that count, fail, hang and wait on command.

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::Request;
use tokio::sync::Semaphore;
use tollgate::{
    auth::{
        ApiKey, AuthRefusal, Extractor, KeyDigest, KeyFormat, KeyHasher, KeyListener, KeyRecord,
        KeyStore, KeyStoreError, MemoryKeyStore,
    },
    clock::{Clock, ManualClock, Now, Timestamp},
    head::RequestHead,
    id::{Environment, KeyId, PlanName, TenantId},
    identity::{Attempt, Authenticate, CacheSettings, Identity, KeyAuthenticator},
    identity::{Keys, NewKey},
    plan::{Plan, PlanCatalog},
    tenant::{
        AccessState, MemoryTenantStore, TenantListener, TenantRecord, TenantStore, TenantStoreError,
    },
};

/// What a fake store does when it is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    #[default]
    Answer,
    Fail,
    Hang,
    Panic,
    /// Reads its answer, and hands it out only when a permit is given.
    WaitAfterReading,
    /// Gives its answer to the first question of the run for ever: a replica that lags behind.
    Lag,
}

#[derive(Debug)]
pub(crate) struct Behaviour {
    mood: Mutex<Mood>,
    pub(crate) n_asked: AtomicUsize,
    pub(crate) permits: Semaphore,
}

impl Behaviour {
    fn new() -> Self {
        Self {
            mood: Mutex::default(),
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
            Mood::Answer | Mood::Lag => Ok(()),
            Mood::Fail => Err("the fake store was told to fail".into()),
            Mood::Hang => std::future::pending().await,
            Mood::Panic => panic!("the fake store was told to panic"),
            Mood::WaitAfterReading => {
                self.permits.acquire().await.unwrap().forget();
                Ok(())
            }
        }
    }

    fn lags(&self) -> bool {
        *self.mood.lock().unwrap() == Mood::Lag
    }
}

/// Keys in memory, behind a trip.
#[derive(Debug)]
pub(crate) struct FarKeys {
    store: MemoryKeyStore,
    pub(crate) behaviour: Behaviour,
    announces: AtomicBool,
    listeners: Mutex<Vec<Weak<dyn KeyListener>>>,
    snapshot: Mutex<Option<Option<Arc<KeyRecord>>>>,
}

impl FarKeys {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            store: MemoryKeyStore::new(),
            behaviour: Behaviour::new(),
            announces: AtomicBool::new(true),
            listeners: Mutex::default(),
            snapshot: Mutex::default(),
        })
    }

    /// From now on, changes are not announced.
    pub(crate) fn fall_silent(&self) {
        self.announces.store(false, Ordering::SeqCst);
    }

    fn tell(&self, record: &KeyRecord, digest: &KeyDigest) {
        if self.announces.load(Ordering::SeqCst) {
            for listener in self.listening() {
                listener.key_changed(digest, record.version);
            }
        }
    }

    pub(crate) fn tell_lost(&self) {
        for listener in self.listening() {
            listener.keys_lost();
        }
    }

    fn listening(&self) -> Vec<Arc<dyn KeyListener>> {
        let listeners = self.listeners.lock().unwrap();
        listeners.iter().filter_map(Weak::upgrade).collect()
    }

    /// Remembers what the store says of a digest, for `Mood::Lag`.
    pub(crate) async fn freeze(&self, digest: &KeyDigest) {
        let record = self.store.find(digest).await.unwrap();
        *self.snapshot.lock().unwrap() = Some(record);
    }
}

#[async_trait]
impl KeyStore for FarKeys {
    async fn find(&self, digest: &KeyDigest) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
        let record = self.store.find(digest).await?;
        self.behaviour
            .act()
            .await
            .map_err(KeyStoreError::Unavailable)?;
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
        let record = self.store.create(digest, record).await?;
        self.tell(&record, &digest);
        Ok(record)
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
        let record = self.store.revoke(id, at).await?;
        let digest = self.digest_of(id);
        self.tell(&record, &digest);
        Ok(record)
    }

    fn subscribe(&self, listener: Weak<dyn KeyListener>) {
        self.listeners.lock().unwrap().push(listener);
    }
}

impl FarKeys {
    fn digest_of(&self, id: &KeyId) -> KeyDigest {
        let document = serde_json::to_value(self.store.to_document()).unwrap();
        let entries = document["keys"].as_array().unwrap();
        let entry = entries.iter().find(|entry| entry["id"] == id.as_str());
        KeyDigest::from_hex(entry.unwrap()["digest"].as_str().unwrap()).unwrap()
    }
}

/// Tenants in memory, behind a trip.
#[derive(Debug)]
pub(crate) struct FarTenants {
    store: MemoryTenantStore,
    pub(crate) behaviour: Behaviour,
}

impl FarTenants {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            store: MemoryTenantStore::new(),
            behaviour: Behaviour::new(),
        })
    }

    /// Changes a tenant without a question that is counted.
    pub(crate) async fn set_access_unseen(&self, name: &str, access: AccessState) {
        let record = self.store.find(&tenant(name)).await.unwrap().unwrap();
        let mut record = TenantRecord::clone(&record);
        record.access = access;
        self.store.replace(record).await.unwrap();
    }
}

#[async_trait]
impl TenantStore for FarTenants {
    async fn find(&self, id: &TenantId) -> Result<Option<Arc<TenantRecord>>, TenantStoreError> {
        let record = self.store.find(id).await?;
        self.behaviour
            .act()
            .await
            .map_err(TenantStoreError::Unavailable)?;
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

/// A catalog with the plans `free` and `pro`.
pub(crate) fn catalog() -> PlanCatalog {
    PlanCatalog::new([
        Plan::new("free").upgrade_url("https://example.com/upgrade"),
        Plan::new("pro").feature("export").api("chat"),
    ])
    .unwrap()
}

/// Everything that one process holds, with stores behind a trip.
pub(crate) struct Far {
    pub(crate) keys: Arc<FarKeys>,
    pub(crate) tenants: Arc<FarTenants>,
    pub(crate) catalog: PlanCatalog,
    pub(crate) clock: ManualClock,
    pub(crate) admin: Keys,
    pub(crate) auth: KeyAuthenticator,
}

pub(crate) fn far() -> Far {
    far_with(CacheSettings::new())
}

pub(crate) fn far_with(settings: CacheSettings) -> Far {
    let (keys, tenants) = (FarKeys::new(), FarTenants::new());
    let (catalog, clock) = (catalog(), ManualClock::default());
    let key_store = || Arc::clone(&keys) as Arc<dyn KeyStore>;
    let tenant_store = || Arc::clone(&tenants) as Arc<dyn TenantStore>;
    let admin = Keys::new(
        key_store(),
        tenant_store(),
        catalog.clone(),
        Arc::new(clock.clone()),
    );
    let auth = KeyAuthenticator::builder(key_store(), tenant_store(), catalog.clone())
        .cache(settings)
        .build()
        .unwrap();
    Far {
        keys,
        tenants,
        catalog,
        clock,
        admin,
        auth,
    }
}

impl Far {
    pub(crate) fn now(&self) -> Now {
        self.clock.now()
    }

    pub(crate) fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// A key of tenant `acme` on plan `free`; the counts of the stores start anew after it.
    pub(crate) async fn issue(&self) -> String {
        self.issue_as(NewKey::for_tenant("acme").plan("free")).await
    }

    pub(crate) async fn issue_as(&self, new: NewKey) -> String {
        let issued = self.admin.issue(new).await.unwrap();
        self.tenants.behaviour.n_asked.store(0, Ordering::SeqCst);
        issued.key.expose().to_owned()
    }

    /// Adds a key that exists already, and its tenant on plan `free`.
    pub(crate) async fn import(&self, key: &str, owner: &str) {
        self.create_tenant(owner).await;
        self.import_key(key, owner).await;
    }

    pub(crate) async fn import_key(&self, key: &str, owner: &str) {
        let id = KeyId::new(format!("key_of_{owner}")).unwrap();
        let shown = ApiKey::new(key).shown();
        let record = KeyRecord::new(id, tenant(owner), shown, self.now().wall());
        let digest = KeyHasher::sha256().digest(key);
        self.keys.create(digest, record).await.unwrap();
    }

    pub(crate) async fn create_tenant(&self, name: &str) {
        let record = TenantRecord::new(tenant(name), plan("free"));
        self.tenants.create(record).await.unwrap();
    }

    pub(crate) async fn id_of(&self, key: &str) -> KeyId {
        let digest = KeyHasher::sha256().digest(key);
        self.keys
            .store
            .find(&digest)
            .await
            .unwrap()
            .unwrap()
            .id
            .clone()
    }

    pub(crate) async fn ask(&self, key: &str) -> Result<Identity, AuthRefusal> {
        answer(&self.auth, key, self.now()).await
    }

    /// The answer that needs no trip, `None` when one is needed.
    pub(crate) fn ask_now(&self, key: &str) -> Option<Result<Identity, AuthRefusal>> {
        match attempt(&self.auth, key, self.now()) {
            Attempt::Done(result) => Some(result),
            _ => None,
        }
    }
}

pub(crate) fn attempt(auth: &dyn Authenticate, key: &str, now: Now) -> Attempt {
    let request = Request::builder()
        .header("x-api-key", key)
        .body(())
        .unwrap();
    let head = RequestHead::from(&request);
    let credential = Extractor::default().extract(&head).unwrap();
    auth.authenticate(credential.as_ref(), &head, now)
}

pub(crate) async fn answer(
    auth: &dyn Authenticate,
    key: &str,
    now: Now,
) -> Result<Identity, AuthRefusal> {
    match attempt(auth, key, now) {
        Attempt::Done(result) => result,
        Attempt::Lookup(lookup) | Attempt::Refresh(lookup) => lookup.await,
        other => panic!("not for this authenticator: {other:?}"),
    }
}

/// A key that looks right and that nobody issued.
pub(crate) fn invented() -> String {
    let key = KeyFormat::default().generate(Environment::Live).unwrap();
    key.expose().to_owned()
}

pub(crate) fn plan(name: &str) -> PlanName {
    PlanName::new(name).unwrap()
}

pub(crate) fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

/// Keys in memory that answer at once; something can be made to happen between reading and answering.
pub(crate) struct NearKeys {
    pub(crate) store: MemoryKeyStore,
    pub(crate) before_answer: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl std::fmt::Debug for NearKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NearKeys").finish_non_exhaustive()
    }
}

#[async_trait]
impl KeyStore for NearKeys {
    fn find_now(&self, digest: &KeyDigest) -> Option<Option<Arc<KeyRecord>>> {
        let found = self.store.find_now(digest);
        let happens = self.before_answer.lock().unwrap().take();
        if let Some(happens) = happens {
            happens();
        }
        found
    }

    async fn find(&self, digest: &KeyDigest) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
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

/// Everything that one process holds, with stores in memory.
pub(crate) struct Near {
    pub(crate) keys: Arc<NearKeys>,
    pub(crate) clock: ManualClock,
    pub(crate) admin: Keys,
    pub(crate) auth: KeyAuthenticator,
}

pub(crate) fn near() -> Near {
    let keys = Arc::new(NearKeys {
        store: MemoryKeyStore::new(),
        before_answer: Mutex::default(),
    });
    let tenants: Arc<dyn TenantStore> = Arc::new(MemoryTenantStore::new());
    let key_store = || Arc::clone(&keys) as Arc<dyn KeyStore>;
    let clock = ManualClock::default();
    let admin = Keys::new(
        key_store(),
        Arc::clone(&tenants),
        catalog(),
        Arc::new(clock.clone()),
    );
    let auth = KeyAuthenticator::builder(key_store(), tenants, catalog())
        .build()
        .unwrap();
    Near {
        keys,
        clock,
        admin,
        auth,
    }
}
