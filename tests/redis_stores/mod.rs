//! Keys, tenants, plans and counters in a real Redis.

mod conform;
mod counters;
mod faults;
mod gates;
mod keyspace;
mod model;
mod plans;
mod processes;
mod push;

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tollgate::{
    auth::{KeyDigest, KeyListener, KeyRecord, KeyStore, RedisKeyStore},
    clock::Timestamp,
    id::{KeyId, PlanName, TenantId},
    redis_support::{Redis, RedisConnector},
    tenant::{RedisTenantStore, TenantListener, TenantRecord},
};

use crate::common::redis::RedisServer;

/// Longer than a busy machine takes for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

fn patient(connector: RedisConnector) -> RedisConnector {
    connector
        .connect_timeout(PATIENCE)
        .response_timeout(PATIENCE)
}

async fn redis_at(url: &str) -> Redis {
    connect(patient(RedisConnector::single(url).expect("a URL"))).await
}

async fn redis(server: &RedisServer) -> Redis {
    redis_at(&server.url()).await
}

async fn connect(connector: RedisConnector) -> Redis {
    Redis::builder(connector)
        .connect()
        .await
        .expect("a server that can be used")
}

fn noon() -> Timestamp {
    Timestamp::from_unix_seconds(1_768_478_400)
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("an identifier")
}

fn plan(name: &str) -> PlanName {
    PlanName::new(name).expect("an identifier")
}

fn id(name: &str) -> KeyId {
    KeyId::new(name).expect("an identifier")
}

fn digest(n: u64) -> KeyDigest {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    KeyDigest::from_bytes(bytes)
}

fn record(name: &str) -> KeyRecord {
    KeyRecord::new(id(name), tenant("acme"), "tg_live_…0000".into(), noon())
}

fn owner(name: &str) -> TenantRecord {
    TenantRecord::new(tenant(name), plan("free"))
}

/// What one process heard.
#[derive(Debug, Default)]
struct Heard {
    keys: Mutex<Vec<(KeyDigest, u64)>>,
    tenants: Mutex<Vec<TenantId>>,
    n_keys_lost: AtomicUsize,
    n_tenants_lost: AtomicUsize,
}

impl Heard {
    fn has_key(&self, digest: &KeyDigest, version: u64) -> bool {
        let keys = self.keys.lock().expect("no panic holds the lock");
        keys.contains(&(*digest, version))
    }

    fn n_lost(&self) -> usize {
        self.n_keys_lost.load(Ordering::SeqCst)
    }
}

impl KeyListener for Heard {
    fn key_changed(&self, digest: &KeyDigest, version: u64) {
        let mut keys = self.keys.lock().expect("no panic holds the lock");
        keys.push((*digest, version));
    }

    fn keys_lost(&self) {
        self.n_keys_lost.fetch_add(1, Ordering::SeqCst);
    }
}

impl TenantListener for Heard {
    fn tenant_changed(&self, id: &TenantId) {
        let mut tenants = self.tenants.lock().expect("no panic holds the lock");
        tenants.push(id.clone());
    }

    fn tenants_lost(&self) {
        self.n_tenants_lost.fetch_add(1, Ordering::SeqCst);
    }
}

/// A process that listens, its subscription up.
struct Listening {
    heard: Arc<Heard>,
    keys: RedisKeyStore,
    _tenants: RedisTenantStore,
}

async fn listening(redis: &Redis) -> Listening {
    use tollgate::tenant::TenantStore as _;
    let heard = Arc::new(Heard::default());
    let (keys, tenants) = (RedisKeyStore::new(redis), RedisTenantStore::new(redis));
    let of_keys: Weak<Heard> = Arc::downgrade(&heard);
    let of_tenants: Weak<Heard> = Weak::clone(&of_keys);
    keys.subscribe(of_keys);
    tenants.subscribe(of_tenants);
    Listening {
        heard,
        keys,
        _tenants: tenants,
    }
}

/// Waits for what a busy machine takes its time for.
async fn within(seconds: u64, what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..seconds * 200 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what} does not happen in {seconds} s");
}

/// Waits until a server has so many subscribers to the changes.
async fn subscribed(server: &RedisServer, n: i64) {
    within(10, "a subscription", || {
        let (_, subscribers): (String, i64) = server.query(&["PUBSUB", "NUMSUB", "tg:1:changes"]);
        subscribers == n
    })
    .await;
}
