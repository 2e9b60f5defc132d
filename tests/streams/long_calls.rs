//! Calls of hours report while they go on.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::UnboundedReceiverStream};
use tollgate::{
    meter::{CallOutcome, MeterHold, Recorder, UsageEvent},
    sink::MemorySink,
};
use tower::{Layer as _, Service as _, ServiceExt as _, service_fn};

use super::stand::{BoxError, Stand, TOKENS, boxed, meter_of, stand_with};

const MINUTE: Duration = Duration::from_secs(60);

async fn reporting() -> Stand {
    stand_with(|builder| builder, |recorder| recorder.report_every(MINUTE)).await
}

fn sum(events: &[UsageEvent], name: &str) -> u64 {
    let quantities = events.iter().filter_map(|event| event.quantities.get(name));
    quantities.sum()
}

#[tokio::test]
async fn a_stream_of_an_hour_is_metered_every_minute() {
    let stand = reporting().await;
    let (send, frames) = mpsc::unbounded_channel::<()>();
    let frames = Arc::new(Mutex::new(Some(UnboundedReceiverStream::new(frames))));
    let mut service = stand
        .layer()
        .layer(service_fn(move |request: Request<Empty<Bytes>>| {
            let meter = meter_of(&request);
            let frames = frames.lock().expect("a sound lock").take();
            let frames = frames.expect("one call").map(move |()| {
                meter.add("tokens", 3);
                Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"ten bytes.")))
            });
            async { Ok::<_, Infallible>(Response::new(boxed(StreamBody::new(frames)))) }
        }));
    let response = service.call(stand.get("/")).await.expect("infallible");
    let mut body = response.into_body();
    for minute in 1..=60 {
        send.send(()).expect("a stream");
        body.frame().await.expect("a frame").expect("data");
        stand.clock.advance(MINUTE);
        stand.gate.usage().flush().await;
        let events = stand.sink.events();
        // What a kill would lose is what was used since.
        assert_eq!(events.len(), minute);
        assert_eq!(sum(&events, "tokens"), 3 * minute as u64);
        let counters = stand.gate.usage().counters();
        assert!(counters.is_balanced(), "{counters:?}");
        assert_eq!((counters.open, counters.parts), (1, minute as u64));
    }
    // A minute in which nothing happens tells nothing.
    stand.clock.advance(MINUTE);
    stand.gate.usage().flush().await;
    assert_eq!(stand.sink.len(), 60);
    send.send(()).expect("a stream");
    body.frame().await.expect("a frame").expect("data");
    drop(send);
    assert!(body.frame().await.is_none());
    drop(body);

    stand.gate.usage().flush().await;
    let events = stand.sink.events();
    assert_eq!(stand.sink.duplicates(), 0);
    let (last, parts) = events.split_last().expect("events");
    assert_eq!(parts.len(), 60);
    assert_eq!((last.part_of, last.outcome), (None, CallOutcome::Served));
    let mut time = last.time;
    for part in parts {
        assert_eq!(part.part_of, Some(last.id));
        assert_eq!((part.status, part.response_bytes), (200, 10));
        assert_eq!(part.tenant, last.tenant);
        assert!(part.time > time, "{part:?}");
        time = part.time;
    }
    assert_eq!(sum(&events, "tokens"), 183);
    assert_eq!(
        events.iter().map(|event| event.response_bytes).sum::<u64>(),
        610
    );
    let left = stand.left().await;
    assert_eq!(left.tokens, TOKENS - 183);
}

#[tokio::test]
async fn a_held_connection_reports_its_time_and_messages() {
    let stand = reporting().await;
    let (holds_to, mut holds) = mpsc::unbounded_channel::<MeterHold>();
    let service = stand
        .layer()
        .layer(service_fn(move |request: Request<Empty<Bytes>>| {
            let hold = meter_of(&request).hold().count_millis("ms");
            let _ = holds_to.send(hold);
            async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
        }));
    drop(service.oneshot(stand.get("/")).await);
    let hold = holds.recv().await.expect("a hold");
    for _ in 0..3 {
        hold.add("messages", 2);
        hold.add_sent_bytes(20);
        hold.add_received_bytes(30);
        stand.clock.advance(MINUTE);
        stand.gate.usage().flush().await;
    }
    stand.clock.advance(Duration::from_millis(1_500));
    hold.add("messages", 1);
    drop(hold);
    stand.gate.usage().flush().await;
    let events = stand.sink.events();
    assert_eq!(events.len(), 4);
    for part in &events[..3] {
        assert_eq!(part.part_of, Some(events[3].id));
        assert_eq!(
            (part.quantities["ms"], part.quantities["messages"]),
            (60_000, 2)
        );
        assert_eq!((part.response_bytes, part.request_bytes), (20, 30));
    }
    let last = &events[3];
    assert_eq!(
        (last.quantities["ms"], last.quantities["messages"]),
        (1_500, 1)
    );
    assert_eq!((last.response_bytes, last.request_bytes), (0, 0));
    assert_eq!(last.latency_micros, 181_500_000);
}

/// A report tells what was handed over only, so that it never has to be taken back.
#[tokio::test]
async fn what_was_reported_and_the_rest_are_what_an_abort_pays() {
    let stand = reporting().await;
    let mut service = stand
        .layer()
        .layer(service_fn(|request: Request<Empty<Bytes>>| {
            let meter = meter_of(&request);
            let frames = tokio_stream::iter(0..10).map(move |_| {
                meter.add("tokens", 10);
                Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"x")))
            });
            async { Ok::<_, Infallible>(Response::new(boxed(StreamBody::new(frames)))) }
        }));
    let response = service.call(stand.get("/")).await.expect("infallible");
    let mut body = response.into_body();
    for _ in 0..2 {
        body.frame().await.expect("a frame").expect("data");
    }
    stand.clock.advance(MINUTE);
    stand.gate.usage().flush().await;
    body.frame().await.expect("a frame").expect("data");
    drop(body);
    stand.gate.usage().flush().await;
    let events = stand.sink.events();
    let tokens: Vec<_> = events
        .iter()
        .map(|event| event.quantities["tokens"])
        .collect();
    assert_eq!(tokens, [20, 10]);
    assert_eq!(events[1].outcome, CallOutcome::Aborted);
}

#[tokio::test]
async fn short_calls_and_calls_without_a_setting_report_nothing() {
    let stand = reporting().await;
    let service = stand
        .layer()
        .layer(service_fn(|_: Request<Empty<Bytes>>| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"full"))))
        }));
    for _ in 0..3 {
        let response = service
            .clone()
            .oneshot(stand.get("/"))
            .await
            .expect("infallible");
        stand.clock.advance(MINUTE * 2);
        stand.gate.usage().flush().await;
        response.into_body().collect().await.expect("a body");
    }
    stand.events(3).await;
    assert_eq!(stand.gate.usage().counters().parts, 0);
    for wrong in [Duration::ZERO, Duration::from_secs(86_401)] {
        let recorder = Recorder::builder(MemorySink::new()).report_every(wrong);
        let error = recorder.build().expect_err("no interval");
        assert_eq!(error.path(), "report_every");
    }
}
