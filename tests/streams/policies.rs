//! The policy of one route or plan, and charges that are not reservations.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use tokio_stream::StreamExt as _;
use tollgate::{
    limit::MemoryLimits,
    meter::{AbortPolicy, CallOutcome, Meter},
    prelude::*,
    sink::MemorySink,
};
use tower::{Layer as _, Service as _, ServiceExt as _, service_fn};

use super::stand::{ALL, BoxError, CALLS, RATE, TOKENS, TestBody, boxed, meter_of, stand};

/// Adds 30 tokens before it answers and 10 with each of three frames.
async fn thirty(request: Request<Empty<Bytes>>) -> Result<Response<TestBody>, Infallible> {
    let meter = meter_of(&request);
    if request.uri().path() == "/generous" {
        meter.set_abort_policy(AbortPolicy::NothingBeforeFirstByte);
        meter.set_abort_policy(AbortPolicy::Produced);
        meter.set_abort_policy(AbortPolicy::NothingBeforeFirstByte);
    }
    meter.add("tokens", 30);
    let frames = tokio_stream::iter(0..3).map(move |_| {
        meter.add("tokens", 10);
        Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"x")))
    });
    Ok(Response::new(boxed(StreamBody::new(frames))))
}

#[tokio::test]
async fn a_route_may_have_a_policy_of_its_own() {
    let stand = stand(|builder| builder).await;
    let service = stand.layer().layer(service_fn(thirty));
    drop(service.clone().oneshot(stand.get("/generous")).await);
    drop(service.oneshot(stand.get("/")).await);
    let events = stand.events(2).await;
    assert_eq!((events[0].waived, events[1].waived), (true, false));
    let left = stand.left().await;
    assert_eq!((left.calls, left.rate), (CALLS - 1, RATE - 2));
    assert_eq!((left.tokens, left.slots), (TOKENS, ALL.slots));
}

/// A plain cost stays charged when the client leaves, though less was used; only what is above it is added.
#[tokio::test]
async fn a_plain_charge_stays_when_the_client_leaves() {
    for (n_frames, used) in [(0, 35), (1, 40), (2, 50), (3, 60)] {
        let limits = Arc::new(MemoryLimits::new());
        let tokens = Quota::daily(1_000).unit(Unit::custom("tokens"));
        let gate = Tollgate::builder()
            .plans([Plan::new("free").rule(tokens.named("tokens"))])
            .limits(Arc::clone(&limits))
            .cost(|_: &RequestHead<'_>| Cost::default().with("tokens", 35))
            .usage(MemorySink::new())
            .build()
            .expect("a legal gate");
        let new = NewKey::for_tenant("acme").plan("free");
        let key = gate.keys().issue(new).await.expect("a key").key;
        let call = || {
            let request = Request::get("/").header("x-api-key", key.expose());
            request.body(Empty::new()).expect("a request")
        };
        let mut service = gate.layer().layer(service_fn(thirty));
        let response = service.call(call()).await.expect("infallible");
        let mut body = response.into_body();
        for _ in 0..n_frames {
            body.frame().await.expect("a frame").expect("data");
        }
        drop(body);
        let response = service.call(call()).await.expect("infallible");
        let fields = response.headers()["ratelimit"].to_str().expect("a text");
        let left = 1_000 - used - 35;
        assert!(
            fields.starts_with(&format!("\"tokens\";r={left};")),
            "after {n_frames} frames: {fields}"
        );
    }
}

/// A task that works ahead adds for frames that are not handed over: they belong to the next one that is.
#[tokio::test]
async fn what_is_added_between_frames_belongs_to_the_next() {
    let stand = stand(|builder| builder).await;
    let (meters_to, mut meters) = tokio::sync::mpsc::unbounded_channel();
    let mut service = stand.layer().layer(service_fn(move |request| {
        let _ = meters_to.send(meter_of(&request));
        thirty(request)
    }));
    let mut body = service
        .call(stand.get("/"))
        .await
        .expect("infallible")
        .into_body();
    let meter: Meter = meters.recv().await.expect("a meter");
    body.frame().await.expect("a frame").expect("data");
    meter.add("tokens", 1_000);
    body.frame().await.expect("a frame").expect("data");
    meter.add("tokens", 5_000);
    drop(body);
    let event = stand.events(1).await.remove(0);
    assert_eq!(event.outcome, CallOutcome::Aborted);
    assert_eq!(event.quantities["tokens"], 1_050);
}

/// A handler that adds the largest number twice owes a bucket as much as a bucket can be owed, and no more.
#[tokio::test]
async fn the_largest_number_leaves_a_bucket_in_a_bounded_debt() {
    let plan = Plan::new("free").rule(Rate::per_second(1_000).unit(Unit::custom("tokens")));
    let stand = stand(|builder| {
        builder
            .plans([plan])
            .cost(|_: &RequestHead<'_>| Cost::default().reserve("tokens", 10))
    })
    .await;
    let service = stand
        .layer()
        .layer(service_fn(|request: Request<Empty<Bytes>>| async move {
            let meter = meter_of(&request);
            meter.add("tokens", u64::MAX);
            meter.add("tokens", u64::MAX);
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }));
    let call = async || {
        let response = service.clone().oneshot(stand.get("/")).await;
        response.expect("infallible")
    };
    assert_eq!(call().await.status(), 200);
    let refused = call().await;
    assert_eq!(refused.status(), 429);
    let wait = refused.headers()["retry-after"].to_str().expect("a text");
    let wait: u64 = wait.parse().expect("whole seconds");
    // 2^53 - 1 tokens at a thousand a second.
    assert!(wait <= (1 << 53) / 1_000, "{wait}");
    stand.gate.usage().flush().await;
    assert_eq!(stand.sink.events()[0].quantities["tokens"], u64::MAX);
    stand.clock.advance(std::time::Duration::from_secs(wait));
    assert_eq!(call().await.status(), 200);
}
