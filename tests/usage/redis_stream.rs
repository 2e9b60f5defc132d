//! Events in Redis Streams, on a real server.

use std::{sync::Arc, time::Duration};

use redis::Value;
use tollgate::{
    id::TenantId,
    meter::UsageEvent,
    redis_support::RedisConnector,
    sink::{RedisStreamSink, UsageSink, Verdict},
};

use crate::{
    common::{
        fault_proxy::{Fault, FaultProxy},
        redis::RedisServer,
        redis_cluster::RedisCluster,
    },
    support::{deliver, each, event, events, now},
};

const STREAM: &str = "tg:1:{u.0}:s";

/// Entries by their ids, with their fields.
type Entries = Vec<(String, Vec<(String, Vec<u8>)>)>;

/// The events of a stream, in its order.
fn read(server: &RedisServer, stream: &str) -> Vec<UsageEvent> {
    let entries: Entries = server.query(&["XRANGE", stream, "-", "+"]);
    let events = entries.iter().map(|(_, fields)| {
        let [(name, json)] = fields.as_slice() else {
            panic!("{fields:?}")
        };
        assert_eq!(name, "event");
        serde_json::from_slice(json).expect("a usage event")
    });
    events.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_offered_again_is_appended_once() {
    let server = RedisServer::start();
    let sink = RedisStreamSink::connect(server.url())
        .await
        .expect("a sink");
    assert_eq!(sink.streams(), [STREAM]);
    // More than one run of the script, of which the last has fewer.
    let batch = events(2_500, 1);
    for round in 0..3 {
        let verdict = [Verdict::Accepted, Verdict::Duplicate][round.min(1)];
        let verdicts = sink.write(&batch).await.expect("verdicts");
        assert_eq!(each(verdicts, 2_500), vec![verdict; 2_500]);
        // Scripts are known to a server until it forgets them.
        let _: Value = server.query(&["SCRIPT", "FLUSH"]);
    }
    assert_eq!(read(&server, STREAM), batch);
    // What is left of a batch after verdicts keeps its runs, so it is known too.
    let rest = sink.write(&batch[2_000..]).await.expect("verdicts");
    assert_eq!(each(rest, 500), vec![Verdict::Duplicate; 500]);
    let lifetime: i64 = server.query(&["TTL", &token(&server)]);
    assert!((86_000..=86_400).contains(&lifetime), "{lifetime}");
}

fn token(server: &RedisServer) -> String {
    let keys: Vec<String> = server.query(&["KEYS", "tg:1:{u.0}:b:*"]);
    assert_eq!(keys.len(), 3);
    keys[0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_cut_off_doubles_nothing() {
    let server = RedisServer::start();
    let proxy = FaultProxy::before(server.port).await;
    let connector = RedisConnector::single(proxy.url()).expect("a URL");
    let builder = RedisStreamSink::builder(connector.connect_timeout(Duration::from_secs(5)));
    let sink = builder.connect().await.expect("a sink");
    let all = events(2_000, 2);
    for (round, batch) in all.chunks(100).enumerate() {
        // The script has run, and nobody was told.
        proxy.set(Fault::CutAfter(round % 3));
        assert!(sink.write(batch).await.is_err());
        proxy.set(Fault::None);
        assert_eq!(deliver(&sink, batch.to_vec()).await, 1);
    }
    assert_eq!(read(&server, STREAM), all);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_and_writes_every_command_to_disk_loses_and_doubles_nothing() {
    let mut server = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let connector = RedisConnector::single(server.url()).expect("a URL");
    let builder = RedisStreamSink::builder(connector.connect_timeout(Duration::from_secs(5)));
    let sink = Arc::new(builder.connect().await.expect("a sink"));
    let all = events(6_000, 3);
    let batches: Vec<_> = all.chunks(50).map(<[_]>::to_vec).collect();
    let writing = {
        let sink = Arc::clone(&sink);
        tokio::spawn(async move {
            for batch in batches {
                deliver(&*sink, batch).await;
            }
        })
    };
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(40)).await;
        server = tokio::task::spawn_blocking(move || {
            server.restart();
            server
        })
        .await
        .expect("a restart");
    }
    writing.await.expect("all delivered");
    assert_eq!(read(&server, STREAM), all);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_takes_no_more_and_is_cut_only_before_what_no_group_needs() {
    let server = RedisServer::start();
    let builder = RedisStreamSink::builder(RedisConnector::single(server.url()).expect("a URL"));
    let sink = builder.max_entries(10_000).connect().await.expect("a sink");
    let all = events(14_000, 4);
    deliver(&sink, all[..10_000].to_vec()).await;
    // Nobody has read anything: nothing is cut, and nothing is dropped.
    let refused = each(
        sink.write(&all[10_000..10_500]).await.expect("verdicts"),
        500,
    );
    assert!(
        refused
            .iter()
            .all(|verdict| matches!(verdict, Verdict::Retry { after } if !after.is_zero()))
    );
    assert_eq!(server.query::<u64>(&["XLEN", STREAM]), 10_000);

    let _: Value = server.query(&["XGROUP", "CREATE", STREAM, "slow", "0"]);
    let _: Value = server.query(&["XGROUP", "CREATE", STREAM, "fast", "0"]);
    let take = |group: &str, n: usize, acknowledges: usize| {
        let n = n.to_string();
        let read = [
            "XREADGROUP",
            "GROUP",
            group,
            "me",
            "COUNT",
            &n,
            "STREAMS",
            STREAM,
            ">",
        ];
        type Streams = Vec<(String, Vec<(String, Value)>)>;
        let streams: Streams = server.query(&read);
        let mut acknowledge = vec!["XACK", STREAM, group];
        acknowledge.extend(
            streams[0].1[..acknowledges]
                .iter()
                .map(|(id, _)| id.as_str()),
        );
        server.query::<Value>(&acknowledge);
    };
    take("fast", 10_000, 10_000);
    // One group has read and acknowledged all, the other has not: still full.
    assert!(matches!(
        each(
            sink.write(&all[10_000..10_500]).await.expect("verdicts"),
            500
        )[0],
        Verdict::Retry { .. }
    ));
    // The slow one has read 3,000 and acknowledged 2,000 of them.
    take("slow", 3_000, 2_000);
    deliver(&sink, all[10_000..11_500].to_vec()).await;
    let kept = read(&server, STREAM);
    assert!(kept.len() <= 10_000, "{}", kept.len());
    assert_eq!(kept, all[11_500 - kept.len()..11_500]);
    assert!(
        11_500 - kept.len() <= 2_000,
        "nothing that was not acknowledged is gone"
    );
    let verdicts = each(
        sink.write(&all[11_500..14_000]).await.expect("verdicts"),
        2_500,
    );
    assert!(
        verdicts
            .iter()
            .all(|verdict| matches!(verdict, Verdict::Retry { .. }))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_takes_each_tenants_events_in_order_into_one_stream() {
    let cluster = RedisCluster::start();
    let urls: Vec<_> = cluster.nodes.iter().map(RedisServer::url).collect();
    let connector = RedisConnector::cluster(urls).expect("URLs");
    let builder = RedisStreamSink::builder(connector.connect_timeout(Duration::from_secs(5)));
    let sink = builder
        .streams(8)
        .namespace("shop")
        .connect()
        .await
        .expect("a sink");
    let mut all = events(400, 5);
    for (n, event) in all.iter_mut().enumerate() {
        event.tenant = TenantId::new(format!("{{t}}:{}", n % 13)).expect("an id");
    }
    for batch in all.chunks(150) {
        deliver(&sink, batch.to_vec()).await;
        let again = each(sink.write(batch).await.expect("verdicts"), batch.len());
        assert!(again.iter().all(|verdict| *verdict == Verdict::Duplicate));
    }
    let mut n_read = 0;
    for stream in sink.streams() {
        let holder = cluster.nodes.iter().find_map(|node| {
            let mut read = redis::cmd("XLEN");
            read.arg(&stream);
            read.query::<u64>(&mut node.client()).ok().map(|_| node)
        });
        let got = read(holder.expect("a master"), &stream);
        n_read += got.len();
        let tenants: Vec<_> = got.iter().map(|event| &event.tenant).collect();
        let own: Vec<_> = all
            .iter()
            .filter(|event| tenants.contains(&&event.tenant))
            .cloned()
            .collect();
        assert_eq!(got, own);
    }
    assert_eq!(n_read, all.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_an_event_holds_comes_out_as_it_was() {
    let server = RedisServer::start();
    let sink = RedisStreamSink::connect(server.url())
        .await
        .expect("a sink");
    let mut odd = event(1, now());
    odd.route = "/v1/\0\r\n\u{1b}[31m\u{2028}{}".into();
    odd.api = "x".repeat(65_536).into();
    odd.quantities.insert("tokens".into(), u64::MAX);
    odd.latency_micros = u64::MAX;
    let mut huge = event(2, now());
    huge.request_id = Some("y".repeat(1 << 20).into());
    let plain = event(3, now());
    let batch = [odd.clone(), huge, plain.clone()];
    let verdicts = each(sink.write(&batch).await.expect("verdicts"), 3);
    assert_eq!(verdicts[0], Verdict::Accepted);
    assert!(matches!(verdicts[1], Verdict::Rejected { .. }));
    assert_eq!(verdicts[2], Verdict::Accepted);
    assert_eq!(read(&server, STREAM), [odd, plain]);
    assert!(each(sink.write(&[]).await.expect("verdicts"), 0).is_empty());
}

#[tokio::test]
async fn a_setting_that_cannot_work_is_told_before_anything_is_connected() {
    let builder = || {
        let nobody = RedisConnector::single("redis://127.0.0.1:1").expect("a URL");
        RedisStreamSink::builder(nobody)
    };
    for (wrong, field) in [
        (builder().streams(0), "streams"),
        (builder().streams(257), "streams"),
        (builder().max_entries(9_999), "max_entries"),
        (
            builder().token_lifetime(Duration::from_secs(59)),
            "token_lifetime",
        ),
        (
            builder().response_timeout(Duration::ZERO),
            "response_timeout",
        ),
        (builder().namespace("a{b}"), "namespace"),
    ] {
        let error = wrong.connect().await.expect_err("a wrong setting");
        assert!(error.to_string().contains(field), "{error}");
    }
}
