//! A change that one process makes is heard by the others, whatever happens to their connections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tollgate::{
    auth::{KeyDigest, KeyListener, KeyStore, RedisKeyStore},
    redis_support::RedisConnector,
    tenant::{RedisTenantStore, TenantStore},
};

use super::{
    connect, digest, id, listening, noon, owner, patient, record, redis, redis_at, subscribed,
    tenant, within,
};
use crate::common::{
    fault_proxy::{Fault, FaultProxy},
    redis::RedisServer,
    redis_cluster::{RedisCluster, Sentinels},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_change_is_heard_with_its_version_by_every_process() {
    let server = RedisServer::start();
    let own = redis(&server).await;
    let others = [
        listening(&redis(&server).await).await,
        listening(&redis(&server).await).await,
    ];
    subscribed(&server, 2).await;
    let (keys, tenants) = (RedisKeyStore::new(&own), RedisTenantStore::new(&own));
    let strange = "a b:{c}:k 1";
    tenants.create(owner(strange)).await.unwrap();
    keys.create(digest(1), record("k1")).await.unwrap();
    keys.rotate(&id("k1"), noon(), digest(2), record("k2"), noon())
        .await
        .unwrap();
    keys.revoke(&id("k2"), noon()).await.unwrap();
    for other in &others {
        let heard = &other.heard;
        within(10, "the last change", || heard.has_key(&digest(2), 2)).await;
        let keys = heard.keys.lock().unwrap().clone();
        let expected = [(1, 1), (1, 2), (2, 1), (2, 2)];
        assert_eq!(keys, expected.map(|(n, version)| (digest(n), version)));
        assert_eq!(*heard.tenants.lock().unwrap(), [tenant(strange)]);
    }
    // What a revocation did not change is not announced.
    keys.revoke(&id("k2"), noon()).await.unwrap();
    keys.create(digest(3), record("k3")).await.unwrap();
    let heard = &others[0].heard;
    within(10, "the next change", || heard.has_key(&digest(3), 1)).await;
    assert_eq!(heard.keys.lock().unwrap().len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_made_while_the_subscription_is_broken_is_found_after_it() {
    let server = RedisServer::start();
    let keys = RedisKeyStore::new(&redis(&server).await);
    let other = listening(&redis(&server).await).await;
    subscribed(&server, 2).await;
    for n in 1..=20 {
        let n_lost = other.heard.n_lost();
        let name = format!("k{n}");
        let killed: i64 = server.query(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        assert!(killed > 0);
        keys.create(digest(n), record(&name)).await.unwrap();
        let heard = &other.heard;
        within(10, "the change", || {
            heard.has_key(&digest(n), 1) || heard.n_lost() > n_lost
        })
        .await;
        subscribed(&server, 2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_subscription_hides_nothing() {
    let server = RedisServer::start();
    let proxy = FaultProxy::before(server.port).await;
    let connector = RedisConnector::single(proxy.url()).unwrap();
    let connector = connector
        .connect_timeout(Duration::from_secs(5))
        .response_timeout(Duration::from_millis(250));
    let other = listening(&connect(connector).await).await;
    subscribed(&server, 1).await;
    let keys = RedisKeyStore::new(&redis(&server).await);
    within(10, "the first look", || other.heard.n_lost() > 0).await;
    proxy.set(Fault::Hold);
    keys.create(digest(1), record("k1")).await.unwrap();
    // Nothing is heard while no answer comes through, and as much as was missed once it does.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!other.heard.has_key(&digest(1), 1));
    let n_lost = other.heard.n_lost();
    proxy.set(Fault::None);
    let heard = &other.heard;
    within(10, "a flush", || heard.n_lost() > n_lost).await;
    keys.revoke(&id("k1"), noon()).await.unwrap();
    within(10, "the next change", || {
        heard.has_key(&digest(1), 2) || heard.n_lost() > n_lost + 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_that_is_skipped_and_a_count_that_is_ahead_forget_everything() {
    let server = RedisServer::start();
    let other = listening(&redis(&server).await).await;
    subscribed(&server, 1).await;
    let heard = &other.heard;
    within(10, "the first look", || heard.n_lost() > 0).await;
    // A node of a Cluster that passes nothing on: the count grows and nobody hears why.
    let n_lost = heard.n_lost();
    let _: i64 = server.query(&["INCR", "tg:1:{accounts}:n"]);
    within(10, "a flush", || heard.n_lost() > n_lost).await;
    // Somebody else's message is no change.
    for message in ["", "hello", "x k y", "18446744073709551616 t acme", "7"] {
        let _: i64 = server.query(&["PUBLISH", "tg:1:changes", message]);
    }
    // Data that was lost: the count goes back.
    let n_lost = heard.n_lost();
    let () = server.query(&["FLUSHALL"]);
    within(10, "a flush", || heard.n_lost() > n_lost).await;
    let keys = RedisKeyStore::new(&redis(&server).await);
    keys.create(digest(1), record("k1")).await.unwrap();
    within(10, "a change", || heard.has_key(&digest(1), 1)).await;
    assert!(heard.tenants.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_pool_changes_are_found_by_looking() {
    let server = RedisServer::start();
    let pool = deadpool_redis::Config::from_url(server.url())
        .create_pool(Some(deadpool_redis::Runtime::Tokio1))
        .unwrap();
    let other = listening(&connect(patient(RedisConnector::pool(pool))).await).await;
    let heard = &other.heard;
    within(10, "the first look", || heard.n_lost() > 0).await;
    let keys = RedisKeyStore::new(&redis(&server).await);
    for n in 1..=3 {
        let n_lost = heard.n_lost();
        keys.create(digest(n), record(&format!("k{n}")))
            .await
            .unwrap();
        within(10, "a flush", || heard.n_lost() > n_lost).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_restarted_is_followed_with_what_it_kept() {
    let mut server = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    // The later argument wins.
    let other = listening(&redis(&server).await).await;
    subscribed(&server, 1).await;
    let keys = RedisKeyStore::new(&redis(&server).await);
    keys.create(digest(1), record("k1")).await.unwrap();
    let n_lost = other.heard.n_lost();
    server.restart();
    let heard = &other.heard;
    within(15, "a flush", || heard.n_lost() > n_lost).await;
    subscribed(&server, 2).await;
    keys.revoke(&id("k1"), noon()).await.unwrap();
    within(10, "the change", || heard.has_key(&digest(1), 2)).await;
    let found = other.keys.find(&digest(1)).await.unwrap().unwrap();
    assert_eq!(found.revoked_at, Some(noon()), "a revocation is kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_loses_the_master_of_the_accounts_is_followed() {
    let mut cluster = RedisCluster::start();
    let connector = || patient(RedisConnector::cluster(cluster.urls()).unwrap());
    let (own, other) = (connect(connector()).await, connect(connector()).await);
    let (keys, other) = (RedisKeyStore::new(&own), listening(&other).await);
    let heard = Arc::clone(&other.heard);
    within(10, "the first look", || heard.n_lost() > 0).await;
    keys.create(digest(1), record("k1")).await.unwrap();
    within(10, "a change", || heard.has_key(&digest(1), 1)).await;
    // Replication is asynchronous: the promise holds for what has reached the replica.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let master = cluster.master_of("tg:1:{accounts}:n");
    cluster.nodes[master].kill();
    let mut n = 1;
    let (revoked, n_lost) = loop {
        let n_lost = heard.n_lost();
        match keys.revoke(&id("k1"), noon()).await {
            Ok(record) => break (record, n_lost),
            Err(error) => {
                n += 1;
                assert!(n < 200, "{error:?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    };
    assert_eq!(revoked.version, 2);
    within(15, "the revocation", || {
        heard.has_key(&digest(1), 2) || heard.n_lost() > n_lost
    })
    .await;
    let found = other.keys.find(&digest(1)).await.unwrap().unwrap();
    assert!(found.revoked_at.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_lead_to_the_new_master_and_its_changes() {
    let mut sentinels = Sentinels::start();
    let master = format!("redis://127.0.0.1:{}", sentinels.master.port);
    let connector =
        || patient(RedisConnector::sentinel(sentinels.urls(), "main", &master).unwrap());
    let (own, other) = (connect(connector()).await, connect(connector()).await);
    let (keys, other) = (RedisKeyStore::new(&own), listening(&other).await);
    let heard = Arc::clone(&other.heard);
    subscribed(&sentinels.master, 2).await;
    keys.create(digest(1), record("k1")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    sentinels.master.kill();
    let mut n = 0;
    while keys.revoke(&id("k1"), noon()).await.is_err() {
        n += 1;
        assert!(n < 200, "no new master");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    within(15, "the new subscriptions", || {
        let (_, n): (String, i64) = sentinels
            .replica
            .query(&["PUBSUB", "NUMSUB", "tg:1:changes"]);
        n == 2
    })
    .await;
    keys.create(digest(2), record("k2")).await.unwrap();
    within(10, "the change", || heard.has_key(&digest(2), 1)).await;
}

/// Panics at the first change that it hears of.
#[derive(Default)]
struct Clumsy(AtomicBool);

impl KeyListener for Clumsy {
    fn key_changed(&self, _: &KeyDigest, _: u64) {
        assert!(
            self.0.swap(true, Ordering::SeqCst),
            "the listener was told to panic"
        );
    }

    fn keys_lost(&self) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_panics_ends_nobody_s_subscription() {
    let server = RedisServer::start();
    let other = listening(&redis(&server).await).await;
    let clumsy: Arc<dyn KeyListener> = Arc::new(Clumsy::default());
    other.keys.subscribe(Arc::downgrade(&clumsy));
    subscribed(&server, 1).await;
    let keys = RedisKeyStore::new(&redis(&server).await);
    let heard = &other.heard;
    within(10, "the first look", || heard.n_lost() > 0).await;
    let n_lost = heard.n_lost();
    keys.create(digest(1), record("k1")).await.unwrap();
    within(10, "the subscription made anew", || heard.n_lost() > n_lost).await;
    subscribed(&server, 2).await;
    keys.create(digest(2), record("k2")).await.unwrap();
    within(10, "the change", || heard.has_key(&digest(2), 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_that_is_dropped_leaves_no_subscription() {
    let server = RedisServer::start();
    let other = listening(&redis_at(&server.url()).await).await;
    subscribed(&server, 1).await;
    drop(other);
    subscribed(&server, 0).await;
}
