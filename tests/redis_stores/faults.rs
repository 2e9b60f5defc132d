//! Every way in which Redis gives no usable answer: an error that says which, never a panic, and it passes.

use std::time::Duration;

use tollgate::{
    auth::{KeyStore, KeyStoreError, KeyUse, RedisKeyStore},
    plan::{Plan, PlanDocument, RedisPlans, RedisPlansError},
    redis_support::{Redis, RedisConnector},
    tenant::{RedisTenantStore, TenantStore, TenantStoreError},
};

use super::{connect, digest, id, noon, owner, record, redis, tenant};
use crate::common::{
    fault_proxy::{Fault, FaultProxy},
    redis::RedisServer,
};

struct Stores {
    keys: RedisKeyStore,
    tenants: RedisTenantStore,
    plans: RedisPlans,
}

impl Stores {
    fn new(redis: &Redis) -> Self {
        Self {
            keys: RedisKeyStore::new(redis),
            tenants: RedisTenantStore::new(redis),
            plans: RedisPlans::new(redis),
        }
    }
}

fn free() -> PlanDocument {
    [Plan::new("free")].into_iter().collect()
}

async fn behind(proxy: &FaultProxy) -> Stores {
    let connector = RedisConnector::single(proxy.url()).unwrap();
    let connector = connector
        .connect_timeout(Duration::from_secs(2))
        .response_timeout(Duration::from_millis(250));
    Stores::new(&connect(connector).await)
}

fn unavailable<T: std::fmt::Debug>(result: &Result<T, KeyStoreError>, fault: &Fault) {
    assert!(
        matches!(result, Err(KeyStoreError::Unavailable(_))),
        "{fault:?}: {result:?}"
    );
}

/// Waits until the store answers again.
async fn recovers(keys: &RedisKeyStore, fault: &Fault) {
    for _ in 0..200 {
        if keys.find(&digest(1)).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the store does not recover from {fault:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_the_network_is_unavailable_and_passes() {
    let server = RedisServer::start();
    let proxy = FaultProxy::before(server.port).await;
    let stores = behind(&proxy).await;
    let keys = &stores.keys;
    keys.create(digest(1), record("k1")).await.unwrap();
    for (n, fault) in [
        Fault::Hold,
        Fault::Delay(Duration::from_millis(700)),
        Fault::CutAfter(0),
        Fault::CutAfter(1),
        Fault::CutAfter(7),
        Fault::Refuse,
    ]
    .into_iter()
    .enumerate()
    {
        let n = 10 + n as u64;
        let name = format!("k{n}");
        proxy.set(fault.clone());
        unavailable(&keys.find(&digest(1)).await, &fault);
        unavailable(&keys.create(digest(n), record(&name)).await, &fault);
        let unread = stores.tenants.find(&tenant("acme")).await;
        assert!(
            matches!(unread, Err(TenantStoreError::Unavailable(_))),
            "{unread:?}"
        );
        proxy.set(Fault::None);
        recovers(keys, &fault).await;
        // Whatever became of it: once made it is whole, and it is never made twice.
        match keys.create(digest(n), record(&name)).await {
            Ok(_) | Err(KeyStoreError::AlreadyExists) => {}
            other => panic!("{fault:?}: {other:?}"),
        }
        let found = keys.find(&digest(n)).await.unwrap();
        assert_eq!(keys.find_by_id(&id(&name)).await.unwrap(), found);
        let listed = keys.list(&tenant("acme")).await.unwrap();
        assert_eq!(
            listed
                .iter()
                .filter(|record| record.id == id(&name))
                .count(),
            1
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_refusal_of_a_server_is_unavailable_and_changes_nothing() {
    let server = RedisServer::start();
    let proxy = FaultProxy::before(server.port).await;
    let stores = behind(&proxy).await;
    let keys = &stores.keys;
    keys.create(digest(1), record("k1")).await.unwrap();
    stores.tenants.create(owner("acme")).await.unwrap();
    for answer in [
        "-LOADING Redis is loading the dataset in memory",
        "-READONLY You can't write against a read only replica.",
        "-OOM command not allowed when used memory > 'maxmemory'.",
        "-BUSY Redis is busy running a script.",
        "-MASTERDOWN Link with MASTER is down",
        "-MISCONF Redis is configured to save RDB snapshots",
        "-NOPERM this user has no permissions to run the 'evalsha' command",
        "-CLUSTERDOWN The cluster is down",
        "-TRYAGAIN Multiple keys request during rehashing of slot",
        "-ERR something new",
        "$-1",
        "*0",
        ":9",
        "+what",
        "*1\r\n:1",
    ] {
        let fault = Fault::Answer(answer.to_owned());
        proxy.set(fault.clone());
        let revoked = keys.revoke(&id("k1"), noon()).await;
        assert!(
            matches!(
                revoked,
                Err(KeyStoreError::Unavailable(_) | KeyStoreError::Corrupt(_))
            ),
            "{answer}: {revoked:?}"
        );
        let replaced = stores.tenants.create(owner("other")).await;
        assert!(
            matches!(
                replaced,
                Err(TenantStoreError::Unavailable(_) | TenantStoreError::Corrupt(_))
            ),
            "{answer}: {replaced:?}"
        );
        stores.plans.publish(&free(), None).await.unwrap_err();
        proxy.set(Fault::None);
        recovers(keys, &fault).await;
        let record = keys.find(&digest(1)).await.unwrap().unwrap();
        assert_eq!((record.version, record.revoked_at), (1, None), "{answer}");
    }
    assert!(
        stores
            .tenants
            .find(&tenant("other"))
            .await
            .unwrap()
            .is_none()
    );
    assert!(stores.plans.load().await.unwrap().is_none());
}

#[tokio::test]
async fn a_replica_takes_no_change_and_the_store_survives_it() {
    let server = RedisServer::start();
    let stores = Stores::new(&redis(&server).await);
    stores.keys.create(digest(1), record("k1")).await.unwrap();
    let () = server.query(&["REPLICAOF", "127.0.0.1", "1"]);
    for _ in 0..3 {
        let revoked = stores.keys.revoke(&id("k1"), noon()).await;
        assert!(
            matches!(revoked, Err(KeyStoreError::Unavailable(_))),
            "{revoked:?}"
        );
    }
    let () = server.query(&["REPLICAOF", "NO", "ONE"]);
    for _ in 0..200 {
        if let Ok(record) = stores.keys.revoke(&id("k1"), noon()).await {
            assert_eq!(record.version, 2);
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the store does not recover from a replica");
}

#[tokio::test]
async fn a_script_that_is_forgotten_is_sent_again() {
    let server = RedisServer::start();
    let keys = RedisKeyStore::new(&redis(&server).await);
    for n in 1..=5 {
        let () = server.query(&["SCRIPT", "FLUSH"]);
        let name = format!("k{n}");
        keys.create(digest(n), record(&name)).await.unwrap();
        let () = server.query(&["SCRIPT", "FLUSH"]);
        assert_eq!(keys.revoke(&id(&name), noon()).await.unwrap().version, 2);
    }
}

fn key_of(n: u64) -> String {
    format!("tg:1:{{accounts}}:k:{}", digest(n))
}

fn is_corrupt<T: std::fmt::Debug>(result: &Result<T, KeyStoreError>, what: &str) {
    assert!(
        matches!(result, Err(KeyStoreError::Corrupt(_))),
        "{what}: {result:?}"
    );
}

/// What somebody else has put under our keys, each with the key `k1` of digest 1.
#[tokio::test]
async fn foreign_values_under_keys_are_corrupt_and_nothing_is_half_written() {
    let server = RedisServer::start();
    let keys = RedisKeyStore::new(&redis(&server).await);
    let record_key = key_of(1);
    let (pointer, list) = ("tg:1:{accounts}:i:k1", "tg:1:{accounts}:o:acme");
    let damages: [&[&str]; 9] = [
        &["SET", &record_key, "text"],
        &["HSET", &record_key, "r", "{}"],
        &["HSET", &record_key, "r", "not JSON"],
        &["HSET", &record_key, "v", "many"],
        &["HSET", &record_key, "v", "-1"],
        &["HSET", &record_key, "e", "tomorrow"],
        &["HSET", &record_key, "x", "1"],
        &["HDEL", &record_key, "r"],
        // A record of another key, as a restore by hand may leave it.
        &["HSET", &record_key, "d", "another"],
    ];
    for damage in damages {
        let () = server.query(&["FLUSHALL"]);
        keys.create(digest(1), record("k1")).await.unwrap();
        let _: redis::Value = server.query(damage);
        let what = format!("{damage:?}");
        is_corrupt(&keys.find(&digest(1)).await, &what);
        is_corrupt(&keys.find_by_id(&id("k1")).await, &what);
        is_corrupt(&keys.list(&tenant("acme")).await, &what);
        let next = keys
            .rotate(&id("k1"), noon(), digest(2), record("k2"), noon())
            .await;
        assert!(
            next.is_err() || damage.contains(&"r") || damage.contains(&"d"),
            "{what}: a rotation needs the record's other fields"
        );
        let revoked = keys.revoke(&id("k1"), noon()).await;
        is_corrupt(&revoked, &what);
        let _ = keys
            .touch(&[KeyUse::new(digest(1), id("k1"), noon())])
            .await;
    }
    let others: [&[&str]; 4] = [
        &["SET", pointer, "no digest"],
        &["HSET", pointer, "a", "b"],
        &["SET", list, "text"],
        &["RPUSH", list, "no digest"],
    ];
    for damage in others {
        let () = server.query(&["FLUSHALL"]);
        keys.create(digest(1), record("k1")).await.unwrap();
        let _: redis::Value = server.query(&["DEL", damage[1]]);
        let _: redis::Value = server.query(damage);
        let what = format!("{damage:?}");
        if damage[1] == pointer {
            is_corrupt(&keys.revoke(&id("k1"), noon()).await, &what);
        } else {
            is_corrupt(&keys.list(&tenant("acme")).await, &what);
        }
    }
    // The count of changes and the tenant's list are looked at before anything is written.
    for (key, command) in [("tg:1:{accounts}:n", "HSET"), (list, "HSET")] {
        let () = server.query(&["FLUSHALL"]);
        let _: i64 = server.query(&[command, key, "a", "b"]);
        is_corrupt(&keys.create(digest(1), record("k1")).await, key);
        assert_eq!(server.query::<i64>(&["DBSIZE"]), 1, "{key}");
    }
}

#[tokio::test]
async fn foreign_values_under_tenants_and_plans_are_corrupt() {
    let server = RedisServer::start();
    let stores = Stores::new(&redis(&server).await);
    let (tenant_key, plans_key) = ("tg:1:{accounts}:t:acme", "tg:1:{accounts}:p");
    let damages: [&[&str]; 6] = [
        &["SET", "KEY", "text"],
        &["HSET", "KEY", "r", "{}", "v", "1"],
        &["HSET", "KEY", "r", "not JSON", "v", "1"],
        &["HSET", "KEY", "v", "1"],
        &["HSET", "KEY", "r", "{}", "v", "many"],
        &["RPUSH", "KEY", "a"],
    ];
    for damage in damages {
        let () = server.query(&["FLUSHALL"]);
        for key in [tenant_key, plans_key] {
            let damage: Vec<&str> = damage
                .iter()
                .map(|word| if *word == "KEY" { key } else { word })
                .collect();
            let _: redis::Value = server.query(&damage);
        }
        let found = stores.tenants.find(&tenant("acme")).await;
        assert!(
            matches!(found, Err(TenantStoreError::Corrupt(_))),
            "{damage:?}: {found:?}"
        );
        let created = stores.tenants.create(owner("acme")).await;
        assert!(created.is_err(), "{damage:?}: {created:?}");
        let loaded = stores.plans.load().await;
        assert!(
            matches!(
                loaded,
                Err(RedisPlansError::Corrupt(_) | RedisPlansError::Invalid(_))
            ),
            "{damage:?}: {loaded:?}"
        );
    }
    // A record of another tenant, as a restore by hand may leave it.
    let () = server.query(&["FLUSHALL"]);
    stores.tenants.create(owner("other")).await.unwrap();
    let () = server.query(&["RENAME", "tg:1:{accounts}:t:other", tenant_key]);
    let found = stores.tenants.find(&tenant("acme")).await;
    assert!(
        matches!(found, Err(TenantStoreError::Corrupt(_))),
        "{found:?}"
    );
}
