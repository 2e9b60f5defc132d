// cargo run --example custom_key_store
//! Keys kept in a store of one's own: here a table behind a lock, standing for the service's database.
//!
//! The store sees digests only. Before it serves a request, `conformance::key_store` holds it to the contract.

use std::{collections::BTreeMap, env, error::Error, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::{Router, routing::get};
use tokio::sync::RwLock;
use tollgate::{auth::*, clock::Timestamp, id::*, prelude::*};

/// One row for each key. A store that can announce changes would also keep the listeners of `subscribe`; this
/// one cannot, so a revoked key that was used just before works for ten seconds more.
#[derive(Debug, Default)]
struct Table(RwLock<Rows>);
type Rows = BTreeMap<KeyDigest, Arc<KeyRecord>>;
type Stored = Result<Arc<KeyRecord>, KeyStoreError>;

fn insert(rows: &mut Rows, digest: KeyDigest, mut record: KeyRecord) -> Stored {
    if rows.contains_key(&digest) || rows.values().any(|known| known.id == record.id) {
        return Err(KeyStoreError::AlreadyExists);
    }
    record.version = 1;
    rows.insert(digest, Arc::new(record));
    Ok(Arc::clone(&rows[&digest]))
}

fn row<'a>(rows: &'a mut Rows, id: &KeyId) -> Result<&'a mut KeyRecord, KeyStoreError> {
    let found = rows.values_mut().find(|record| record.id == *id);
    found.map(Arc::make_mut).ok_or(KeyStoreError::NotFound)
}

#[async_trait]
impl KeyStore for Table {
    async fn find(&self, digest: &KeyDigest) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
        Ok(self.0.read().await.get(digest).cloned())
    }

    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
        let rows = self.0.read().await;
        Ok(rows.values().find(|key| key.id == *id).cloned())
    }

    async fn list(&self, tenant: &TenantId) -> Result<Vec<Arc<KeyRecord>>, KeyStoreError> {
        let rows = self.0.read().await;
        let of_tenant = rows.values().filter(|key| key.tenant == *tenant);
        let mut keys: Vec<_> = of_tenant.cloned().collect();
        keys.sort_by_key(|record| record.created_at);
        Ok(keys)
    }

    async fn create(&self, digest: KeyDigest, record: KeyRecord) -> Stored {
        insert(&mut *self.0.write().await, digest, record)
    }

    async fn rotate(
        &self,
        old: &KeyId,
        until: Timestamp,
        digest: KeyDigest,
        record: KeyRecord,
        now: Timestamp,
    ) -> Stored {
        let mut rows = self.0.write().await;
        if !row(&mut rows, old)?.is_usable_at(now) {
            return Err(KeyStoreError::NotUsable);
        }
        let successor = insert(&mut rows, digest, record)?;
        let old = row(&mut rows, old)?;
        old.expires_at = Some(old.expires_at.map_or(until, |expiry| expiry.min(until)));
        old.version += 1;
        Ok(successor)
    }

    async fn revoke(&self, id: &KeyId, at: Timestamp) -> Stored {
        let mut rows = self.0.write().await;
        let record = row(&mut rows, id)?;
        if record.revoked_at.is_none() {
            record.revoked_at = Some(at);
            record.version += 1;
        }
        Ok(Arc::new(record.clone()))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tollgate::conformance::key_store(|| async { Table::default() }).await;
    println!("conformance: passed");

    let free = Plan::new("free").rule(Rate::per_second(5));
    let gate = Tollgate::builder()
        .plans([free])
        .keys(Table::default())
        .build()?;
    let acme = NewKey::for_tenant("acme").plan("free");
    let issued = gate.keys().issue(acme.clone()).await?;
    let spare = gate.keys().issue(acme).await?;
    gate.keys().revoke(&spare.record.id).await?;

    let hello = async |tenant: Tenant| format!("hello {}\n", tenant.id());
    let app = Router::new().route("/v1/hello", get(hello));
    let app = app.layer(gate.layer());
    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    println!("key: {}", issued.key.expose());
    println!("key revoked: {}", spare.key.expose());
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    let stop = async { drop(tokio::signal::ctrl_c().await) };
    axum::serve(listener, service)
        .with_graceful_shutdown(stop)
        .await?;
    println!("{:?}", gate.shutdown(Duration::from_secs(5)).await);
    Ok(())
}
