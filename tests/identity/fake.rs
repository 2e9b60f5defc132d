//! A whole process of keys and tenants, around stores that wait and fail on command.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::Request;
use tollgate::{
    auth::{ApiKey, AuthRefusal, Extractor, KeyFormat, KeyHasher, KeyRecord, KeyStore},
    clock::{Clock, ManualClock, Now},
    head::RequestHead,
    id::{Environment, KeyId, PlanName, TenantId},
    identity::{Attempt, Authenticate, CacheSettings, Identity, KeyAuthenticator, Keys, NewKey},
    plan::{Plan, PlanCatalog},
    tenant::{MemoryTenantStore, TenantRecord, TenantStore},
};

pub(crate) use crate::common::far_stores::Mood;
use crate::common::far_stores::{FakeKeys, FarTenants};

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
    pub(crate) keys: Arc<FakeKeys>,
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
    let (keys, tenants) = (FakeKeys::far(), FarTenants::far());
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

/// Everything that one process holds, with stores in memory.
pub(crate) struct Near {
    pub(crate) keys: Arc<FakeKeys>,
    pub(crate) clock: ManualClock,
    pub(crate) admin: Keys,
    pub(crate) auth: KeyAuthenticator,
}

pub(crate) fn near() -> Near {
    let keys = FakeKeys::near();
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
