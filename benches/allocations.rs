//! Allocations for each request of an axum service, bare, behind one empty layer and behind ours:
//! `cargo bench --bench allocations` prints what the README shows.
//!
//! A target of its own, because it replaces the allocator by one that counts. `tests/allocations.rs` holds what
//! layers add to a service; here it is a router, whose own allocations for a layer show beside ours.

use std::{
    future::Future,
    mem,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use allocation_counter::AllocationInfo;
use axum::{Router, body::Body, routing::get};
use http::{
    HeaderValue, Request, StatusCode,
    header::{ACCEPT, HOST},
};
use http_body_util::BodyExt;
use tollgate::{
    Tollgate,
    clock::{Clock, SystemClock},
    head::PeerAddress,
    id::TenantId,
    identity::{Identity, NewKey},
    limit::{HeaderStyle, LimitLayer, MemoryLimits, Quota, Rate},
    meter::{CallMeter, OpenCall, Recorder},
    plan::Plan,
    sink::MemorySink,
};
use tower::{Service, ServiceBuilder};

fn finish<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("nothing here waits"),
    }
}

fn request(key: &str) -> Request<Body> {
    Request::get("/")
        .header(HOST, HeaderValue::from_static("api.example.com"))
        .header(ACCEPT, HeaderValue::from_static("*/*"))
        .header("x-api-key", key)
        .extension(PeerAddress("192.0.2.7:4711".parse().expect("an address")))
        .body(Body::empty())
        .expect("a legal request")
}

fn hello() -> Router {
    Router::new().route("/", get(|| async { "hello" }))
}

/// Allocations from the call to the end of the answer's body, when everything that is made once was made.
fn count(mut router: Router, key: &str) -> AllocationInfo {
    let mut call = || {
        let request = request(key);
        allocation_counter::measure(|| {
            let Ok(response) = finish(router.call(request));
            assert_eq!(response.status(), StatusCode::OK);
            finish(response.into_body().collect()).expect("a whole body");
        })
    };
    for _ in 0..100 {
        call();
    }
    call()
}

fn plan() -> Plan {
    Plan::new("pro")
        .rule(Rate::per_second(1_000_000))
        .rule(Quota::monthly(1_000_000_000))
}

/// What a whole gate's answers take.
fn gated(headers: HeaderStyle) -> AllocationInfo {
    let gate = Tollgate::builder()
        .plans([plan()])
        .usage(MemorySink::new())
        .headers(headers)
        .build()
        .expect("a legal gate");
    let issued = finish(gate.keys().issue(NewKey::for_tenant("acme").plan("pro")));
    let issued = issued.expect("a memory store");
    count(hello().layer(gate.layer()), issued.key.expose())
}

fn requests() {
    let limit = LimitLayer::new(MemoryLimits::new(), [Rate::per_second(1_000_000)]);
    let limit = limit.expect("a legal rule");
    let empty = ServiceBuilder::new().map_request(|request: Request<Body>| request);
    let empty = count(hello().layer(empty), "none");
    let rows = [
        ("bare", count(hello(), "none")),
        ("one empty layer", empty),
        (
            "a limit alone, no header fields",
            count(
                hello().layer(limit.clone().headers(HeaderStyle::Off)),
                "none",
            ),
        ),
        ("a limit alone", count(hello().layer(limit), "none")),
        (
            "whole gate, no header fields of limits",
            gated(HeaderStyle::Off),
        ),
        ("whole gate", gated(HeaderStyle::Draft11)),
    ];
    println!("| axum hello | allocations | over one empty layer | bytes |");
    println!("| --- | --- | --- | --- |");
    for (what, info) in rows {
        let over = info.count_total as i128 - empty.count_total as i128;
        println!(
            "| {what} | {} | {over:+} | {} |",
            info.count_total, info.bytes_total
        );
    }
}

/// The steps of one metered call, and whether its end wakes the task that empties the queue.
fn record(runtime: &tokio::runtime::Runtime) {
    const ENDS: u64 = 1_000;
    let plan = Arc::new(plan().compile().expect("a legal plan"));
    let acme = Identity::of_tenant(TenantId::new("acme").expect("a legal name"), plan);
    // No tick falls due meanwhile.
    let recorder = Recorder::builder(MemorySink::new()).tick(Duration::from_secs(3_600));
    let recorder = recorder.build().expect("a recorder");
    let (clock, calls) = (
        SystemClock::new(),
        CallMeter::new(recorder.clone(), "bench"),
    );
    let open = || {
        let call = calls.open(clock.now());
        call.meter().identify(&acme);
        call
    };
    // A call and its meter live on, so that the end alone is counted.
    let end = |call: OpenCall| {
        let _meter = call.meter().clone();
        let mut call = Some(call);
        let end = || {
            if let Some(call) = call.take() {
                call.end(StatusCode::OK);
            }
        };
        allocation_counter::measure(end).count_total
    };
    // What is made once is made by the first calls.
    for _ in 0..10 {
        end(open());
        end(calls.open(clock.now()));
    }
    let begin = allocation_counter::measure(|| mem::forget(open())).count_total;
    let queued = end(open());
    let counted = end(calls.open(clock.now()));
    let woken = runtime.block_on(async {
        recorder.flush().await;
        let before = recorder.counters().queued;
        for _ in 0..ENDS {
            open().end(StatusCode::OK);
        }
        // Were the task woken, it would run now and empty the queue.
        tokio::task::yield_now().await;
        recorder.counters().queued != before + ENDS
    });
    println!("\n| one metered call | allocations | wakes the recorder's task |");
    println!("| --- | --- | --- |");
    println!("| its begin, with who calls | {begin} | no |");
    println!("| its end, a counter | {counted} | no |");
    let woken = if woken { "yes" } else { "no" };
    println!("| its end, an event that is queued | {queued} | {woken} |");
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let _inside = runtime.enter();
    requests();
    record(&runtime);
}
