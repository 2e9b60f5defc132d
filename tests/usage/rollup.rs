//! From the stream of events to totals, with parts that die on the way.

use std::time::Duration;

use redis::Value;
use tokio::{sync::oneshot, task::JoinHandle};
use tollgate::{
    meter::UsageEvent,
    postgres_support::Postgres,
    redis_support::RedisConnector,
    sink::{PostgresSink, RedisStreamSink, UsageSink},
    usage::{Rollup, RollupBuilder, RollupCounters},
};

use crate::{
    common::{
        fault_proxy::{Fault, FaultProxy},
        postgres::PostgresServer,
        redis::RedisServer,
    },
    support::{Random, assert_exact, deliver, event, events, now},
};

const STREAM: &str = "tg:1:{u.0}:s";
const PATIENCE: Duration = Duration::from_secs(30);

fn connector(url: &str) -> RedisConnector {
    RedisConnector::single(url)
        .expect("a URL")
        .connect_timeout(Duration::from_secs(5))
}

async fn rollup(redis: &str, postgres: &Postgres) -> RollupBuilder {
    let sink = PostgresSink::connect(postgres).await.expect("a sink");
    Rollup::builder(connector(redis), sink)
        .batch(100)
        .claim_after(Duration::from_millis(100))
}

struct Running {
    task: JoinHandle<RollupCounters>,
    stop: oneshot::Sender<()>,
}

async fn start(builder: RollupBuilder) -> Running {
    let rollup = builder.connect().await.expect("a rollup");
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(rollup.run_until(async {
        let _ = stopped.await;
    }));
    Running { task, stop }
}

impl Running {
    async fn stop(self) -> RollupCounters {
        let _ = self.stop.send(());
        self.task.await.expect("no panic")
    }
}

async fn fill(server: &RedisServer, all: &[UsageEvent]) {
    let sink = RedisStreamSink::connect(server.url())
        .await
        .expect("a sink");
    for batch in all.chunks(250) {
        deliver(&sink, batch.to_vec()).await;
    }
}

/// Until nothing of the stream is unread or unacknowledged.
async fn drained(server: &RedisServer) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let groups: Value = server.query(&["XINFO", "GROUPS", STREAM]);
        let groups = format!("{groups:?}");
        let pending: Value = server.query(&["XPENDING", STREAM, "rollup"]);
        let is_read = groups.contains("bulk-string('\"lag\"'), int(0)");
        if is_read && format!("{pending:?}").contains("array([int(0)") {
            return;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{groups} {pending:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn position(postgres: &Postgres) -> (String, i64, i64) {
    sqlx::query_as(
        "SELECT entry_millis || '-' || entry_sequence, events, duplicates FROM tollgate.usage_positions
         WHERE stream = $1",
    )
    .bind(STREAM)
    .fetch_one(postgres.pool())
    .await
    .expect("a position")
}

fn last_entry(server: &RedisServer) -> String {
    let last: Vec<(String, Value)> = server.query(&["XREVRANGE", STREAM, "+", "-", "COUNT", "1"]);
    last[0].0.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_of_the_stream_is_counted_and_the_position_says_so() {
    let redis = RedisServer::start();
    let server = PostgresServer::start();
    let postgres = server.migrated("usage").await;
    let all = events(3_000, 61);
    fill(&redis, &all).await;
    // The same once more, in other batches: the stream has them twice.
    let sink = RedisStreamSink::connect(redis.url()).await.expect("a sink");
    for batch in all[..1_000].chunks(77) {
        deliver(&sink, batch.to_vec()).await;
    }
    // Neither takes what the other reads.
    let builder = || async { rollup(&redis.url(), &postgres).await.claim_after(PATIENCE) };
    let first = start(builder().await).await;
    let second = start(builder().await).await;
    drained(&redis).await;
    let (first, second) = (first.stop().await, second.stop().await);
    assert_eq!(first.events + second.events, 3_000);
    assert_eq!(first.duplicates + second.duplicates, 1_000);
    assert_exact(postgres.pool(), &all).await;
    let (entry, n_events, n_duplicates) = position(&postgres).await;
    assert_eq!((n_events, n_duplicates), (3_000, 1_000));
    assert_eq!(entry, last_entry(&redis));
    // Both have left the group, as they owe nothing.
    let consumers: Vec<Value> = redis.query(&["XINFO", "CONSUMERS", STREAM, "rollup"]);
    assert!(consumers.is_empty(), "{consumers:?}");
    // What was acknowledged is cut with the next batch.
    deliver(&sink, vec![event(9_999, now())]).await;
    let length: u64 = redis.query(&["XLEN", STREAM]);
    assert!(length < 200, "{length}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_dies_between_the_commit_and_the_acknowledgement_doubles_nothing() {
    let redis = RedisServer::start();
    let server = PostgresServer::start();
    let postgres = server.migrated("usage").await;
    let all = events(2_500, 71);
    fill(&redis, &all).await;
    let proxy = FaultProxy::before(redis.port).await;
    let (mut claimed, mut duplicates) = (0, 0);
    let _: Value = redis.query(&["XGROUP", "CREATE", STREAM, "rollup", "0"]);
    let sink = PostgresSink::connect(&postgres).await.expect("a sink");
    for round in 0..50 {
        // Reads, counts, and is gone.
        let name = format!("dead-{round}");
        type Streams = Vec<(String, Vec<(String, Vec<(String, Vec<u8>)>)>)>;
        let read = [
            "XREADGROUP",
            "GROUP",
            "rollup",
            &name,
            "COUNT",
            "30",
            "STREAMS",
            STREAM,
            ">",
        ];
        let streams: Streams = redis.query(&read);
        let entries = streams[0].1.iter();
        let batch: Vec<UsageEvent> = entries
            .map(|(_, fields)| serde_json::from_slice(&fields[0].1).expect("an event"))
            .collect();
        sink.write(&batch).await.expect("counted");
    }
    // Readers whose connection ends at any moment, and readers that are dropped at any moment.
    let mut random = Random(72);
    for _ in 0..12 {
        let reader = start(rollup(&proxy.url(), &postgres).await).await;
        tokio::time::sleep(Duration::from_millis(random.below(60))).await;
        proxy.set(Fault::CutAfter(5));
        tokio::time::sleep(Duration::from_millis(random.below(60))).await;
        reader.task.abort();
        proxy.set(Fault::None);
    }
    let last = start(rollup(&redis.url(), &postgres).await).await;
    drained(&redis).await;
    let counters = last.stop().await;
    claimed += counters.claimed;
    duplicates += counters.duplicates;
    assert_exact(postgres.pool(), &all).await;
    let (_, _, counted_again) = position(&postgres).await;
    assert!(
        counted_again >= 1_500,
        "{counted_again}, {claimed} claimed, {duplicates} again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_crash_while_it_reads_lose_and_double_nothing() {
    let mut redis = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut server = PostgresServer::start();
    let postgres = server.migrated("usage").await;
    let all = events(5_000, 81);
    let readers = [
        start(rollup(&redis.url(), &postgres).await.consumer("one")).await,
        start(rollup(&redis.url(), &postgres).await.consumer("two")).await,
    ];
    let sink = RedisStreamSink::builder(connector(&redis.url()))
        .connect()
        .await
        .expect("a sink");
    let writing = {
        let batches: Vec<_> = all.chunks(100).map(<[_]>::to_vec).collect();
        tokio::spawn(async move {
            for batch in batches {
                deliver(&sink, batch).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    };
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        (redis, server) = tokio::task::spawn_blocking(move || {
            redis.restart();
            server.crash();
            server.start_again();
            (redis, server)
        })
        .await
        .expect("restarted");
    }
    writing.await.expect("all delivered");
    drained(&redis).await;
    let mut failures = 0;
    for reader in readers {
        failures += reader.stop().await.failures;
    }
    assert!(failures > 0, "the servers were away");
    assert_exact(postgres.pool(), &all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_are_no_events_go_to_the_dead_letters_and_stop_nothing() {
    let redis = RedisServer::start();
    let server = PostgresServer::start();
    let postgres = server.migrated("usage").await;
    let all = events(100, 91);
    fill(&redis, &all[..50]).await;
    let newer = serde_json::to_string(&event(500, now())).expect("JSON");
    let newer = newer.replacen("\"schema\":1", "\"schema\":2", 1);
    let mut bad = event(501, now());
    bad.route = "/\0".into();
    let bad = serde_json::to_string(&bad).expect("JSON");
    for (field, body) in [
        ("event", "not JSON \0"),
        ("event", &newer),
        ("event", &bad),
        ("other", "x"),
    ] {
        let mut add = redis::cmd("XADD");
        add.arg(STREAM).arg("*").arg(field).arg(body);
        add.query::<Value>(&mut redis.client()).expect("added");
    }
    // One that was read by somebody who is gone, and then deleted by hand.
    let _: Value = redis.query(&["XGROUP", "CREATE", STREAM, "rollup", "0"]);
    let _: Value = redis.query(&[
        "XREADGROUP",
        "GROUP",
        "rollup",
        "me",
        "COUNT",
        "1",
        "STREAMS",
        STREAM,
        ">",
    ]);
    let first: Vec<(String, Value)> = redis.query(&["XRANGE", STREAM, "-", "+", "COUNT", "1"]);
    let _: Value = redis.query(&["XDEL", STREAM, &first[0].0]);
    fill(&redis, &all[50..]).await;

    let reader = start(rollup(&redis.url(), &postgres).await.consumer("me")).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let pending: Value = redis.query(&["XPENDING", STREAM, "rollup"]);
        let (n,): (i64,) = sqlx::query_as("SELECT count(*) FROM tollgate.usage_events")
            .fetch_one(postgres.pool())
            .await
            .expect("a count");
        if n == 99 && format!("{pending:?}").contains("array([int(0)") {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{n} {pending:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let counters = reader.stop().await;
    assert_eq!((counters.events, counters.dead_letters), (99, 5));
    assert_exact(postgres.pool(), &all[1..]).await;
    let dead: Vec<(String, Vec<u8>)> =
        sqlx::query_as("SELECT reason, body FROM tollgate.usage_dead_letters ORDER BY reason")
            .fetch_all(postgres.pool())
            .await
            .expect("dead letters");
    let reasons: Vec<_> = dead.iter().map(|(reason, _)| reason.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "a text of the event holds NUL",
            "the entry has no field `event`",
            "the entry is no usage event",
            "the entry was removed before it was counted",
            "the event's schema is newer than this version",
        ]
    );
    assert_eq!(dead[2].1, b"not JSON \0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_that_cannot_work_is_told() {
    let redis = RedisServer::start();
    let server = PostgresServer::start();
    let postgres = server.migrated("usage").await;
    let client = redis::Client::open(redis.url()).expect("a URL");
    let manager = client.get_connection_manager().await.expect("a connection");
    let sink = PostgresSink::connect(&postgres).await.expect("a sink");
    let shared = Rollup::builder(RedisConnector::manager(manager), sink);
    let builder = || rollup("redis://127.0.0.1:1", &postgres);
    for (wrong, field) in [
        (shared, "connector"),
        (builder().await.streams(0), "streams"),
        (builder().await.batch(0), "batch"),
        (builder().await.claim_after(Duration::ZERO), "claim_after"),
        (builder().await.group(""), "group"),
        (builder().await.consumer("c".repeat(65)), "consumer"),
        (builder().await.namespace("A"), "namespace"),
    ] {
        let error = wrong.connect().await.expect_err("a wrong setting");
        assert!(error.to_string().contains(field), "{error}");
    }
}
