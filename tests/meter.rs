//! What a call used: every call makes one event, and every event is accounted for.

mod calls;
mod connections;
mod cost;
mod event;
mod open_call;
mod recorder;

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, combinators::UnsyncBoxBody};
use tollgate::{
    id::{KeyId, PlanName, TenantId},
    identity::{Grant, Identity},
    meter::{Meter, Recorder, UsageEvent},
    plan::Plan,
    sink::MemorySink,
    tenant::{Tenant, TenantRecord},
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type TestBody = UnsyncBoxBody<Bytes, BoxError>;

fn boxed<B>(body: B) -> TestBody
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// A recorder, and the sink in which its events end.
fn recorder() -> (Recorder, MemorySink) {
    let sink = MemorySink::new();
    (Recorder::new(sink.clone()).expect("a recorder"), sink)
}

fn identity() -> Identity {
    let plan = Plan::new("pro").compile().expect("a plan");
    let id = TenantId::new("acme").expect("an id");
    let name = PlanName::new("pro").expect("a name");
    let mut grant = Grant::default();
    grant.key = Some(KeyId::new("key-1").expect("an id"));
    Identity::new(
        Tenant::new(Arc::new(TenantRecord::new(id, name))),
        Arc::new(plan),
        grant,
    )
    .expect("an identity")
}

/// Stands for authentication: identifies every call whose path does not start with `/public`.
fn identify<B>(identity: Identity) -> impl Fn(Request<B>) -> Request<B> + Clone {
    move |request: Request<B>| {
        if !request.uri().path().starts_with("/public") {
            meter_of(&request).identify(&identity);
        }
        request
    }
}

fn meter_of<B>(request: &Request<B>) -> Meter {
    request
        .extensions()
        .get::<Meter>()
        .cloned()
        .expect("a meter")
}

/// Waits until a number of calls has ended: a server drops a body after its client has read it.
async fn ended(recorder: &Recorder, n_calls: u64) {
    let start = Instant::now();
    loop {
        let counters = recorder.counters();
        assert!(counters.is_balanced(), "{counters:?}");
        let n_ended = counters.settled + counters.unidentified_total();
        assert!(n_ended <= n_calls, "a call was counted twice");
        if n_ended == n_calls {
            return;
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{n_ended} of {n_calls} calls ended: {} are open",
            counters.open
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits for `n_calls` and gives the events; the law must hold at rest, with nothing left behind.
async fn events_of(recorder: &Recorder, sink: &MemorySink, n_calls: u64) -> Vec<UsageEvent> {
    ended(recorder, n_calls).await;
    recorder.flush().await;
    let counters = recorder.counters();
    assert!(counters.is_balanced(), "{counters:?}");
    assert_eq!(
        (counters.open, counters.queued, counters.in_flight),
        (0, 0, 0)
    );
    assert_eq!(counters.acked, sink.len() as u64);
    assert_eq!(sink.duplicates(), 0);
    sink.events()
}

fn infallible<T>(value: T) -> Result<T, Infallible> {
    Ok(value)
}
