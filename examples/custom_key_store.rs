// cargo run --example custom_key_store
//! Keys kept in a store of one's own: here a table behind a lock, standing for the service's database.
//!
//! The store sees digests only. `conformance::key_store` checks it against the trait's contract before it
//! serves the first request.

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use axum::{Router, routing::get};
use tokio::sync::RwLock;
use tollgate::{
    Tollgate,
    auth::{KeyDigest, KeyListener, KeyRecord, KeyStore, KeyStoreError},
    clock::Timestamp,
    id::{KeyId, TenantId},
    identity::NewKey,
    limit::Rate,
    plan::Plan,
    tenant::Tenant,
};

/// One row for each key. Cloning gives a second handle to the same table.
#[derive(Clone, Debug, Default)]
struct Table {
    rows: Arc<RwLock<BTreeMap<KeyDigest, Arc<KeyRecord>>>>,
    listeners: Arc<std::sync::RwLock<Vec<Weak<dyn KeyListener>>>>,
}

type Rows = BTreeMap<KeyDigest, Arc<KeyRecord>>;

fn position(rows: &Rows, id: &KeyId) -> Result<(KeyDigest, KeyRecord), KeyStoreError> {
    let row = rows.iter().find(|(_, record)| record.id == *id);
    row.map(|(digest, record)| (*digest, KeyRecord::clone(record)))
        .ok_or(KeyStoreError::NotFound)
}

fn insert(
    rows: &mut Rows,
    digest: KeyDigest,
    mut record: KeyRecord,
) -> Result<Arc<KeyRecord>, KeyStoreError> {
    if rows.contains_key(&digest) || rows.values().any(|known| known.id == record.id) {
        return Err(KeyStoreError::AlreadyExists);
    }
    record.version = 1;
    let record = Arc::new(record);
    rows.insert(digest, Arc::clone(&record));
    Ok(record)
}

impl Table {
    fn changed(&self, digest: &KeyDigest, version: u64) {
        let listeners = self
            .listeners
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        listeners
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|listener| listener.key_changed(digest, version));
    }
}

#[async_trait]
impl KeyStore for Table {
    async fn find(&self, digest: &KeyDigest) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
        Ok(self.rows.read().await.get(digest).cloned())
    }

    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
        Ok(self
            .rows
            .read()
            .await
            .values()
            .find(|record| record.id == *id)
            .cloned())
    }

    async fn list(&self, tenant: &TenantId) -> Result<Vec<Arc<KeyRecord>>, KeyStoreError> {
        let rows = self.rows.read().await;
        let mut keys: Vec<_> = rows
            .values()
            .filter(|record| record.tenant == *tenant)
            .cloned()
            .collect();
        keys.sort_by_key(|record| record.created_at);
        Ok(keys)
    }

    async fn create(
        &self,
        digest: KeyDigest,
        record: KeyRecord,
    ) -> Result<Arc<KeyRecord>, KeyStoreError> {
        let record = insert(&mut *self.rows.write().await, digest, record)?;
        self.changed(&digest, record.version);
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
        let mut rows = self.rows.write().await;
        let (old_digest, mut old) = position(&rows, old)?;
        if !old.is_usable_at(now) {
            return Err(KeyStoreError::NotUsable);
        }
        let successor = insert(&mut rows, digest, record)?;
        old.expires_at = Some(
            old.expires_at
                .map_or(old_expires_at, |expiry| expiry.min(old_expires_at)),
        );
        old.version += 1;
        let version = old.version;
        rows.insert(old_digest, Arc::new(old));
        drop(rows);
        self.changed(&old_digest, version);
        self.changed(&digest, successor.version);
        Ok(successor)
    }

    async fn revoke(&self, id: &KeyId, at: Timestamp) -> Result<Arc<KeyRecord>, KeyStoreError> {
        let mut rows = self.rows.write().await;
        let (digest, mut record) = position(&rows, id)?;
        if record.revoked_at.is_none() {
            record.revoked_at = Some(at);
            record.version += 1;
        }
        let record = Arc::new(record);
        rows.insert(digest, Arc::clone(&record));
        drop(rows);
        // Caches forget the key now instead of at the end of its ten seconds.
        self.changed(&digest, record.version);
        Ok(record)
    }

    fn subscribe(&self, listener: Weak<dyn KeyListener>) {
        self.listeners
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .push(listener);
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tollgate::conformance::key_store(|| async { Table::default() }).await;
    println!("conformance: passed");

    let gate = Tollgate::builder()
        .plans([Plan::new("free").rule(Rate::per_second(5))])
        .keys(Table::default())
        .build()?;
    let issued = gate
        .keys()
        .issue(NewKey::for_tenant("acme").plan("free"))
        .await?;
    let spare = gate.keys().issue(NewKey::for_tenant("acme")).await?;
    gate.keys().revoke(&spare.record.id).await?;

    let app = Router::new()
        .route(
            "/v1/hello",
            get(|tenant: Tenant| async move { format!("hello {}\n", tenant.id()) }),
        )
        .layer(gate.layer());

    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    println!("key: {}", issued.key.expose());
    println!("key revoked: {}", spare.key.expose());
    axum::serve(
        listener,
        app.into_make_service_with_connect_info::<SocketAddr>(),
    )
    .with_graceful_shutdown(async {
        let _ = tokio::signal::ctrl_c().await;
    })
    .await?;
    let _report = gate.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
