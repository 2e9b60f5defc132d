//! What the processes share beside the ledger.

use std::sync::Arc;

use async_trait::async_trait;
use redis::AsyncCommands as _;
use tollgate::{
    auth::{KeyDigest, KeyRecord, KeyStore, KeyStoreError},
    billing::{BillingEvent, BillingEventHandler, Handled, HandlerError},
    clock::Timestamp,
    id::{KeyId, TenantId},
    tenant::{TenantRecord, TenantStore, TenantStoreError},
};

/// Keys and tenants in Redis, as little as a provisioner needs of them.
#[derive(Clone)]
pub(crate) struct Far(pub(crate) redis::aio::MultiplexedConnection);

impl std::fmt::Debug for Far {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Far(..)")
    }
}

fn far(error: impl std::error::Error + Send + Sync + 'static) -> KeyStoreError {
    KeyStoreError::Unavailable(Box::new(error))
}

fn far_tenant(error: impl std::error::Error + Send + Sync + 'static) -> TenantStoreError {
    TenantStoreError::Unavailable(Box::new(error))
}

#[async_trait]
impl KeyStore for Far {
    async fn find(&self, _: &KeyDigest) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
        Ok(None)
    }

    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
        let text: Option<Vec<u8>> = self
            .0
            .clone()
            .hget("keys", id.as_str())
            .await
            .map_err(far)?;
        text.map(|text| serde_json::from_slice(&text).map(Arc::new).map_err(far))
            .transpose()
    }

    async fn list(&self, _: &TenantId) -> Result<Vec<Arc<KeyRecord>>, KeyStoreError> {
        Ok(Vec::new())
    }

    async fn create(
        &self,
        _: KeyDigest,
        record: KeyRecord,
    ) -> Result<Arc<KeyRecord>, KeyStoreError> {
        let text = serde_json::to_vec(&record).map_err(far)?;
        match self
            .0
            .clone()
            .hset_nx("keys", record.id.as_str(), text)
            .await
            .map_err(far)?
        {
            true => Ok(Arc::new(record)),
            false => Err(KeyStoreError::AlreadyExists),
        }
    }

    async fn rotate(
        &self,
        _: &KeyId,
        _: Timestamp,
        _: KeyDigest,
        _: KeyRecord,
        _: Timestamp,
    ) -> Result<Arc<KeyRecord>, KeyStoreError> {
        Err(KeyStoreError::ReadOnly)
    }

    async fn revoke(&self, _: &KeyId, _: Timestamp) -> Result<Arc<KeyRecord>, KeyStoreError> {
        Err(KeyStoreError::ReadOnly)
    }
}

const REPLACE: &str = "local old = redis.call('HGET', 'tenants', ARGV[1])
    if not old or cjson.decode(old).version ~= tonumber(ARGV[2]) then return 0 end
    redis.call('HSET', 'tenants', ARGV[1], ARGV[3]) return 1";

#[async_trait]
impl TenantStore for Far {
    async fn find(&self, id: &TenantId) -> Result<Option<Arc<TenantRecord>>, TenantStoreError> {
        let text: Option<Vec<u8>> = self
            .0
            .clone()
            .hget("tenants", id.as_str())
            .await
            .map_err(far_tenant)?;
        text.map(|text| {
            serde_json::from_slice(&text)
                .map(Arc::new)
                .map_err(far_tenant)
        })
        .transpose()
    }

    async fn create(
        &self,
        mut record: TenantRecord,
    ) -> Result<Arc<TenantRecord>, TenantStoreError> {
        record.version = 1;
        let text = serde_json::to_vec(&record).map_err(far_tenant)?;
        let made = self
            .0
            .clone()
            .hset_nx("tenants", record.id.as_str(), text)
            .await;
        match made.map_err(far_tenant)? {
            true => Ok(Arc::new(record)),
            false => Err(TenantStoreError::AlreadyExists),
        }
    }

    async fn replace(
        &self,
        mut record: TenantRecord,
    ) -> Result<Arc<TenantRecord>, TenantStoreError> {
        let version = record.version;
        record.version += 1;
        let text = serde_json::to_vec(&record).map_err(far_tenant)?;
        let mut command = redis::cmd("EVAL");
        command
            .arg(REPLACE)
            .arg(0)
            .arg(record.id.as_str())
            .arg(version)
            .arg(text);
        match command
            .query_async(&mut self.0.clone())
            .await
            .map_err(far_tenant)?
        {
            1 => Ok(Arc::new(record)),
            _ => Err(TenantStoreError::Conflict),
        }
    }
}

/// A handler of one's own: counts how often it sees each event.
#[async_trait]
impl BillingEventHandler for Far {
    async fn handle(&self, event: &BillingEvent) -> Result<Handled, HandlerError> {
        let seen = self.0.clone().hincr("seen", event.id(), 1).await;
        let _: i64 = seen.map_err(|error| HandlerError::Unavailable(error.into()))?;
        Ok(Handled::Applied)
    }
}
