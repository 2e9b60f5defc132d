//! Calls without a network: what the layer sees, step by step.

use std::{
    future::Future as _,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::{Router, body::Body as AxumBody, routing::get};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, Full, StreamBody};
use tokio_stream::StreamExt as _;
use tollgate::{
    clock::{Clock as _, ManualClock},
    error::{ErrorCode, Problem},
    meter::{CallOutcome, Meter, MeterLayer, Recorder},
    route::RouteTemplate,
    sink::MemorySink,
};
use tower::{Layer as _, Service as _, ServiceBuilder, ServiceExt as _, service_fn};

use super::{
    BoxError, TestBody, boxed, events_of, identify, identity, infallible, meter_of, recorder,
};

fn call(path: &str) -> Request<()> {
    Request::get(path).body(()).expect("a request")
}

#[tokio::test]
async fn one_call_fills_every_field_of_its_event() {
    let clock = ManualClock::default();
    let sink = MemorySink::new();
    let recorder = Recorder::builder(sink.clone())
        .source("gate\n1")
        .clock(Arc::new(clock.clone()))
        .build()
        .expect("a recorder");
    let admitted = clock.now().wall();
    let hands = clock.clone();
    let service = ServiceBuilder::new()
        .layer(MeterLayer::new(recorder.clone()).api("chat"))
        .map_request(identify(identity()))
        .service(service_fn(move |request: Request<()>| {
            let meter = meter_of(&request);
            meter.set_route("/v1/\u{1b}[31m{id}");
            meter.mark_overage();
            meter.mark_deprecated();
            meter.add("tokens", 800);
            meter.add("tokens", 12);
            meter.add(
                "a name that is longer than sixty-four bytes is not a name of a quantity",
                1,
            );
            hands.advance(Duration::from_micros(1234));
            async { infallible(Response::new(Full::new(Bytes::from_static(b"fine")))) }
        }));
    let request = Request::post("/v1/chat/1")
        .header("x-request-id", "req-1")
        .header("content-length", "17")
        .header(
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        )
        .body(())
        .expect("a request");
    let response = service.oneshot(request).await.expect("infallible");
    // The wall clock steps back an hour: neither the time nor the latency follows it.
    clock.set_wall(admitted.saturating_sub(Duration::from_secs(3600)));
    clock.advance(Duration::from_micros(1));
    response.into_body().collect().await.expect("a body");

    let event = events_of(&recorder, &sink, 1).await.remove(0);
    assert_eq!(event.time, admitted);
    assert_eq!(event.latency_micros, 1235);
    assert_eq!(&*event.source, r"gate\u{a}1");
    assert_eq!(&*event.route, r"/v1/\u{1b}[31m{id}");
    assert_eq!((&*event.api, &*event.method), ("chat", "POST"));
    assert_eq!((event.request_bytes, event.response_bytes), (17, 4));
    assert!(event.overage && event.deprecated);
    assert_eq!(event.quantities.len(), 1);
    assert_eq!(event.quantities["tokens"], 812);
    assert_eq!(event.request_id.as_deref(), Some("req-1"));
    assert_eq!(
        event.trace_id.as_deref(),
        Some("4bf92f3577b34da6a3ce929d0e0e4736")
    );
    assert_eq!(recorder.counters().quantities_ignored, 1);
}

#[tokio::test]
async fn what_is_said_after_the_end_is_ignored() {
    let (recorder, sink) = recorder();
    let layer = MeterLayer::new(recorder.clone());
    let (kept_to, mut kept) = tokio::sync::mpsc::unbounded_channel();
    let service =
        ServiceBuilder::new()
            .layer(layer)
            .service(service_fn(move |request: Request<()>| {
                let meter = meter_of(&request);
                if request.uri().path() == "/a" {
                    meter.identify(&identity());
                    meter.add("tokens", 1);
                }
                let _ = kept_to.send(meter);
                async { infallible(Response::new(Full::<Bytes>::default())) }
            }));
    for path in ["/a", "/b"] {
        drop(service.clone().oneshot(call(path)).await);
        let meter: Meter = kept.recv().await.expect("a meter");
        meter.add("tokens", 1);
        meter.mark_overage();
        meter.identify(&identity());
    }
    let events = events_of(&recorder, &sink, 2).await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].quantities["tokens"], 1);
    assert!(!events[0].overage);
    let counters = recorder.counters();
    assert_eq!((counters.opened, counters.unidentified(200)), (1, 1));
}

#[tokio::test]
async fn a_failing_service_is_told_and_its_error_passes() {
    let (recorder, sink) = recorder();
    let service = ServiceBuilder::new()
        .layer(MeterLayer::new(recorder.clone()))
        .map_request(identify(identity()))
        .service(service_fn(|_: Request<()>| async {
            Err::<Response<Full<Bytes>>, _>("no back end")
        }));
    assert_eq!(service.oneshot(call("/")).await.unwrap_err(), "no back end");
    let event = events_of(&recorder, &sink, 1).await.remove(0);
    assert_eq!((event.status, event.outcome), (500, CallOutcome::Failed));
}

#[tokio::test]
async fn a_body_dropped_unpolled_is_an_abort_unless_its_status_is_an_error() {
    for (status, outcome) in [
        (200, CallOutcome::Aborted),
        (404, CallOutcome::Served),
        (503, CallOutcome::Failed),
    ] {
        let (recorder, sink) = recorder();
        let service = ServiceBuilder::new()
            .layer(MeterLayer::new(recorder.clone()))
            .map_request(identify(identity()))
            .service(service_fn(move |_: Request<()>| async move {
                let mut response = Response::new(Full::new(Bytes::from_static(b"unread")));
                *response.status_mut() = StatusCode::from_u16(status).expect("a status");
                infallible(response)
            }));
        drop(service.oneshot(call("/")).await);
        let event = events_of(&recorder, &sink, 1).await.remove(0);
        assert_eq!((event.status, event.outcome), (status, outcome));
        assert_eq!(event.response_bytes, 0);
    }
}

#[tokio::test]
async fn a_problem_of_the_service_itself_is_no_refusal() {
    for (code, outcome, refused) in [
        (
            ErrorCode::QuotaExceeded,
            CallOutcome::Refused,
            Some("quota_exceeded"),
        ),
        (
            ErrorCode::StoreUnavailable,
            CallOutcome::Refused,
            Some("store_unavailable"),
        ),
        (ErrorCode::NotFound, CallOutcome::Served, None),
        (ErrorCode::UpstreamTimeout, CallOutcome::Failed, None),
    ] {
        let (recorder, sink) = recorder();
        let service = ServiceBuilder::new()
            .layer(MeterLayer::new(recorder.clone()))
            .map_request(identify(identity()))
            .service(service_fn(move |request: Request<()>| async move {
                infallible(Problem::new(code).into_response::<Full<Bytes>>(request.method()))
            }));
        let response = service.oneshot(call("/")).await.expect("infallible");
        response.into_body().collect().await.expect("a body");
        let event = events_of(&recorder, &sink, 1).await.remove(0);
        assert_eq!(
            (event.outcome, event.refused.as_deref()),
            (outcome, refused),
            "{code}"
        );
    }
}

#[tokio::test]
async fn a_panic_after_the_answer_began_keeps_the_status_of_the_answer() {
    let (recorder, sink) = recorder();
    let frames = tokio_stream::iter(0..3).map(|n| {
        assert!(n < 1, "the stream panicked on purpose");
        Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"x")))
    });
    let mut body = Some(boxed(StreamBody::new(frames)));
    let mut service = ServiceBuilder::new()
        .layer(MeterLayer::new(recorder.clone()))
        .map_request(identify(identity()))
        .service(service_fn(move |_: Request<()>| {
            let body = body.take().expect("one call");
            async { infallible(Response::new(body)) }
        }));
    let body = service
        .call(call("/"))
        .await
        .expect("infallible")
        .into_body();
    let end = tokio::spawn(body.collect()).await;
    assert!(end.expect_err("a panic").is_panic());
    let event = events_of(&recorder, &sink, 1).await.remove(0);
    assert_eq!((event.status, event.outcome), (200, CallOutcome::Panicked));
    assert_eq!(event.response_bytes, 1);
}

#[tokio::test]
async fn the_body_keeps_its_size_and_its_end() {
    let (recorder, _) = recorder();
    let mut service = MeterLayer::new(recorder).layer(service_fn(|_: Request<()>| async {
        infallible(Response::new(Full::new(Bytes::from_static(b"four"))))
    }));
    let mut body = service
        .call(call("/"))
        .await
        .expect("infallible")
        .into_body();
    assert_eq!(body.size_hint().exact(), Some(4));
    assert!(!body.is_end_stream());
    body.frame().await.expect("a frame").expect("data");
    assert!(body.is_end_stream());
}

#[tokio::test]
async fn two_layers_around_one_call_count_it_once() {
    let (recorder, sink) = recorder();
    let (other, other_sink) = super::recorder();
    let service = ServiceBuilder::new()
        .layer(MeterLayer::new(recorder.clone()))
        .layer(MeterLayer::new(other.clone()))
        .map_request(identify(identity()))
        .service(service_fn(|_: Request<()>| async {
            infallible(Response::new(Full::new(Bytes::from_static(b"four"))))
        }));
    let response = service.oneshot(call("/")).await.expect("infallible");
    assert_eq!(
        response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes(),
        "four"
    );
    assert_eq!(events_of(&recorder, &sink, 1).await.len(), 1);
    other.flush().await;
    assert!(other_sink.is_empty());
}

#[tokio::test]
async fn axum_gives_the_route_template_and_the_meter() {
    let (recorder, sink) = recorder();
    async fn hello(meter: Meter) -> &'static str {
        meter.identify(&identity());
        meter.add("greetings", 1);
        "hello"
    }
    let app = Router::new()
        .nest("/v1", Router::new().route("/hello/{name}", get(hello)))
        .layer(MeterLayer::new(recorder.clone()));
    for name in ["ann", "bob"] {
        let request = Request::get(format!("/v1/hello/{name}")).body(AxumBody::empty());
        let response = app
            .clone()
            .oneshot(request.expect("a request"))
            .await
            .expect("infallible");
        response.into_body().collect().await.expect("a body");
    }
    for event in events_of(&recorder, &sink, 2).await {
        assert_eq!(&*event.route, "/v1/hello/{name}");
        assert_eq!(event.quantities["greetings"], 1);
    }
}

#[tokio::test]
async fn a_handler_that_takes_a_meter_without_the_layer_is_told_which_one_to_add() {
    let app = Router::new().route("/", get(|_: Meter| async { "unreachable" }));
    let request = Request::get("/")
        .body(AxumBody::empty())
        .expect("a request");
    let response = app.oneshot(request).await.expect("infallible");
    assert_eq!(response.status(), 500);
    let problem = response.extensions().get::<Problem>().expect("a problem");
    assert_eq!(problem.code(), ErrorCode::LayerMissing);
    assert!(
        problem
            .detail_text()
            .expect("a detail")
            .contains("MeterLayer")
    );
}

#[test]
fn a_route_template_shows_as_its_text() {
    let template = RouteTemplate::from("/v1/{id}");
    assert_eq!(template.as_str(), "/v1/{id}");
    assert_eq!(format!("{template:?}"), "\"/v1/{id}\"");
}

/// A small generator, so that a failure names the seed that repeats it.
struct Dice(u64);

impl Dice {
    /// SplitMix64.
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % n
    }
}

/// A service that takes some polls to answer with a stream of some frames, and may fail, panic or break.
async fn chaos(request: Request<()>, mut dice: Dice) -> Result<Response<TestBody>, BoxError> {
    let meter = meter_of(&request);
    for _ in 0..dice.below(3) {
        tokio::task::yield_now().await;
    }
    let end = dice.below(10);
    match end {
        0 => panic!("the service panicked on purpose"),
        1 => return Err(BoxError::from("the service failed")),
        _ => {}
    }
    let n_frames = dice.below(4);
    let frames = tokio_stream::iter(0..n_frames).map(move |n| {
        meter.add("frames", 1);
        assert!(end != 2 || n != 1, "the stream panicked on purpose");
        if end == 3 && n == 1 {
            return Err(BoxError::from("the stream broke"));
        }
        Ok(Frame::data(Bytes::from_static(b"frame")))
    });
    let mut response = Response::new(boxed(StreamBody::new(frames)));
    *response.status_mut() = [200, 204, 404, 500, 206][dice.below(5) as usize]
        .try_into()
        .expect("a status");
    Ok(response)
}

/// Each call is polled a random number of times and then dropped, wherever it is.
#[tokio::test]
async fn thousands_of_calls_dropped_at_random_are_each_counted_once() {
    const N_CALLS: u64 = 20_000;
    let (recorder, sink) = recorder();
    let mut n_public = 0;
    for n in 0..N_CALLS {
        let seed = n;
        let mut dice = Dice(seed);
        let inner = Dice(!seed);
        let is_public = dice.below(5) == 0;
        n_public += u64::from(is_public);
        let mut inner = Some(inner);
        let mut service = ServiceBuilder::new()
            .layer(MeterLayer::new(recorder.clone()))
            .map_request(identify(identity()))
            .service(service_fn(move |request| {
                chaos(request, inner.take().expect("one call"))
            }));
        let mut n_polls = dice.below(8);
        let run = catch_unwind(AssertUnwindSafe(|| {
            let mut cx = Context::from_waker(Waker::noop());
            let path = if is_public { "/public" } else { "/" };
            let mut future = pin!(service.call(call(path)));
            let body = loop {
                if n_polls == 0 {
                    return;
                }
                n_polls -= 1;
                match future.as_mut().poll(&mut cx) {
                    Poll::Pending => {}
                    Poll::Ready(Err(_)) => return,
                    Poll::Ready(Ok(response)) => break response.into_body(),
                }
            };
            let mut body = pin!(body);
            while n_polls > 0
                && matches!(body.as_mut().poll_frame(&mut cx), Poll::Ready(Some(Ok(_))))
            {
                n_polls -= 1;
            }
        }));
        drop(run);
        let counters = recorder.counters();
        assert!(counters.is_balanced(), "seed {seed}: {counters:?}");
        assert_eq!(counters.open, 0, "seed {seed}");
    }
    let events = events_of(&recorder, &sink, N_CALLS).await;
    let counters = recorder.counters();
    assert_eq!(counters.opened, N_CALLS - n_public);
    assert_eq!(counters.settled, counters.opened);
    assert_eq!(counters.unidentified_total(), n_public);
    for outcome in [
        CallOutcome::Served,
        CallOutcome::Failed,
        CallOutcome::Aborted,
        CallOutcome::Panicked,
    ] {
        assert!(
            events.iter().any(|event| event.outcome == outcome),
            "{outcome:?}"
        );
    }
    for event in &events {
        let n_frames = event.quantities.get("frames").copied().unwrap_or(0);
        assert!(event.response_bytes <= 5 * n_frames, "{event:?}");
    }
}
