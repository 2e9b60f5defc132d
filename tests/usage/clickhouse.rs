//! The ClickHouse sink and its schema, on ClickHouse's engine.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use clickhouse::Client;
use proptest::prelude::*;
use tollgate::{
    clock::Timestamp,
    id::{Environment, KeyId},
    meter::{CallOutcome, EventId},
    sink::{ClickHouseSink, ClickHouseStartError, UsageSink, Verdict},
};

use super::sample::{NOON, accept, each, event, events, settled};
use crate::common::{
    clickhouse::{ClickHouseServer, number, rows, run},
    fault_proxy::{Fault, FaultProxy},
};

async fn sink(url: &str, database: &str) -> ClickHouseSink {
    let builder = ClickHouseSink::builder(url).expect("a URL");
    let connecting = builder.database(database).migrate().connect();
    connecting.await.expect("a schema")
}

/// A server with the schema in a database, a sink and a client of it.
async fn stand() -> (ClickHouseServer, ClickHouseSink, Client) {
    let server = ClickHouseServer::start();
    let sink = sink(&server.url(), "metering").await;
    let client = server.client("metering");
    (server, sink, client)
}

const ONCE: &str = "SELECT count() FROM usage_events_once";
const ROWS: &str = "SELECT count() FROM usage_events";

#[tokio::test]
async fn an_event_is_read_back_as_it_was_written() {
    let (_server, sink, client) = stand().await;
    let mut written = event(1, "it's {acme}\\", NOON + 86_399);
    written.key = Some(KeyId::new("key-1").expect("a valid id"));
    written.environment = Environment::Test;
    written.outcome = CallOutcome::Aborted;
    written.part_of = Some(EventId::new(7, 8));
    written.status = 499;
    written.grpc_status = Some(14);
    written.latency_micros = u64::MAX;
    written.quantities = BTreeMap::from([(Arc::from("tokens"), u64::MAX), (Arc::from(""), 0)]);
    written.waived = true;
    written.request_id = Some(Arc::from("ä\u{1F600}"));
    written.country = Some(Arc::from("DE"));
    accept(&sink, &[written]).await;

    let read: Vec<String> = rows(
        &client,
        "SELECT toJSONString(tuple(id, part_of, toString(time), toString(day), tenant, key_id, environment, outcome, \
         status, grpc_status, toString(latency_micros), mapApply((k, v) -> (k, toString(v)), quantities), waived, \
         overage, request_id, country, cost_nanos)) FROM usage_events_once",
    )
    .await;
    assert_eq!(
        read,
        [
            r#"["000000000000feed0000000000000001","00000000000000070000000000000008","2026-01-16 11:59:59.000000","2026-01-16","it's {acme}\\","key-1","test","aborted",499,14,"18446744073709551615",{"":"0","tokens":"18446744073709551615"},true,false,"ä😀","DE",null]"#
        ]
    );
}

#[tokio::test]
async fn a_batch_that_comes_again_is_no_second_row_and_a_part_of_it_counts_once() {
    let (_server, sink, client) = stand().await;
    let batch = events(0..100, "acme");
    for _ in 0..3 {
        accept(&sink, &batch).await;
    }
    // The token: nothing was left to be replaced.
    assert_eq!(number(&client, ROWS).await, 100);
    // Cut otherwise, as after a crash.
    accept(&sink, &batch[..60]).await;
    accept(&sink, &batch[40..]).await;
    assert!(number(&client, ROWS).await > 100);
    for (what, query) in [
        ("events", ONCE),
        ("ids", "SELECT uniqExact(id) FROM usage_events"),
        ("billed", "SELECT sum(calls) FROM usage_billed_daily"),
        (
            "by hour",
            "SELECT sum(requests) FROM usage_requests_per_hour",
        ),
        (
            "by endpoint",
            "SELECT sum(requests) FROM usage_errors_by_endpoint",
        ),
        ("latencies", "SELECT sum(requests) FROM usage_latency_daily"),
    ] {
        assert_eq!(number(&client, query).await, 100, "{what}");
    }
}

#[tokio::test]
async fn a_batch_that_comes_again_after_the_window_counts_once() {
    let (_server, sink, client) = stand().await;
    run(
        &client,
        "ALTER TABLE usage_events MODIFY SETTING non_replicated_deduplication_window = 2",
    )
    .await;
    let batch = events(0..10, "acme");
    accept(&sink, &batch).await;
    for n in 1..=5 {
        accept(&sink, &events(n * 10..n * 10 + 10, "acme")).await;
    }
    accept(&sink, &batch).await;
    assert_eq!(number(&client, ONCE).await, 60);
    let by_hour = "SELECT sum(requests) FROM usage_requests_per_hour";
    assert_eq!(number(&client, by_hour).await, 60);
    let latencies = "SELECT sum(requests) FROM usage_latency_daily";
    assert_eq!(number(&client, latencies).await, 60);
}

#[tokio::test]
async fn aggregates_are_what_the_events_say() {
    let (_server, sink, client) = stand().await;
    let mut batch = events(0..1000, "acme");
    for (n, event) in (1..).zip(&mut batch) {
        event.latency_micros = n * 1_000;
        event.quantities.insert(Arc::from("tokens"), u64::MAX);
        if n % 10 == 0 {
            event.outcome = CallOutcome::Failed;
        }
    }
    batch[0].environment = Environment::Test;
    // A report of a call that goes on is no call.
    batch[1].part_of = Some(EventId::new(9, 9));
    for chunk in batch.chunks(300) {
        accept(&sink, chunk).await;
        accept(&sink, chunk).await;
    }
    let endpoint: Vec<(u64, u64)> = rows(
        &client,
        "SELECT requests, errors FROM usage_errors_by_endpoint",
    )
    .await;
    assert_eq!(endpoint, [(999, 100)]);
    let quantiles: Vec<(u64, u64)> = rows(
        &client,
        "SELECT p50_micros, p99_micros FROM usage_latency_daily",
    )
    .await;
    let [(p50, p99)] = quantiles[..] else {
        panic!("{quantiles:?}");
    };
    for (told, exact) in [(p50, 500_000), (p99, 990_000)] {
        assert!(
            told <= exact + 1_000 && told * 1000 >= exact * 983,
            "{told} of {exact}"
        );
    }
    // 899 calls are paid for, and one report: their sum is far above what 64 bits hold.
    let billed: Vec<(u64, String)> = rows(
        &client,
        "SELECT calls, toString(quantities['tokens']) FROM usage_billed_daily",
    )
    .await;
    let tokens = u128::from(u64::MAX) * 899;
    assert_eq!(billed, [(898, tokens.to_string())]);
}

#[tokio::test]
async fn what_got_no_answer_is_offered_again_and_counts_once() {
    let (mut server, _, client) = stand().await;
    let proxy = FaultProxy::before(server.port).await;
    let sink = sink(&format!("http://{}", proxy.addr), "metering").await;
    let batch = events(0..50, "acme");
    for fault in [Fault::CutAfter(0), Fault::CutAfter(20), Fault::Refuse] {
        proxy.set(fault);
        sink.write(&batch).await.expect_err("no verdict");
    }
    proxy.set(Fault::None);
    accept(&sink, &batch).await;
    assert_eq!(number(&client, ONCE).await, 50);

    // Accepted is on the disk, whatever becomes of the server.
    server.kill();
    sink.write(&events(50..60, "acme"))
        .await
        .expect_err("no server");
    server.start_again();
    accept(&sink, &events(50..60, "acme")).await;
    assert_eq!(number(&client, ONCE).await, 60);
}

#[tokio::test]
async fn an_event_that_the_table_refuses_is_rejected_alone() {
    let (_server, sink, client) = stand().await;
    run(
        &client,
        "ALTER TABLE usage_events ADD CONSTRAINT no_teapots CHECK status != 418",
    )
    .await;
    let mut batch = events(0..64, "acme");
    batch[17].status = 418;
    batch[40].time = Timestamp::MAX;
    let verdicts = settled(&sink, &batch).await;
    for (n, verdict) in verdicts.into_iter().enumerate() {
        let expected = match n {
            17 => Verdict::Rejected {
                reason: "violated_constraint",
            },
            40 => Verdict::Rejected {
                reason: "time_out_of_range",
            },
            _ => Verdict::Accepted,
        };
        assert_eq!(verdict, expected, "{n}");
    }
    assert_eq!(number(&client, ONCE).await, 62);
}

#[tokio::test]
async fn an_insert_that_did_not_reach_its_aggregates_is_completed_by_its_repetition() {
    let (_server, sink, client) = stand().await;
    let ids = "usage_requests_per_hour_ids";
    run(
        &client,
        &format!("ALTER TABLE {ids} ADD CONSTRAINT none CHECK tenant = ''"),
    )
    .await;
    let batch = events(0..1, "acme");
    let verdicts = each(sink.write(&batch).await.expect("verdicts"), 1);
    assert!(
        matches!(verdicts[0], Verdict::Rejected { .. }),
        "{verdicts:?}"
    );
    assert_eq!(number(&client, ROWS).await, 1, "the table has it");
    run(&client, &format!("ALTER TABLE {ids} DROP CONSTRAINT none")).await;
    accept(&sink, &batch).await;
    assert_eq!(number(&client, ROWS).await, 1);
    let by_hour = "SELECT sum(requests) FROM usage_requests_per_hour";
    assert_eq!(number(&client, by_hour).await, 1);
}

#[tokio::test]
async fn too_many_parts_are_a_wait_that_grows_and_ends() {
    let (_server, sink, client) = stand().await;
    run(&client, "SYSTEM STOP MERGES usage_events").await;
    run(
        &client,
        "ALTER TABLE usage_events MODIFY SETTING parts_to_delay_insert = 1, parts_to_throw_insert = 2, \
         max_delay_to_insert = 0, min_delay_to_insert_ms = 0",
    )
    .await;
    accept(&sink, &events(0..1, "acme")).await;
    accept(&sink, &events(1..2, "acme")).await;
    let mut waits = Vec::new();
    for _ in 0..9 {
        match each(
            sink.write(&events(2..4, "acme")).await.expect("verdicts"),
            2,
        )[..]
        {
            [Verdict::Retry { after }, again] => {
                assert_eq!(again, Verdict::Retry { after });
                waits.push(after.as_secs());
            }
            ref other => panic!("{other:?}"),
        }
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    run(
        &client,
        "ALTER TABLE usage_events MODIFY SETTING parts_to_throw_insert = 300",
    )
    .await;
    accept(&sink, &events(2..4, "acme")).await;
    assert_eq!(number(&client, ONCE).await, 4);
}

#[tokio::test]
async fn a_table_that_would_count_twice_is_refused_at_the_start() {
    let server = ClickHouseServer::start();
    let connect = async |database: &str| {
        let builder = ClickHouseSink::builder(&server.url()).expect("a URL");
        builder.database(database).connect().await
    };
    run(&server.client("default"), "CREATE DATABASE plain").await;
    let error = connect("plain").await.expect_err("no table");
    assert!(matches!(error, ClickHouseStartError::Missing), "{error}");
    assert!(error.to_string().contains("migrate"));

    let plain = server.client("plain");
    run(
        &plain,
        "CREATE TABLE usage_events (id String) ENGINE = MergeTree ORDER BY id \
         SETTINGS non_replicated_deduplication_window = 1000",
    )
    .await;
    let error = connect("plain").await.expect_err("a table that keeps all");
    assert!(error.to_string().contains("ReplacingMergeTree"), "{error}");

    let _ = sink(&server.url(), "metering").await;
    run(
        &server.client("metering"),
        "ALTER TABLE usage_events MODIFY SETTING non_replicated_deduplication_window = 0",
    )
    .await;
    let error = connect("metering")
        .await
        .expect_err("a table without a window");
    assert!(
        error.to_string().contains("deduplication_window"),
        "{error}"
    );

    let nobody = ClickHouseSink::builder("http://127.0.0.1:9").expect("a URL");
    let error = nobody.connect().await.expect_err("no server");
    assert!(
        matches!(error, ClickHouseStartError::Unavailable(_)),
        "{error}"
    );
}

#[tokio::test]
async fn many_processes_may_migrate_at_once_and_again() {
    let server = ClickHouseServer::start();
    let migrations = (0..4).map(|_| {
        let url = server.url();
        tokio::spawn(async move { sink(&url, "at `once`").await })
    });
    for migration in migrations.collect::<Vec<_>>() {
        accept(&migration.await.expect("migrated"), &events(0..3, "acme")).await;
    }
    assert_eq!(number(&server.client("at `once`"), ONCE).await, 3);
}

#[test]
fn settings_that_cannot_work_are_refused_and_no_password_shows() {
    for url in [
        "",
        "127.0.0.1:8123",
        "ftp://host",
        "http://user:secret@host:8123",
    ] {
        let error = ClickHouseSink::builder(url).expect_err(url);
        assert_eq!(error.path(), "url");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
    let builder = ClickHouseSink::builder("https://host:8443").expect("a URL");
    let shown = format!("{:?}", builder.user("gate", "hunter2"));
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[derive(Clone, Debug)]
struct Offer {
    from: u64,
    n: u64,
    answered: bool,
}

fn offer() -> impl Strategy<Value = Offer> {
    (0..40_u64, 1..20_u64, any::<bool>()).prop_map(|(from, n, answered)| Offer {
        from,
        n,
        answered,
    })
}

/// Whatever is offered, in whatever cuts, with and without an answer, counts once.
#[test]
fn totals_are_those_of_a_set_whatever_is_offered() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let (server, proxy) = runtime.block_on(async {
        let server = ClickHouseServer::start();
        let proxy = FaultProxy::before(server.port).await;
        (server, proxy)
    });
    let number_of_case = std::cell::Cell::new(0);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(8));
    let offers = prop::collection::vec(offer(), 1..10);
    let checked = runner.run(&offers, |offers| {
        number_of_case.set(number_of_case.get() + 1);
        let database = format!("case_{}", number_of_case.get());
        runtime.block_on(async {
            proxy.set(Fault::None);
            let sink = sink(&format!("http://{}", proxy.addr), &database).await;
            let mut model = std::collections::BTreeSet::new();
            for Offer { from, n, answered } in offers {
                let batch = events(from..from + n, "acme");
                if !answered {
                    proxy.set(Fault::CutAfter(0));
                    let _ = tokio::time::timeout(Duration::from_secs(5), sink.write(&batch)).await;
                    proxy.set(Fault::None);
                }
                accept(&sink, &batch).await;
                model.extend(from..from + n);
            }
            let client = server.client(&database);
            for query in [ONCE, "SELECT sum(requests) FROM usage_requests_per_hour"] {
                prop_assert_eq!(number(&client, query).await, model.len() as u64);
            }
            Ok(())
        })
    });
    checked.expect("no difference");
}
