//! Calls that come by no HTTP request.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use http::StatusCode;
use tollgate::{
    clock::{Clock as _, ManualClock},
    error::ErrorCode,
    meter::{CallMeter, CallOutcome, Recorder},
    sink::MemorySink,
};

use super::{events_of, identity, recorder};

#[tokio::test]
async fn one_call_makes_one_event() {
    let (clock, sink) = (ManualClock::default(), MemorySink::new());
    let recorder = Recorder::builder(sink.clone()).clock(Arc::new(clock.clone()));
    let recorder = recorder.build().expect("a recorder");
    let call = CallMeter::new(recorder.clone(), "jobs").open(clock.now());
    call.meter().identify(&identity());
    call.meter().add("pixels", 7);
    clock.advance(Duration::from_micros(12));
    call.end(StatusCode::OK);
    let [event] = &events_of(&recorder, &sink, 1).await[..] else {
        panic!("one event")
    };
    assert_eq!((&*event.api, event.tenant.as_str()), ("jobs", "acme"));
    assert_eq!((event.status, event.outcome), (200, CallOutcome::Served));
    assert_eq!(&*event.method, "_OTHER");
    assert_eq!((event.latency_micros, event.quantities["pixels"]), (12, 7));
}

#[tokio::test]
async fn a_call_without_a_caller_is_counted_by_status() {
    let (recorder, sink) = recorder();
    let clock = ManualClock::default();
    let calls = CallMeter::new(recorder.clone(), "jobs");
    calls.open(clock.now()).end(StatusCode::OK);
    recorder.flush().await;
    assert!(sink.events().is_empty());
    assert_eq!(recorder.counters().unidentified(200), 1);
}

#[tokio::test]
async fn every_other_end_is_told_apart() {
    let (recorder, sink) = recorder();
    let (clock, calls) = (
        ManualClock::default(),
        CallMeter::new(recorder.clone(), "jobs"),
    );
    let open = || {
        let call = calls.open(clock.now());
        call.meter().identify(&identity());
        call
    };
    open().end(StatusCode::BAD_GATEWAY);
    let refused = open();
    refused.meter().refused(ErrorCode::RateLimited);
    refused.end(StatusCode::TOO_MANY_REQUESTS);
    drop(open());
    let panics = catch_unwind(AssertUnwindSafe(|| {
        let _call = open();
        panic!("the job fails");
    }));
    assert!(panics.is_err());
    let events = events_of(&recorder, &sink, 4).await;
    let ends: Vec<_> = events
        .iter()
        .map(|event| (event.status, event.outcome))
        .collect();
    assert_eq!(
        ends,
        [
            (502, CallOutcome::Failed),
            (429, CallOutcome::Refused),
            (499, CallOutcome::Aborted),
            (500, CallOutcome::Panicked),
        ]
    );
}

/// The background task would empty the queue if a call woke it.
#[tokio::test(start_paused = true)]
async fn an_end_wakes_nobody() {
    let (recorder, _sink) = recorder();
    let clock = ManualClock::default();
    let calls = CallMeter::new(recorder.clone(), "jobs");
    // The task's first look at the queue is behind it.
    recorder.flush().await;
    for _ in 0..1_000 {
        let call = calls.open(clock.now());
        call.meter().identify(&identity());
        call.end(StatusCode::OK);
        tokio::task::yield_now().await;
    }
    assert_eq!(recorder.counters().queued, 1_000);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(recorder.counters().queued, 0);
}
