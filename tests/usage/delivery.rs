//! From the recorder to the sink, whatever the sink does.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use tollgate::{
    Tollgate,
    meter::{Durability, Recorder, UsageEvent},
    plan::Plan,
    sink::{DeliveryOrder, FanOut, MemorySink, SinkError, UsageSink, Verdict, Verdicts, batch_id},
};

use super::{
    common::temp::TempDir,
    stand::{Calls, Switched, identity, number, numbers, spooled},
};

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_offered_again_is_the_same_byte_for_byte() {
    let sink = Switched::down();
    let recorder = Recorder::builder(sink.clone()).max_batch(3);
    let recorder = recorder.build().unwrap();
    let calls = Calls::of(&recorder);
    calls.calls("acme", 0..3);
    tokio::time::sleep(Duration::from_secs(2)).await;
    // What comes meanwhile joins no batch that was made.
    calls.calls("acme", 3..5);
    tokio::time::sleep(Duration::from_secs(2)).await;
    sink.up();
    recorder.flush().await;
    let offered = sink.offered();
    assert!(offered.len() > 3);
    let (last, first) = offered.split_last().unwrap();
    assert!(first.iter().all(|offer| *offer == first[0]));
    assert_ne!(last.0, first[0].0);
    assert_eq!(numbers(&sink.accepted.events()), [0, 1, 2, 3, 4]);
    assert_eq!(
        batch_id(&sink.accepted.events()[..3]).to_string(),
        first[0].0
    );
}

#[tokio::test(start_paused = true)]
async fn a_batch_ends_with_the_event_that_reaches_its_bytes() {
    let sink = Switched::down();
    sink.up();
    let recorder = Recorder::builder(sink.clone()).max_batch_bytes(1 << 10);
    let recorder = recorder.build().unwrap();
    Calls::of(&recorder).calls("acme", 0..7);
    recorder.flush().await;
    let lengths: Vec<_> = sink.offered().iter().map(|(_, json)| json.len()).collect();
    assert_eq!(lengths.len(), 3, "{lengths:?}");
    assert!(lengths[0] > 600 && lengths[0] < 2_000, "{lengths:?}");
    let builder = || Recorder::builder(MemorySink::new());
    // And so does one of dead letters that are offered again.
    let rejecting = Switched::rejecting();
    let recorder = Recorder::builder(rejecting.clone()).max_batch_bytes(1 << 10);
    let recorder = recorder.build().unwrap();
    Calls::of(&recorder).calls("acme", 0..7);
    recorder.flush().await;
    rejecting.reject(false);
    assert_eq!(recorder.replay_dead_letters(), 7);
    recorder.flush().await;
    assert_eq!(numbers(&rejecting.accepted.events()), [0, 1, 2, 3, 4, 5, 6]);
    let offered = rejecting.offered();
    assert_eq!(offered.len(), 6, "three times for all, twice");
    assert!(offered.iter().all(|(_, json)| json.len() < 2_000));
    for wrong in [0, 1_023, 9 << 20] {
        let error = builder().max_batch_bytes(wrong).build().unwrap_err();
        assert_eq!(error.path(), "max_batch_bytes");
    }
}

/// Tells each event of one tenant to wait, once, and notes the order of what it is offered.
#[derive(Clone, Debug)]
struct Ordered {
    order: DeliveryOrder,
    waits: Arc<Mutex<Option<&'static str>>>,
    accepted: Arc<Mutex<Vec<(String, u64)>>>,
}

impl Ordered {
    fn new(order: DeliveryOrder) -> Self {
        Self {
            order,
            waits: Arc::new(Mutex::new(Some("slow"))),
            accepted: Arc::default(),
        }
    }

    fn of(&self, tenant: &str) -> Vec<u64> {
        let accepted = self.accepted.lock().unwrap();
        let own = accepted.iter().filter(|(of, _)| of == tenant);
        own.map(|(_, number)| *number).collect()
    }
}

#[async_trait]
impl UsageSink for Ordered {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        let mut waits = self.waits.lock().unwrap();
        if waits.is_some_and(|tenant| batch[0].tenant.as_str() == tenant) {
            *waits = None;
            let after = Duration::from_secs(60);
            return Ok(Verdicts::Each(vec![Verdict::Retry { after }; batch.len()]));
        }
        let accepted = batch
            .iter()
            .map(|event| (event.tenant.to_string(), number(event)));
        self.accepted.lock().unwrap().extend(accepted);
        Ok(Verdicts::AllAccepted)
    }

    fn order(&self) -> DeliveryOrder {
        self.order
    }
}

#[tokio::test(start_paused = true)]
async fn a_sink_has_the_events_of_a_tenant_in_order_where_it_asks_for_it() {
    for (order, expected) in [
        (DeliveryOrder::PerTenant, [1, 3, 5]),
        (DeliveryOrder::Any, [3, 5, 1]),
    ] {
        let sink = Ordered::new(order);
        // Behind what wraps it, the order is still asked for.
        let wrapped = FanOut::new().with(Arc::new(sink.clone()));
        assert_eq!(wrapped.order(), order);
        let recorder = Recorder::builder(sink.clone()).max_batch(1);
        let recorder = recorder.build().unwrap();
        let calls = Calls::of(&recorder);
        calls.calls("slow", [1]);
        calls.calls("other", [2]);
        calls.calls("slow", [3]);
        calls.calls("other", [4]);
        tokio::time::sleep(Duration::from_secs(1)).await;
        calls.calls("slow", [5]);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(sink.of("other"), [2, 4], "another tenant does not wait");
        recorder.flush().await;
        assert_eq!(sink.of("slow"), expected);
        calls.assert_balanced();
    }
}

#[tokio::test]
async fn the_order_holds_over_a_backlog_and_a_restart() {
    let directory = TempDir::new();
    let down = Switched::down();
    let recorder = spooled(down, directory.path())
        .max_batch(2)
        .build()
        .unwrap();
    Calls::of(&recorder).calls("slow", 0..5);
    assert!(recorder.persist().await);
    let _ = recorder.shutdown(Duration::ZERO).await;
    let sink = Ordered::new(DeliveryOrder::PerTenant);
    *sink.waits.lock().unwrap() = None;
    let recorder = spooled(sink.clone(), directory.path()).build().unwrap();
    Calls::of(&recorder).calls("slow", 5..20);
    recorder.flush().await;
    assert_eq!(sink.of("slow"), (0..20).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_hangs_stops_no_other_in_a_fan_out() {
    let (hangs, serves) = (Switched::hanging(), MemorySink::new());
    let sink = FanOut::new().with(hangs.clone()).with(serves.clone());
    let recorder = Recorder::new(sink.patience(Duration::from_secs(2))).unwrap();
    let calls = Calls::of(&recorder);
    for number in 0..100 {
        calls.calls("acme", [number]);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // The one that hangs was asked now and then, and made the others wait for its patience at most.
    assert!((2..30).contains(&hangs.offered().len()));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(serves.len(), 100);
    assert_eq!(serves.duplicates(), 0);
    calls.assert_balanced();
    assert_eq!(recorder.counters().in_flight, 100);
}

#[tokio::test]
async fn a_sink_of_a_fan_out_that_may_fall_behind_without_bound_loses_nothing() {
    // More than is kept for a sink unless set.
    const N_CALLS: u64 = 33_000;
    let directory = TempDir::new();
    let (down, serves) = (Switched::down(), MemorySink::new());
    let fan_out = |down: &Switched| {
        let sink = FanOut::new().with(down.clone()).with(serves.clone());
        Arc::new(sink.max_behind(u64::MAX))
    };
    let sink = fan_out(&down);
    let recorder = spooled(Arc::clone(&sink), directory.path())
        .build()
        .unwrap();
    let calls = Calls::of(&recorder);
    let caller = identity("acme");
    for number in 0..N_CALLS {
        calls.call(&caller, number);
        if number % 5_000 == 0 {
            assert!(recorder.persist().await);
        }
    }
    while serves.len() < N_CALLS as usize {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(sink.counters()[0].dropped, 0);
    let report = recorder.shutdown(Duration::ZERO).await;
    assert_eq!((report.spooled, report.dropped), (N_CALLS, 0));
    down.up();
    let recorder = spooled(fan_out(&down), directory.path()).build().unwrap();
    recorder.flush().await;
    assert_eq!(down.accepted.len(), N_CALLS as usize);
    assert_eq!(serves.duplicates(), N_CALLS);
    assert!(recorder.counters().is_balanced());
}

#[tokio::test]
async fn a_sink_that_hangs_does_not_keep_events_from_the_disk() {
    let directory = TempDir::new();
    let sink = Switched::hanging();
    let recorder = spooled(sink.clone(), directory.path()).build().unwrap();
    let calls = Calls::of(&recorder);
    for number in 0..20 {
        calls.calls("acme", [number]);
        assert!(recorder.persist().await);
    }
    assert_eq!(sink.offered().len(), 1);
    let counters = recorder.counters();
    assert_eq!(
        (counters.in_flight + counters.spooled, counters.acked),
        (20, 0)
    );
    let _ = recorder.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_backlog_is_read_back_in_its_order_and_each_event_once() {
    let directory = TempDir::new();
    let sink = Switched::down();
    let recorder = spooled(sink.clone(), directory.path())
        .max_batch(100)
        .build()
        .unwrap();
    let calls = Calls::of(&recorder);
    for first in (0..2_000).step_by(250) {
        calls.calls("acme", first..first + 250);
        assert!(recorder.persist().await);
        calls.assert_balanced();
    }
    let counters = recorder.counters();
    assert!(counters.spooled > 1_000, "{counters:?}");
    sink.up();
    calls.calls("acme", 2_000..2_010);
    recorder.flush().await;
    calls.assert_balanced();
    assert_eq!(
        numbers(&sink.accepted.events()),
        (0..2_010).collect::<Vec<_>>()
    );
    assert_eq!(sink.accepted.duplicates(), 0);
    let counters = recorder.counters();
    assert_eq!((counters.spooled, counters.in_flight), (0, 0));
    assert_eq!((counters.acked, counters.dropped()), (2_010, 0));
}

#[tokio::test(start_paused = true)]
async fn dead_letters_are_replayed_and_may_die_again() {
    let sink = Switched::rejecting();
    let recorder = Recorder::new(sink.clone()).unwrap();
    let calls = Calls::of(&recorder);
    calls.calls("acme", 0..3);
    recorder.flush().await;
    assert_eq!(recorder.replay_dead_letters(), 3);
    calls.assert_balanced();
    recorder.flush().await;
    assert_eq!((recorder.dead_letters().len(), sink.accepted.len()), (3, 0));
    sink.reject(false);
    assert_eq!(recorder.replay_dead_letters(), 3);
    recorder.flush().await;
    assert_eq!(numbers(&sink.accepted.events()), [0, 1, 2]);
    let counters = recorder.counters();
    assert_eq!(
        (
            counters.settled,
            counters.replayed,
            counters.dead_lettered,
            counters.acked
        ),
        (3, 6, 6, 3)
    );
    assert!(counters.is_balanced());
    assert_eq!(recorder.replay_dead_letters(), 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_promised_in_memory_and_losses_are_told_by_tenant() {
    let recorder = Recorder::builder(MemorySink::new()).queue_capacity(2);
    let recorder = recorder.build().unwrap();
    let calls = Calls::of(&recorder);
    calls.calls("acme", [1, 2]);
    calls.calls("globex", [3, 4]);
    assert!(!recorder.persist().await);
    let losses = recorder.losses();
    let [loss] = &losses[..] else {
        panic!("{losses:?}")
    };
    assert_eq!(loss.tenant.as_ref().unwrap().as_str(), "globex");
    assert_eq!((loss.reason.as_str(), loss.events), ("queue_full", 2));
    assert_eq!(loss.quantities["number"], 7);
    assert_eq!(loss.day.unwrap().as_unix_seconds() % 86_400, 0);
}

#[tokio::test]
async fn a_gate_takes_a_durability_and_refuses_two() {
    let directory = TempDir::new();
    let gate = Tollgate::builder()
        .plans([Plan::new("free")])
        .usage(MemorySink::new())
        .usage_durability(Durability::spool(directory.path()))
        .build()
        .unwrap();
    assert!(directory.path().join("cursor").exists());
    let _ = gate.shutdown(Duration::from_secs(1)).await;
    let error = Tollgate::builder()
        .plans([Plan::new("free")])
        .recorder(Recorder::new(MemorySink::new()).unwrap())
        .usage_durability(Durability::spool(directory.path()))
        .build()
        .unwrap_err();
    assert!(error.to_string().contains("usage_durability"), "{error}");
}
