//! A client that leaves at every stage of its call.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{Full, StreamBody};
use tokio_stream::StreamExt as _;
use tollgate::{
    TollgateBuilder,
    limit::{Concurrency, Quota},
    meter::{CallOutcome, Meter},
    plan::Plan,
};
use tower::{Layer as _, Service as _, service_fn};

use super::{BoxError, Stand, TestBody, boxed, get, slow::SlowLimits, stand};
use crate::common::far_stores::{FakeKeys, FarTenants, trip};

/// Waits, then answers with three frames and trailers, each after a wait.
async fn slow_service(request: Request<Full<Bytes>>) -> Result<Response<TestBody>, Infallible> {
    let meter = request.extensions().get::<Meter>().cloned();
    trip().await;
    let frames = tokio_stream::iter(0..4).then(move |n| {
        let meter = meter.clone();
        async move {
            trip().await;
            if let Some(meter) = &meter {
                meter.add("frames", 1);
            }
            Ok::<_, BoxError>(match n {
                3 => Frame::trailers(HeaderMap::new()),
                _ => Frame::data(Bytes::from_static(b"frame")),
            })
        }
    });
    Ok(Response::new(boxed(StreamBody::new(Box::pin(frames)))))
}

fn with_slow_stores(limits: &Arc<SlowLimits>) -> impl FnOnce(TollgateBuilder) -> TollgateBuilder {
    let limits = Arc::clone(limits);
    // A slot for a single call: one that is not given back refuses everybody for ever.
    let plan = Plan::new("free")
        .rule(Concurrency::new(1))
        .rule(Quota::daily(1_000_000));
    move |builder| {
        builder
            .plans([plan])
            .keys(FakeKeys::slow())
            .tenants(FarTenants::slow())
            .limits(limits)
            .limit_deadline(Duration::from_secs(60))
    }
}

/// How far a call came before its client left.
#[derive(Debug, PartialEq, Eq)]
enum Reached {
    Waiting,
    Body { n_frames: usize },
    End,
}

/// Polls a call's future, and then its body, `n_polls` times in all, and drops what is left.
async fn leave_after(stand: &Stand, key: &str, n_polls: usize) -> Reached {
    let mut service = stand.gate.layer().layer(service_fn(slow_service));
    poll_fn(|cx| service.poll_ready(cx)).await.expect("ready");
    let mut future = pin!(service.call(get("/", &[("x-api-key", key)])));
    let mut left = n_polls;
    let response = loop {
        if left == 0 {
            return Reached::Waiting;
        }
        left -= 1;
        match poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
            Poll::Ready(response) => break response.expect("an answer"),
            // Lets the tasks that ask the stores run.
            Poll::Pending => tokio::task::yield_now().await,
        }
    };
    assert_eq!(response.status(), 200, "after {n_polls} polls");
    let mut body = pin!(response.into_body());
    let mut n_frames = 0;
    while left > 0 {
        left -= 1;
        match poll_fn(|cx| Poll::Ready(body.as_mut().poll_frame(cx))).await {
            Poll::Ready(Some(frame)) => drop(frame.expect("a frame")),
            Poll::Ready(None) => return Reached::End,
            Poll::Pending => {
                tokio::task::yield_now().await;
                continue;
            }
        }
        n_frames += 1;
    }
    Reached::Body { n_frames }
}

async fn leaves_everywhere(cold: bool) {
    let limits = Arc::new(SlowLimits::default());
    let stand = stand(with_slow_stores(&limits));
    let mut key = stand.issue("acme").await;
    let (mut n_waiting, mut most_frames) = (0, 0);
    let mut n_calls = 0;
    for n_polls in 0.. {
        if cold {
            // Nobody has asked for this tenant and key yet, so that the stores are asked each time.
            key = stand.issue(&format!("tenant-{n_polls}")).await;
        }
        let reached = leave_after(&stand, &key, n_polls).await;
        n_calls += 1;
        let (charged, settled) = (
            limits.n_charged.load(Ordering::SeqCst),
            limits.n_settled.load(Ordering::SeqCst),
        );
        assert_eq!(charged, settled, "after {n_polls} polls: {reached:?}");
        assert!(charged <= n_calls, "a call was charged twice");
        match reached {
            Reached::Waiting => n_waiting += 1,
            Reached::Body { n_frames } => most_frames = most_frames.max(n_frames),
            Reached::End => break,
        }
        if cold {
            // The slot of this tenant is free again.
            assert_eq!(leave_after(&stand, &key, 1_000).await, Reached::End);
            n_calls += 1;
        }
    }
    assert!(
        n_waiting > 5,
        "the future waited for {n_waiting} polls only"
    );
    assert_eq!(most_frames, 4);
    let counters = stand.gate.usage().counters();
    assert_eq!(
        counters.opened + counters.unidentified_total(),
        n_calls as u64
    );
    stand.assert_balanced().await;
    let served = |outcome| {
        let events = stand.sink.events();
        events
            .iter()
            .filter(|event| event.outcome == outcome)
            .count()
    };
    assert_eq!(
        served(CallOutcome::Served) + served(CallOutcome::Aborted),
        stand.sink.len()
    );
    assert!(served(CallOutcome::Aborted) >= 12);
}

#[tokio::test]
async fn a_client_that_leaves_at_any_poll_is_charged_once_and_gives_its_slot_back() {
    leaves_everywhere(false).await;
}

#[tokio::test]
async fn a_client_that_leaves_while_its_key_is_looked_up_leaves_nothing_behind() {
    leaves_everywhere(true).await;
}

#[tokio::test]
async fn a_call_that_was_never_polled_is_charged_and_settled_like_one_that_was() {
    let stand = stand(|builder| builder);
    let key = stand.issue("acme").await;
    let mut service = stand.gate.layer().layer(service_fn(slow_service));
    for _ in 0..10 {
        drop(service.call(get("/", &[("x-api-key", &key)])));
    }
    stand.assert_balanced().await;
    assert_eq!(stand.gate.usage().counters().acked, 10);
}
