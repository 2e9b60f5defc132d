//! A Cluster, and a master that Sentinels replace.

use std::{sync::Arc, time::Duration};

use tollgate::{
    limit::{Cost, Lease, LimitStoreError, Quota, Rate, RedisLimits, Scope, ScopeValues},
    redis_support::RedisConnector,
};

use super::{ask, call, patient, set_of};
use crate::common::redis_cluster::{RedisCluster, Sentinels};

/// Calls until the store answers again, and says how often it did not.
async fn recovers(limits: &RedisLimits, tenant: &str) -> u32 {
    let set = set_of(tenant, [Quota::monthly(1_000_000)]);
    for n_failed in 0..600 {
        if call(limits, &set).await.is_ok() {
            return n_failed;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the store does not recover");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cluster_admits_exactly_the_limit_and_follows_a_failover_and_a_moved_slot() {
    let mut cluster = RedisCluster::start();
    let mut stores = Vec::new();
    for _ in 0..3 {
        stores.push(patient(RedisConnector::cluster(cluster.urls()).unwrap()).await);
    }
    // One of them over a connection that the service has already.
    let own = redis::cluster::ClusterClient::builder(cluster.urls()).retries(0);
    let own = own.build().unwrap().get_async_connection().await.unwrap();
    stores.push(patient(RedisConnector::cluster_connection(own)).await);
    exact(&stores).await;
    leased(&cluster).await;
    moved_slot(&cluster, &stores[0]).await;
    failover(&mut cluster, stores).await;
}

async fn exact(stores: &[RedisLimits]) {
    // Keys of four kinds, all of which must lie in their tenant's slot.
    let rules = || {
        [
            Quota::monthly(100).into(),
            Rate::per_day(1_000).scope(Scope::Route),
            Rate::per_day(1_000).named("address").scope(Scope::Address),
            Rate::per_day(1_000)
                .named("team")
                .scope(Scope::Custom("team".into())),
        ]
    };
    let sets: Vec<_> = (0..10)
        .map(|n| set_of(&format!("tenant-{n}"), rules()))
        .collect();
    let scopes = ScopeValues::default()
        .route("/a")
        .address([192, 0, 2, 1].into())
        .custom("team", "{x}");
    let tasks: Vec<_> = (0..3_000)
        .map(|n: usize| {
            let (store, set) = (
                stores[n % stores.len()].clone(),
                Arc::clone(&sets[n % sets.len()]),
            );
            let scopes = scopes.clone();
            tokio::spawn(async move {
                let decision = ask(&store, &set, &scopes, &Cost::default()).await;
                (n % 10, decision.expect("a decision").is_admitted())
            })
        })
        .collect();
    let mut admitted = [0; 10];
    for task in tasks {
        let (tenant, passed) = task.await.unwrap();
        admitted[tenant] += u32::from(passed);
    }
    assert_eq!(admitted, [100; 10]);
}

/// Slices of many tenants, each in its own slot, of several stores.
async fn leased(cluster: &RedisCluster) {
    let mut stores = Vec::new();
    for _ in 0..3 {
        let connector = RedisConnector::cluster(cluster.urls()).unwrap();
        let connector = connector.connect_timeout(Duration::from_secs(5));
        let builder = RedisLimits::builder(connector.response_timeout(Duration::from_secs(5)));
        let lease = Lease::of(10).time(Duration::from_secs(3_600));
        stores.push(builder.leased(lease).connect().await.unwrap());
    }
    let sets: Vec<_> = (0..10)
        .map(|n| set_of(&format!("lessee-{n}"), [Quota::monthly(100)]))
        .collect();
    let tasks: Vec<_> = (0..3_000)
        .map(|n: usize| {
            let (store, set) = (stores[n % 3].clone(), Arc::clone(&sets[n % 10]));
            tokio::spawn(async move { (n % 10, call(&store, &set).await.unwrap().is_admitted()) })
        })
        .collect();
    let mut admitted = [0; 10];
    for task in tasks {
        let (tenant, passed) = task.await.unwrap();
        admitted[tenant] += u64::from(passed);
    }
    for store in &stores {
        store.return_slices().await;
    }
    for (set, admitted) in std::iter::zip(&sets, admitted) {
        assert!((70..=100).contains(&admitted), "{admitted}");
        let states = stores[0].peek(set, &ScopeValues::default()).await.unwrap();
        assert_eq!(100 - states[0].remaining, admitted);
    }
}

async fn moved_slot(cluster: &RedisCluster, store: &RedisLimits) {
    let set = set_of("mover", [Quota::monthly(10)]);
    assert!(call(store, &set).await.unwrap().is_admitted());
    let key = "tg:1:{l.mover}:t";
    let from = cluster.master_of(key);
    let to = (0..6)
        .find(|place| {
            let role: String = cluster.nodes[*place].query(&["INFO", "replication"]);
            *place != from && role.contains("role:master")
        })
        .unwrap();
    let id = |place: usize| cluster.nodes[place].query::<String>(&["CLUSTER", "MYID"]);
    let slot = cluster.nodes[from]
        .query::<u16>(&["CLUSTER", "KEYSLOT", key])
        .to_string();
    let () = cluster.nodes[to].query(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(from)]);
    let () = cluster.nodes[from].query(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(to)]);
    let port = cluster.nodes[to].port.to_string();
    let () = cluster.nodes[from].query(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]);
    // The slot is on its way: its old node says ASK.
    let asked = call(store, &set).await.unwrap();
    assert_eq!(asked.states[0].remaining, 8);
    for place in [to, from] {
        let () = cluster.nodes[place].query(&["CLUSTER", "SETSLOT", &slot, "NODE", &id(to)]);
    }
    // Now it says MOVED.
    let moved = call(store, &set).await.unwrap();
    assert_eq!(moved.states[0].remaining, 7);
    let again = call(store, &set).await.unwrap();
    assert_eq!(again.states[0].remaining, 6);
}

async fn failover(cluster: &mut RedisCluster, stores: Vec<RedisLimits>) {
    // Stores that do not wait long, as in production.
    drop(stores);
    let connector = RedisConnector::cluster(cluster.urls())
        .unwrap()
        .connect_timeout(Duration::from_secs(2))
        .response_timeout(Duration::from_millis(300));
    let limits = RedisLimits::builder(connector).connect().await.unwrap();
    let tenant = "failing";
    let set = set_of(tenant, [Quota::monthly(1_000_000)]);
    for _ in 0..100 {
        assert!(call(&limits, &set).await.unwrap().is_admitted());
    }
    // Acknowledged by the replica, so that nothing is lost.
    let place = cluster.master_of("tg:1:{l.failing}:t");
    assert_eq!(cluster.nodes[place].query::<i64>(&["WAIT", "1", "5000"]), 1);
    cluster.nodes[place].kill();
    let first = call(&limits, &set).await;
    assert!(
        matches!(
            first,
            Err(LimitStoreError::Unavailable(_) | LimitStoreError::Indeterminate(_))
        ),
        "{first:?}"
    );
    let n_failed = recovers(&limits, tenant).await;
    assert!(n_failed > 0);
    // A node that has not heard of the new master yet may still say that the Cluster is down.
    let mut states = limits.peek(&set, &ScopeValues::default()).await;
    for _ in 0..100 {
        if states.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        states = limits.peek(&set, &ScopeValues::default()).await;
    }
    let states = states.unwrap();
    assert_eq!(
        1_000_000 - states[0].remaining,
        101,
        "nothing was charged in between"
    );
    // Other tenants' nodes were never concerned for long.
    for n in 0..20 {
        recovers(&limits, &format!("other-{n}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_master_is_found_through_the_sentinels() {
    let mut servers = Sentinels::start();
    let connector = RedisConnector::sentinel(servers.urls(), "main", "redis://unused")
        .unwrap()
        .connect_timeout(Duration::from_secs(2))
        .response_timeout(Duration::from_millis(300));
    let limits = RedisLimits::builder(connector).connect().await.unwrap();
    let set = set_of("acme", [Quota::monthly(1_000)]);
    for _ in 0..10 {
        assert!(call(&limits, &set).await.unwrap().is_admitted());
    }
    assert_eq!(servers.master.query::<i64>(&["WAIT", "1", "5000"]), 1);
    servers.master.kill();
    assert!(call(&limits, &set).await.is_err());
    recovers(&limits, "other").await;
    let states = limits.peek(&set, &ScopeValues::default()).await.unwrap();
    assert_eq!(states[0].remaining, 990);
    let role: String = servers.replica.query(&["INFO", "replication"]);
    assert!(role.contains("role:master"));
}
