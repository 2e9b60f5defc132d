//! The suites of the traits, however Redis is reached.

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use tollgate::{
    auth::{KeyStore as _, RedisKeyStore},
    conformance,
    meter::{EventId, UsageEvent},
    plan::{Plan, RedisPlans},
    redis_support::{Redis, RedisConnector},
    sink::{RedisCounterSink, UsageSink as _},
    tenant::RedisTenantStore,
};

use super::{digest, patient, record};
use crate::common::{
    redis::{RedisServer, TempDir},
    redis_cluster::RedisCluster,
};

/// Each store under a namespace of its own, which is as good as a server of its own.
async fn conforms(connector: &RedisConnector) {
    let number = AtomicUsize::new(0);
    let fresh = async || {
        let name = format!("n{}", number.fetch_add(1, Ordering::SeqCst));
        Redis::builder(connector.clone())
            .namespace(name)
            .expect("a namespace")
            .connect()
            .await
            .expect("a server that can be used")
    };
    conformance::key_store(|| async { RedisKeyStore::new(&fresh().await) }).await;
    conformance::tenant_store(|| async { RedisTenantStore::new(&fresh().await) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_server_conforms() {
    let server = RedisServer::start();
    conforms(&patient(RedisConnector::single(server.url()).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_of_the_service_conforms() {
    let server = RedisServer::start();
    let pool = deadpool_redis::Config::from_url(server.url())
        .create_pool(Some(deadpool_redis::Runtime::Tokio1))
        .unwrap();
    conforms(&patient(RedisConnector::pool(pool))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_conforms() {
    let cluster = RedisCluster::start();
    conforms(&patient(RedisConnector::cluster(cluster.urls()).unwrap())).await;
}

/// What the guide says that a user needs.
const RIGHTS: &str = "-@all +eval +evalsha +exists +get +hget +hgetall +hincrby +hmget +hset +incr +incrby \
                      +info +config|get +llen +lrange +pexpire +ping +publish +rpush +set +subscribe";

fn guarded(dir: &Path, rights: &str) -> RedisServer {
    let file = dir.join("users.acl");
    std::fs::write(
        &file,
        format!(
            "user default on nopass ~* &* +@all\nuser store on >s3cr3t-word ~tg:1:* {rights}\n"
        ),
    )
    .unwrap();
    RedisServer::with(&["--aclfile", file.to_str().unwrap()])
}

fn as_user(server: &RedisServer, password: &str) -> RedisConnector {
    let url = format!("redis://store:{password}@127.0.0.1:{}", server.port);
    patient(RedisConnector::single(url).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_the_rights_of_the_guide_conforms() {
    let dir = TempDir::new();
    let server = guarded(dir.path(), &format!("&tg:1:* {RIGHTS}"));
    conforms(&as_user(&server, "s3cr3t-word")).await;
    let redis = super::connect(as_user(&server, "s3cr3t-word")).await;
    let (plans, sink) = (RedisPlans::new(&redis), RedisCounterSink::new(&redis));
    let free = [Plan::new("free")].into_iter().collect();
    plans.publish(&free, None).await.unwrap();
    assert_eq!(plans.load().await.unwrap().unwrap().version, 1);
    let (time, acme) = (super::noon(), super::tenant("acme"));
    let event = UsageEvent::new(EventId::new(1, 1), time, acme.clone(), super::plan("free"));
    sink.write(&[event]).await.unwrap();
    let day = jiff::civil::date(2026, 1, 15);
    let counted = sink.counters().read(&acme, "default", day).await.unwrap();
    assert_eq!(counted.calls, 1);
    let listening = super::listening(&redis).await;
    super::subscribed(&server, 1).await;
    drop(listening);
    let guide = include_str!("../../src/guide/redis.md");
    // Lines of the guide end within the list.
    let guide: String = guide.split_whitespace().collect::<Vec<_>>().join(" ");
    for right in RIGHTS.split_whitespace().skip(1) {
        assert!(guide.contains(right), "{right} is not in the guide");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_right_to_publish_or_subscribe_changes_are_made_and_found() {
    let dir = TempDir::new();
    let rights = RIGHTS.replace("+publish", "").replace("+subscribe", "");
    let server = guarded(dir.path(), &format!("resetchannels {rights}"));
    let (one, other) = (
        super::connect(as_user(&server, "s3cr3t-word")).await,
        super::connect(as_user(&server, "s3cr3t-word")).await,
    );
    let listening = super::listening(&other).await;
    let heard = &listening.heard;
    super::within(10, "the first look", || heard.n_lost() > 0).await;
    let n_lost = heard.n_lost();
    RedisKeyStore::new(&one)
        .create(digest(1), record("k1"))
        .await
        .unwrap();
    super::within(10, "a flush", || heard.n_lost() > n_lost).await;
}

#[tokio::test]
async fn a_wrong_password_fails_the_start_and_is_not_shown() {
    let dir = TempDir::new();
    let server = guarded(dir.path(), &format!("&tg:1:* {RIGHTS}"));
    let error = Redis::builder(as_user(&server, "wr0ng-word"))
        .connect()
        .await
        .unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    let text = format!("{error} {error:?} {source}");
    assert!(!text.contains("wr0ng"), "{text}");
    assert!(
        !format!(
            "{:?}",
            super::connect(as_user(&server, "s3cr3t-word")).await
        )
        .contains("s3cr3t")
    );
}
