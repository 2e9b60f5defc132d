//! Counters of usage by day: what was counted, and what a repeated batch does.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use axum::body::Body;
use http::{Request, Response};
use jiff::civil::date;
use proptest::prelude::*;
use tollgate::{
    Tollgate,
    clock::{Clock as _, SystemClock, Timestamp},
    id::Environment,
    identity::NewKey,
    meter::{CallOutcome, EventId, UsageEvent},
    plan::Plan,
    redis_support::RedisConnector,
    sink::{
        DayCounters, RedisCounterSink, RedisCountersError, SinkError, UsageSink, Verdict, Verdicts,
    },
};

use tower::{Layer, ServiceExt, service_fn};

use super::{connect, noon, plan, redis, tenant};
use crate::common::{
    fault_proxy::{Fault, FaultProxy},
    redis::RedisServer,
};

fn event(sequence: u64, owner: &str, api: &str) -> UsageEvent {
    let mut event = UsageEvent::new(
        EventId::new(7, sequence),
        noon(),
        tenant(owner),
        plan("pro"),
    );
    event.api = Arc::from(api);
    event
}

const DAY: jiff::civil::Date = date(2026, 1, 15);

async fn accepted(sink: &RedisCounterSink, events: &[UsageEvent]) {
    let verdicts = sink.write(events).await.unwrap();
    assert_eq!(
        verdicts,
        Verdicts::Each(vec![Verdict::Accepted; events.len()])
    );
}

#[tokio::test]
async fn calls_failures_bytes_and_quantities_are_counted_by_tenant_api_and_day() {
    let server = RedisServer::start();
    let sink = RedisCounterSink::new(&redis(&server).await);
    let counters = sink.counters();
    let mut served = event(1, "acme", "chat");
    (served.request_bytes, served.response_bytes) = (10, 20);
    served.quantities = [("tokens".into(), 800), ("images".into(), 0)].into();
    let mut failed = event(2, "acme", "chat");
    failed.outcome = CallOutcome::Failed;
    failed.quantities = [("tokens".into(), 12)].into();
    let mut refused = event(3, "acme", "chat");
    refused.outcome = CallOutcome::Refused;
    // The report of a call that goes on is no call, and its bytes count.
    let mut part = event(4, "acme", "chat");
    (part.part_of, part.response_bytes) = (Some(EventId::new(7, 9)), 5);
    let mut test = event(5, "acme", "chat");
    test.environment = Environment::Test;
    let mut next_day = event(6, "acme", "chat");
    next_day.time = noon().saturating_add(Duration::from_secs(12 * 60 * 60));
    let events = [
        served,
        failed,
        refused,
        part,
        test,
        next_day,
        event(7, "acme", "search"),
        event(8, "other", "chat"),
    ];
    accepted(&sink, &events).await;
    let read =
        async |owner: &str, api: &str, day| counters.read(&tenant(owner), api, day).await.unwrap();
    let chat = read("acme", "chat", DAY).await;
    assert_eq!((chat.calls, chat.errors, chat.refused), (3, 1, 1));
    assert_eq!((chat.request_bytes, chat.response_bytes), (10, 25));
    assert_eq!(chat.quantities, [("tokens".into(), 812)].into());
    assert_eq!(read("acme", "chat", date(2026, 1, 16)).await.calls, 1);
    assert_eq!(read("acme", "search", DAY).await.calls, 1);
    assert_eq!(read("other", "chat", DAY).await.calls, 1);
    assert_eq!(read("nobody", "chat", DAY).await, DayCounters::default());
    let sandbox = counters.clone().environment(Environment::Test);
    let test = sandbox.read(&tenant("acme"), "chat", DAY).await.unwrap();
    assert_eq!(test.calls, 1);
}

#[tokio::test]
async fn counters_go_after_their_lifetime_and_names_are_bounded() {
    let server = RedisServer::start();
    let sink =
        RedisCounterSink::new(&redis(&server).await).lifetime(Duration::from_secs(3 * 86_400));
    let names = ["{x}", "a:b", "a b", "%", &"y".repeat(200)];
    let events: Vec<_> = (1..)
        .zip(names)
        .map(|(n, name)| event(n, name, name))
        .collect();
    accepted(&sink, &events).await;
    for name in names {
        let own = sink
            .counters()
            .read(&tenant(name), name, DAY)
            .await
            .unwrap();
        assert_eq!(own.calls, 1, "{name}");
    }
    let keys: Vec<String> = server.query(&["KEYS", "*"]);
    assert_eq!(keys.len(), 2 * names.len());
    for key in keys {
        assert!(key.len() <= 128, "{key}");
        let ttl: i64 = server.query(&["TTL", &key]);
        let most = if key.contains(":u:") { 3 } else { 2 } * 86_400;
        assert!((most - 60..=most).contains(&ttl), "{key} {ttl}");
    }
}

#[tokio::test]
async fn a_batch_whose_answer_was_lost_is_counted_once() {
    let server = RedisServer::start();
    let proxy = FaultProxy::before(server.port).await;
    let connector = RedisConnector::single(proxy.url()).unwrap();
    let connector = connector
        .connect_timeout(Duration::from_secs(5))
        .response_timeout(Duration::from_millis(200));
    let sink = RedisCounterSink::new(&connect(connector).await);
    // More than one script's worth of one tenant, and a second tenant.
    let events: Vec<_> = (0..600)
        .map(|n| event(n, if n % 3 == 0 { "other" } else { "acme" }, "chat"))
        .collect();
    for fault in [Fault::Hold, Fault::CutAfter(0), Fault::CutAfter(1)] {
        proxy.set(fault);
        let lost = sink.write(&events).await;
        assert!(matches!(lost, Err(SinkError::Unavailable(_))), "{lost:?}");
    }
    proxy.set(Fault::None);
    let mut left = events;
    for _ in 0..100 {
        match sink.write(&left).await {
            Ok(Verdicts::Each(verdicts)) => {
                let mut verdicts = verdicts.into_iter();
                left.retain(|_| matches!(verdicts.next(), Some(Verdict::Retry { .. })));
                if left.is_empty() {
                    break;
                }
            }
            Ok(other) => panic!("{other:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    let counters = sink.counters();
    for (owner, n) in [("acme", 400), ("other", 200)] {
        let counted = counters.read(&tenant(owner), "chat", DAY).await.unwrap();
        assert_eq!(counted.calls, n, "{owner}");
    }
}

#[tokio::test]
async fn what_is_left_of_several_scripts_is_cut_in_the_same_places() {
    let server = RedisServer::start();
    let sink = RedisCounterSink::new(&redis(&server).await);
    let events: Vec<_> = (0..700).map(|n| event(n, "acme", "chat")).collect();
    accepted(&sink, &events).await;
    // The first and the last script were lost, as their sender sees it.
    let mut again = events[..256].to_vec();
    again.extend_from_slice(&events[512..]);
    for again in [&again[..], &events[256..], &events] {
        let verdicts = sink.write(again).await.unwrap();
        assert_eq!(
            verdicts,
            Verdicts::Each(vec![Verdict::Duplicate; again.len()])
        );
    }
    let counted = sink
        .counters()
        .read(&tenant("acme"), "chat", DAY)
        .await
        .unwrap();
    assert_eq!(counted.calls, 700);
}

#[tokio::test]
async fn sixteen_batches_of_a_writer_are_known_and_writers_are_apart() {
    let server = RedisServer::start();
    let sink = RedisCounterSink::new(&redis(&server).await);
    let batch = |writer: u64, n: u64| {
        let mut event = event(0, "acme", "chat");
        event.id = EventId::new(writer, n);
        [event]
    };
    for writer in 1..=20 {
        for n in 1..=16 {
            accepted(&sink, &batch(writer, n)).await;
        }
    }
    for writer in 1..=20 {
        for n in 1..=16 {
            let again = sink.write(&batch(writer, n)).await.unwrap();
            assert_eq!(again, Verdicts::Each(vec![Verdict::Duplicate]));
        }
    }
    // The guide says so: the seventeenth before is forgotten.
    accepted(&sink, &batch(1, 17)).await;
    accepted(&sink, &batch(1, 1)).await;
    let counted = sink
        .counters()
        .read(&tenant("acme"), "chat", DAY)
        .await
        .unwrap();
    assert_eq!(counted.calls, 20 * 16 + 2);
}

#[tokio::test]
async fn what_cannot_be_added_to_is_rejected_and_stops_nothing() {
    let server = RedisServer::start();
    let sink = RedisCounterSink::new(&redis(&server).await);
    let key = |owner: &str| format!("tg:1:{{l.{owner}}}:u:20260115:chat");
    let _: i64 = server.query(&["HSET", &key("full"), "calls", "9223372036854775807"]);
    let _: i64 = server.query(&["HSET", &key("text"), "calls", "many"]);
    let () = server.query(&["SET", &key("foreign"), "text"]);
    let () = server.query(&["SET", "tg:1:{l.ring}:w:20260115", "text"]);
    let owners = ["full", "text", "foreign", "ring", "well"];
    let events: Vec<_> = (1..)
        .zip(owners)
        .map(|(n, owner)| event(n, owner, "chat"))
        .collect();
    let rejected = Verdict::Rejected {
        reason: "counter_unusable",
    };
    let verdicts = sink.write(&events).await.unwrap();
    let expected = vec![rejected, rejected, rejected, rejected, Verdict::Accepted];
    assert_eq!(verdicts, Verdicts::Each(expected));
    let counters = sink.counters();
    for owner in ["text", "foreign"] {
        let read = counters.read(&tenant(owner), "chat", DAY).await;
        assert!(
            matches!(read, Err(RedisCountersError::Corrupt(_))),
            "{read:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorder_writes_through_a_server_that_goes_and_comes_back() {
    let mut server = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let sink = RedisCounterSink::new(&redis(&server).await);
    let counters = sink.counters();
    let gate = Tollgate::builder()
        .plans([Plan::new("free")])
        .api("chat")
        .usage(sink)
        .build()
        .unwrap();
    let new = NewKey::for_tenant("acme").plan("free");
    let key = gate.keys().issue(new).await.unwrap().key;
    let call = async || {
        let service = gate.layer().layer(service_fn(async |_: Request<Body>| {
            Ok::<_, Infallible>(Response::new(Body::empty()))
        }));
        let request = Request::get("/")
            .header("x-api-key", key.expose())
            .body(Body::empty())
            .unwrap();
        let response = service.oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), 200);
    };
    for _ in 0..500 {
        call().await;
    }
    gate.usage().flush().await;
    server.kill();
    for _ in 0..500 {
        call().await;
    }
    super::within(10, "a failed write", || gate.usage().counters().retries > 0).await;
    server.restart();
    gate.usage().flush().await;
    assert_eq!(gate.usage().counters().acked, 1_000);
    let today = SystemClock::new().now().wall().to_jiff();
    let today = today.to_zoned(jiff::tz::TimeZone::UTC).date();
    let acme = tenant("acme");
    let mut calls = counters.read(&acme, "chat", today).await.unwrap().calls;
    // The day may have changed on the way.
    let yesterday = today.yesterday().unwrap();
    calls += counters.read(&acme, "chat", yesterday).await.unwrap().calls;
    assert_eq!(calls, 1_000);
}

/// One event as a test names it: tenant, API, day, outcome, a quantity.
type Small = (u8, u8, u8, bool, u16);

fn small(sequence: u64, (owner, api, day, failed, tokens): Small) -> UsageEvent {
    let mut event = event(sequence, &format!("t{owner}"), &format!("a{api}"));
    event.time = Timestamp::from_unix_seconds(1_768_478_400 + u64::from(day) * 86_400);
    if failed {
        event.outcome = CallOutcome::Panicked;
    }
    event.quantities = [("tokens".into(), u64::from(tokens))].into();
    event
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn however_often_batches_come_the_counters_are_the_sums(
        batches in proptest::collection::vec(
            (proptest::collection::vec((0..3_u8, 0..2_u8, 0..2_u8, any::<bool>(), any::<u16>()), 1..40), 1..4_usize),
            1..6,
        ),
    ) {
        let server = RedisServer::start();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let sink = RedisCounterSink::new(&redis(&server).await);
            let mut model: BTreeMap<(u8, u8, u8), (u64, u64, u64)> = BTreeMap::new();
            let mut sequence = 0;
            for (batch, n_times) in batches {
                let mut events = Vec::new();
                for each in batch {
                    sequence += 1;
                    events.push(small(sequence, each));
                    let (owner, api, day, failed, tokens) = each;
                    let sums = model.entry((owner, api, day)).or_default();
                    *sums = (sums.0 + 1, sums.1 + u64::from(failed), sums.2 + u64::from(tokens));
                }
                for _ in 0..n_times {
                    sink.write(&events).await.unwrap();
                }
            }
            for ((owner, api, day), sums) in model {
                let date = date(2026, 1, 15 + i8::try_from(day).unwrap());
                let read = sink.counters().read(&tenant(&format!("t{owner}")), &format!("a{api}"), date).await.unwrap();
                let tokens = read.quantities.get("tokens").copied().unwrap_or(0);
                assert_eq!((read.calls, read.errors, tokens), sums);
            }
        });
    }
}
