use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

use super::{Grant, Identity, guard::parse_network};
use crate::{
    auth::{
        ApiKey, KeyDigest, KeyFormat, KeyHasher, KeyRecord, KeySecret, KeyStore, KeyStoreError,
        RandomError,
    },
    clock::{Clock, Timestamp},
    error::ConfigError,
    id::{Environment, KeyId, PlanName, TenantId},
    limit::Rule,
    plan::{CompiledPlan, PlanCatalog},
    tenant::{Tenant, TenantRecord, TenantStore, TenantStoreError},
};

/// Issues, rotates and revokes keys. Not for the request path: for the sign-up page, the portal, a script.
///
/// Cloning gives a second handle to the same stores.
#[derive(Clone, Debug)]
pub struct Keys {
    catalog: PlanCatalog,
    clock: Arc<dyn Clock>,
    format: KeyFormat,
    hasher: KeyHasher,
    keys: Arc<dyn KeyStore>,
    tenants: Arc<dyn TenantStore>,
}

/// What a new key is to be; checked by [`Keys::issue`].
#[derive(Clone, Debug)]
#[must_use]
pub struct NewKey {
    environment: Environment,
    life: Life,
    limits: Vec<Rule>,
    networks: Vec<Box<str>>,
    own_plan: Option<Box<str>>,
    plan: Option<Box<str>>,
    scopes: BTreeSet<Arc<str>>,
    tenant: Box<str>,
}

#[derive(Clone, Copy, Debug)]
enum Life {
    For(Duration),
    Unbounded,
    Until(Timestamp),
}

/// A key just made: the only time that the key itself is at hand.
#[derive(Debug)]
#[non_exhaustive]
pub struct IssuedKey {
    /// The key, to be handed to its owner once.
    pub key: ApiKey,
    /// What the store keeps.
    pub record: Arc<KeyRecord>,
}

/// A key was not issued, rotated or revoked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// A field of the [`NewKey`] is not valid.
    #[error("the new key cannot be made as described")]
    Invalid(#[from] ConfigError),
    /// The tenant does not exist, and no plan was named to create it with.
    #[error("there is no tenant `{tenant}`: name a `plan` to create it with")]
    NoPlan {
        /// The tenant.
        tenant: TenantId,
    },
    /// The tenant exists and is on another plan than the one named.
    #[error(
        "tenant `{tenant}` is on plan `{plan}`: leave `plan` out, or name `plan_override` for a plan of this \
         key alone"
    )]
    OtherPlan {
        /// The tenant.
        tenant: TenantId,
        /// The plan that it is on.
        plan: PlanName,
    },
    /// The operating system gave no random bytes.
    #[error("no new key could be made")]
    Random(#[from] RandomError),
    /// There is no such key.
    #[error("there is no key `{id}`")]
    NotFound {
        /// The id that was given.
        id: KeyId,
    },
    /// The key was revoked or has expired: it cannot be rotated.
    #[error("key `{id}` no longer works: issue a new one")]
    NotUsable {
        /// The key.
        id: KeyId,
    },
    /// The key store failed.
    #[error("the key store did not do it")]
    Store(#[from] KeyStoreError),
    /// The tenant store failed.
    #[error("the tenant store did not do it")]
    TenantStore(#[from] TenantStoreError),
    /// The catalog has no such plan.
    #[error("the catalog has no plan `{plan}`")]
    UnknownPlan {
        /// The plan that was named.
        plan: PlanName,
    },
}

impl NewKey {
    /// A live key of a tenant: without scopes, expiry and networks of its own, on the tenant's plan.
    pub fn for_tenant(tenant: impl AsRef<str>) -> Self {
        Self {
            environment: Environment::Live,
            life: Life::Unbounded,
            limits: Vec::new(),
            networks: Vec::new(),
            own_plan: None,
            plan: None,
            scopes: BTreeSet::new(),
            tenant: tenant.as_ref().into(),
        }
    }

    /// The tenant's plan: created on it when the tenant does not exist yet, and an error when it exists on
    /// another.
    pub fn plan(mut self, plan: impl AsRef<str>) -> Self {
        self.plan = Some(plan.as_ref().into());
        self
    }

    /// A plan for this key instead of the tenant's.
    pub fn plan_override(mut self, plan: impl AsRef<str>) -> Self {
        self.own_plan = Some(plan.as_ref().into());
        self
    }

    /// Live or test; live unless set.
    pub const fn environment(mut self, environment: Environment) -> Self {
        self.environment = environment;
        self
    }

    /// What the key may do; added to what was named before.
    pub fn scopes(mut self, scopes: impl IntoIterator<Item = impl Into<Arc<str>>>) -> Self {
        self.scopes.extend(scopes.into_iter().map(Into::into));
        self
    }

    /// The key stops working after this time; never unless set.
    pub const fn expires_in(mut self, life: Duration) -> Self {
        self.life = Life::For(life);
        self
    }

    /// The key stops working at this time; never unless set.
    pub const fn expires_at(mut self, at: Timestamp) -> Self {
        self.life = Life::Until(at);
        self
    }

    /// Networks (`10.0.0.0/8`) and addresses that the key may be used from; any unless set.
    pub fn allow_networks(mut self, networks: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let networks = networks.into_iter();
        self.networks
            .extend(networks.map(|text| Box::from(text.as_ref())));
        self
    }

    /// Rules of this key: each replaces the plan's rule of the same name, or is added.
    pub fn limits(mut self, rules: impl IntoIterator<Item = impl Into<Rule>>) -> Self {
        self.limits.extend(rules.into_iter().map(Into::into));
        self
    }
}

impl Keys {
    /// Keys in these stores, in the default [`KeyFormat`], known by SHA-256.
    #[must_use]
    pub fn new(
        keys: Arc<dyn KeyStore>,
        tenants: Arc<dyn TenantStore>,
        catalog: PlanCatalog,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            catalog,
            clock,
            format: KeyFormat::default(),
            hasher: KeyHasher::default(),
            keys,
            tenants,
        }
    }

    /// New keys have this format; the authenticator must accept it.
    #[must_use]
    pub fn format(mut self, format: KeyFormat) -> Self {
        self.format = format;
        self
    }

    /// How keys become digests; the authenticator must use the same.
    #[must_use]
    pub fn hasher(mut self, hasher: KeyHasher) -> Self {
        self.hasher = hasher;
        self
    }

    /// Makes a key, and its tenant when that does not exist and a plan is named. Everything is checked before
    /// anything is written.
    ///
    /// # Errors
    ///
    /// [`KeysError::Invalid`] names a field that is not valid, [`KeysError::UnknownPlan`] a plan that is not
    /// in the catalog; [`KeysError::NoPlan`] and [`KeysError::OtherPlan`] where tenant and plan do not fit;
    /// or a failure of a store.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may leave the tenant created without the key, or a key that nobody holds.
    pub async fn issue(&self, new: NewKey) -> Result<IssuedKey, KeysError> {
        let mut record = self.prepare(random_id()?, new).await?;
        let key = self.format.generate(record.environment)?;
        record.shown = key.shown();
        let digest = self.hasher.digest(key.expose());
        let record = self.keys.create(digest, record).await?;
        Ok(IssuedKey { key, record })
    }

    /// Makes the key of a cause, such as a checkout, or gives the same one again where it was made before: exactly one
    /// for each cause and environment, however often and by how many at once it is asked for.
    ///
    /// The key follows from the cause and the secret, so that it can be shown again after a crash without being kept
    /// anywhere. `new` matters the first time only.
    ///
    /// # Errors
    ///
    /// As [`Keys::issue`].
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have made the key; asking again gives it.
    pub async fn issue_derived(
        &self,
        new: NewKey,
        secret: &KeySecret,
        cause: &str,
    ) -> Result<IssuedKey, KeysError> {
        let environment = new.environment;
        if let Some(issued) = self.find_derived(environment, secret, cause).await? {
            return Ok(issued);
        }
        let mut record = self.prepare(secret.id(environment, cause), new).await?;
        let key = self.format.derive(environment, secret, cause);
        record.shown = key.shown();
        let digest = self.hasher.digest(key.expose());
        match self.keys.create(digest, record).await {
            Ok(record) => Ok(IssuedKey { key, record }),
            // Somebody else does the same at the same time.
            Err(KeyStoreError::AlreadyExists) => {
                let found = self.find_derived(environment, secret, cause).await?;
                found.ok_or(KeysError::Store(KeyStoreError::AlreadyExists))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The key of a cause, where [`issue_derived`](Self::issue_derived) has made it; also when it was revoked since.
    ///
    /// # Errors
    ///
    /// [`KeysError::Store`] when the store failed.
    pub async fn find_derived(
        &self,
        environment: Environment,
        secret: &KeySecret,
        cause: &str,
    ) -> Result<Option<IssuedKey>, KeysError> {
        let found = self.keys.find_by_id(&secret.id(environment, cause)).await?;
        Ok(found.map(|record| IssuedKey {
            key: self.format.derive(environment, secret, cause),
            record,
        }))
    }

    /// The record of a new key, with everything checked and its tenant made.
    async fn prepare(&self, id: KeyId, new: NewKey) -> Result<KeyRecord, KeysError> {
        let now = self.clock.now().wall();
        let tenant = TenantId::new(&new.tenant).map_err(|source| invalid("tenant", source))?;
        let plan = self.plan("plan", new.plan.as_deref())?;
        let own_plan = self.plan("plan_override", new.own_plan.as_deref())?;
        let mut record = KeyRecord::new(id, tenant.clone(), Arc::from(""), now);
        record.allowed_networks = networks(&new.networks)?;
        record.environment = new.environment;
        record.expires_at = new.life.end(now)?;
        record.limits = new.limits;
        record.plan = own_plan.as_ref().map(|plan| plan.name().clone());
        record.scopes = new.scopes;
        let present = self.tenants.find(&tenant).await?;
        let owner = match (present, plan) {
            (Some(present), plan) => on_plan(present, plan.as_deref())?,
            (None, None) => return Err(KeysError::NoPlan { tenant }),
            (None, Some(plan)) => {
                let owner = TenantRecord::new(tenant, plan.name().clone());
                check_limits(&record, &owner, &plan, own_plan.as_ref())?;
                self.create_tenant(owner, &plan).await?
            }
        };
        if let Some(plan) = self.catalog.find(&owner.plan) {
            check_limits(&record, &owner, &plan, own_plan.as_ref())?;
        }
        Ok(record)
    }

    /// Makes a successor of a key, alike in everything, and lets the old one work for `overlap` longer. The
    /// old key's own expiry is never put off. A key that expires gets a successor of the same whole life.
    /// Both count as one key: a rotation doubles no quota.
    ///
    /// # Errors
    ///
    /// [`KeysError::NotFound`]; [`KeysError::NotUsable`] for a key that was revoked or has expired; or a failure of
    /// the store.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have rotated the key, and nobody holds the new one: rotate that in turn.
    pub async fn rotate(&self, id: &KeyId, overlap: Duration) -> Result<IssuedKey, KeysError> {
        let now = self.clock.now().wall();
        let old = self.keys.find_by_id(id).await?;
        let old = old.ok_or_else(|| KeysError::NotFound { id: id.clone() })?;
        if !old.is_usable_at(now) {
            return Err(KeysError::NotUsable { id: id.clone() });
        }
        let key = self.format.generate(old.environment)?;
        let digest = self.hasher.digest(key.expose());
        let mut record = KeyRecord::clone(&old);
        record.counts_as = Some(old.counts_as.clone().unwrap_or_else(|| old.id.clone()));
        record.id = random_id()?;
        record.shown = key.shown();
        record.created_at = now;
        record.expires_at = old
            .expires_at
            .map(|end| now.saturating_add(end.saturating_since(old.created_at)));
        record.version = 0;
        let end = now.saturating_add(overlap);
        let rotated = self.keys.rotate(&old.id, end, digest, record, now).await;
        let record = rotated.map_err(|error| about(id, error))?;
        Ok(IssuedKey { key, record })
    }

    /// Ends a key for good, at once where the store announces changes. Revoking twice keeps the first time.
    ///
    /// # Errors
    ///
    /// [`KeysError::NotFound`], or [`KeysError::Store`] when the store failed.
    pub async fn revoke(&self, id: &KeyId) -> Result<Arc<KeyRecord>, KeysError> {
        let now = self.clock.now().wall();
        let revoked = self.keys.revoke(id, now).await;
        revoked.map_err(|error| about(id, error))
    }

    /// The digest of a key as the stores of this gate know it: what a document names the key by, see
    /// [`gate::Document`](crate::gate::Document). Never store the key itself.
    #[must_use]
    pub fn digest(&self, key: &str) -> KeyDigest {
        self.hasher.digest(key)
    }

    /// All keys of a tenant, revoked ones included, oldest first.
    ///
    /// # Errors
    ///
    /// [`KeysError::Store`] when the store failed.
    pub async fn list(&self, tenant: &TenantId) -> Result<Vec<Arc<KeyRecord>>, KeysError> {
        Ok(self.keys.list(tenant).await?)
    }

    /// When the keys of a tenant were last used, to about a minute and some seconds late. A key that was never used
    /// is absent, as are all where the store keeps no uses.
    ///
    /// # Errors
    ///
    /// [`KeysError::Store`] when the store failed.
    pub async fn last_used(
        &self,
        tenant: &TenantId,
    ) -> Result<HashMap<KeyId, Timestamp>, KeysError> {
        Ok(self.keys.last_used(tenant).await?)
    }

    fn plan(
        &self,
        field: &'static str,
        name: Option<&str>,
    ) -> Result<Option<Arc<CompiledPlan>>, KeysError> {
        let Some(name) = name else { return Ok(None) };
        let plan = PlanName::new(name).map_err(|source| invalid(field, source))?;
        match self.catalog.find(&plan) {
            Some(plan) => Ok(Some(plan)),
            None => Err(KeysError::UnknownPlan { plan }),
        }
    }

    async fn create_tenant(
        &self,
        owner: TenantRecord,
        plan: &CompiledPlan,
    ) -> Result<Arc<TenantRecord>, KeysError> {
        let id = owner.id.clone();
        match self.tenants.create(owner).await {
            // Somebody else issues the tenant's first key at the same time.
            Err(TenantStoreError::AlreadyExists) => {
                let present = self.tenants.find(&id).await?;
                on_plan(present.ok_or(TenantStoreError::NotFound)?, Some(plan))
            }
            created => Ok(created?),
        }
    }
}

impl Life {
    fn end(self, now: Timestamp) -> Result<Option<Timestamp>, ConfigError> {
        let end = match self {
            Self::For(life) => now.saturating_add(life),
            Self::Unbounded => return Ok(None),
            Self::Until(end) => end,
        };
        if end <= now {
            let reason = "the key would have expired before it is issued: name a time to come";
            return Err(ConfigError::new("expires_at", reason));
        }
        Ok(Some(end))
    }
}

fn on_plan(
    present: Arc<TenantRecord>,
    plan: Option<&CompiledPlan>,
) -> Result<Arc<TenantRecord>, KeysError> {
    if plan.is_some_and(|plan| *plan.name() != present.plan) {
        return Err(KeysError::OtherPlan {
            tenant: present.id.clone(),
            plan: present.plan.clone(),
        });
    }
    Ok(present)
}

/// The key's own rules must fit the plan that they change.
fn check_limits(
    record: &KeyRecord,
    owner: &TenantRecord,
    plan: &Arc<CompiledPlan>,
    own_plan: Option<&Arc<CompiledPlan>>,
) -> Result<(), ConfigError> {
    let tenant = Tenant::new(Arc::new(owner.clone()));
    let plan = Arc::clone(own_plan.unwrap_or(plan));
    Identity::new(tenant, plan, Grant::from(record)).map(drop)
}

fn networks(texts: &[Box<str>]) -> Result<Vec<IpNet>, ConfigError> {
    let numbered = texts.iter().enumerate();
    numbered
        .map(|(place, text)| parse_network(text, place))
        .collect()
}

fn invalid(field: &'static str, source: crate::id::InvalidId) -> KeysError {
    ConfigError::new(field, source.to_string())
        .caused_by(source)
        .into()
}

/// A name that tells nothing of the key: 128 random bits.
fn random_id() -> Result<KeyId, KeysError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(RandomError)?;
    let text = format!("key_{:032x}", u128::from_be_bytes(random));
    KeyId::new(text).map_err(|source| invalid("id", source))
}

/// Names the key that the store speaks of.
fn about(id: &KeyId, error: KeyStoreError) -> KeysError {
    let id = id.clone();
    match error {
        KeyStoreError::NotFound => KeysError::NotFound { id },
        KeyStoreError::NotUsable => KeysError::NotUsable { id },
        error => KeysError::Store(error),
    }
}
