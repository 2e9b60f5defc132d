//! Tenants in Redis, shared by every process.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use async_trait::async_trait;

use super::{TenantListener, TenantRecord, TenantStore, TenantStoreError};
use crate::{
    id::TenantId,
    listeners::Listeners,
    redis_support::{
        Account, ChangeListener, Foreign, Redis, RedisConnectError, VersionedError, find_versioned,
        replace_versioned,
    },
};

/// Tenants in Redis, shared by every process.
///
/// # What is guaranteed
///
/// - **Compare-and-set**: a replacement is one script, which compares the version: of any number of processes that
///   replace one version exactly one succeeds.
/// - **Nothing is deleted**, and no record has a lifetime: never set an `allkeys-` policy on the server.
/// - **Pushed**: every change is published by the script that makes it, so a plan, a suspension or a payment takes
///   effect in every process with its next call. A process that may have missed a change reads all tenants again as
///   they call.
/// - **Sent once**: a change whose answer does not come is not sent again and fails with
///   [`TenantStoreError::Unavailable`]; it may have been made. Read the tenant again, as after
///   [`TenantStoreError::Conflict`].
/// - **A failover loses what was not replicated.** Whoever learns of payments from elsewhere writes what it knows again.
///
/// Cloning gives another handle.
#[derive(Clone)]
pub struct RedisTenantStore {
    redis: Redis,
    told: Arc<Told>,
}

/// Those who hear of changed tenants.
#[derive(Default)]
struct Told(Listeners<dyn TenantListener>);

impl ChangeListener for Told {
    fn changed(&self, what: &str) {
        // An id may hold spaces.
        let id = what.strip_prefix("t ").map(TenantId::new);
        if let Some(Ok(id)) = id {
            self.0.tell(|listener| listener.tenant_changed(&id));
        }
    }

    fn lost(&self) {
        self.0.tell(TenantListener::tenants_lost);
    }
}

impl From<VersionedError> for TenantStoreError {
    fn from(error: VersionedError) -> Self {
        match error {
            VersionedError::Exists => Self::AlreadyExists,
            VersionedError::Missing => Self::NotFound,
            VersionedError::Conflict => Self::Conflict,
            VersionedError::Corrupt(cause) => Self::Corrupt(cause),
            VersionedError::Fault(fault) => Self::Unavailable(fault.into()),
        }
    }
}

impl RedisTenantStore {
    /// A store over a handle that is connected already.
    #[must_use]
    pub fn new(redis: &Redis) -> Self {
        let told = Arc::new(Told::default());
        let listener: Weak<Told> = Arc::downgrade(&told);
        redis.listen(listener);
        Self {
            redis: redis.clone(),
            told,
        }
    }

    /// Connects to one server with all defaults; share a [`Redis`] where keys or plans are kept there too.
    ///
    /// # Errors
    ///
    /// [`RedisConnectError`] when the URL cannot be read, or the server cannot be reached or used.
    pub async fn connect(url: impl AsRef<str>) -> Result<Self, RedisConnectError> {
        Ok(Self::new(&Redis::connect(url).await?))
    }

    async fn write(
        &self,
        mut record: TenantRecord,
        read: Option<u64>,
    ) -> Result<Arc<TenantRecord>, TenantStoreError> {
        let id = record.id.clone();
        let key = self.redis.account(Account::Tenant(id.as_str()));
        let document = serde_json::to_string(&record)
            .map_err(|error| TenantStoreError::Corrupt(error.into()))?;
        let what = format!("t {id}");
        record.version = replace_versioned(&self.redis, &key, read, &document, &what).await?;
        self.told.0.tell(|listener| listener.tenant_changed(&id));
        Ok(Arc::new(record))
    }
}

#[async_trait]
impl TenantStore for RedisTenantStore {
    async fn find(&self, id: &TenantId) -> Result<Option<Arc<TenantRecord>>, TenantStoreError> {
        let key = self.redis.account(Account::Tenant(id.as_str()));
        let Some((document, version)) = find_versioned(&self.redis, &key).await? else {
            return Ok(None);
        };
        let mut record: TenantRecord = serde_json::from_str(&document).map_err(|error| {
            self.redis.distrust();
            TenantStoreError::Corrupt(error.into())
        })?;
        if record.id != *id {
            self.redis.distrust();
            return Err(TenantStoreError::Corrupt(Foreign::at(&key).into()));
        }
        record.version = version;
        Ok(Some(Arc::new(record)))
    }

    async fn create(&self, record: TenantRecord) -> Result<Arc<TenantRecord>, TenantStoreError> {
        self.write(record, None).await
    }

    async fn replace(&self, record: TenantRecord) -> Result<Arc<TenantRecord>, TenantStoreError> {
        let read = Some(record.version);
        self.write(record, read).await
    }

    fn subscribe(&self, listener: Weak<dyn TenantListener>) {
        self.told.0.add(listener);
    }
}

impl fmt::Debug for RedisTenantStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisTenantStore")
            .field("redis", &self.redis)
            .finish_non_exhaustive()
    }
}
