//! What a call cost whoever runs the service.

use std::{convert::Infallible, future::pending, sync::Arc, time::Duration};

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use tokio_stream::StreamExt as _;
use tollgate::{
    clock::ManualClock,
    meter::{CallCost, CostRates, CostScope, Meter, MeterLayer, Recorder, UsageEvent},
    sink::MemorySink,
};
use tower::{Layer as _, Service as _, ServiceBuilder, ServiceExt as _, service_fn};

use super::{boxed, events_of, identify, identity, infallible, meter_of};

struct Stand {
    clock: ManualClock,
    recorder: Recorder,
    sink: MemorySink,
}

fn stand() -> Stand {
    let (clock, sink) = (ManualClock::default(), MemorySink::new());
    let builder = Recorder::builder(sink.clone()).clock(Arc::new(clock.clone()));
    let recorder = builder.build().expect("a recorder");
    Stand {
        clock,
        recorder,
        sink,
    }
}

type Setup = fn(MeterLayer) -> MeterLayer;

impl Stand {
    /// Calls a handler once, on a request of ten bytes, and reads its answer.
    async fn call<H, B>(&self, setup: Setup, path: &str, handler: H) -> (HeaderMap, HeaderMap)
    where
        H: Fn(Meter, ManualClock) -> B + Clone,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<super::BoxError>,
    {
        let clock = self.clock.clone();
        let service = ServiceBuilder::new()
            .layer(setup(MeterLayer::new(self.recorder.clone())))
            .map_request(identify(identity()))
            .service(service_fn(move |request: Request<Full<Bytes>>| {
                let body = handler(meter_of(&request), clock.clone());
                async move { infallible(Response::new(boxed(body))) }
            }));
        let request = Request::get(path)
            .header("content-length", "10")
            .body(Full::default())
            .expect("a request");
        let answer = service.oneshot(request).await.expect("an answer");
        let head = answer.headers().clone();
        let body = answer.into_body().collect().await.expect("a body");
        (head, body.trailers().cloned().unwrap_or_default())
    }

    async fn event(&self) -> UsageEvent {
        let mut events = events_of(&self.recorder, &self.sink, 1).await;
        events.pop().expect("an event")
    }
}

fn full(text: &'static str) -> Full<Bytes> {
    Full::new(Bytes::from_static(text.as_bytes()))
}

fn priced(layer: MeterLayer) -> MeterLayer {
    let rates = CostRates::new()
        .call(1_000)
        .compute_second(2_000_000)
        .request_kib(1_024)
        .response_kib(2_048)
        .tokens("input", 3)
        .tokens_per_million("output", 500_000);
    layer.cost_rates(rates)
}

#[tokio::test]
async fn each_part_is_priced_and_the_event_says_them_all() {
    let stand = stand();
    stand
        .call(priced, "/chat", |meter, clock| {
            let cost = meter.cost();
            let timer = cost.time();
            clock.advance(Duration::from_millis(20));
            timer.stop();
            clock.advance(Duration::from_millis(500));
            cost.add_compute(Duration::from_micros(5_000));
            cost.add_upstream(77);
            cost.add_tokens("input", 100);
            meter.add("output", 7);
            meter.add("unpriced", 1);
            full("hello")
        })
        .await;
    let event = stand.event().await;
    let cost = event.cost.expect("a cost");
    assert_eq!(cost.compute_micros, 25_000);
    assert_eq!((cost.call_nanos, cost.compute_nanos), (1_000, 50_000));
    assert_eq!(cost.bytes_nanos, 10 + 5 * 2);
    assert_eq!((cost.upstream_nanos, cost.tokens_nanos), (77, 300 + 4));
    assert_eq!(cost.total_nanos, 1_000 + 50_000 + 20 + 77 + 304);
    assert_eq!(
        event.quantities["input"], 100,
        "one count, billed and priced"
    );
    let dearer = CostRates::new().compute_second(4_000_000).call(1);
    assert_eq!(dearer.price(&event).total_nanos, 1 + 100_000 + 77);
}

#[tokio::test]
async fn nothing_is_said_of_cost_unless_somebody_asks() {
    let stand = stand();
    let (head, _) = stand
        .call(|layer| layer, "/chat", |_, _| full("hello"))
        .await;
    assert!(!head.contains_key("x-request-latency") && !head.contains_key("x-compute-cost"));
    let event = stand.event().await;
    assert_eq!(event.cost, None);
    let json = serde_json::to_string(&event).expect("json");
    assert!(!json.contains("cost"), "{json}");
}

#[tokio::test]
async fn what_the_handler_named_is_kept_without_rates() {
    let stand = stand();
    stand
        .call(
            |layer| layer,
            "/chat",
            |meter, _| {
                meter.cost().add_upstream(5);
                full("hello")
            },
        )
        .await;
    let cost = stand.event().await.cost.expect("a cost");
    assert_eq!((cost.total_nanos, cost.upstream_nanos), (5, 5));
}

#[tokio::test]
async fn the_handlers_time_counts_where_it_is_asked_for() {
    let stand = stand();
    let setup: Setup = |layer| {
        layer.cost_rates(
            CostRates::new()
                .compute_second(1_000_000)
                .handler_time(true),
        )
    };
    stand
        .call(setup, "/chat", |_, clock| {
            clock.advance(Duration::from_millis(30));
            StreamBody::new(tokio_stream::once(()).map(move |()| {
                clock.advance(Duration::from_secs(9));
                infallible(http_body::Frame::data(Bytes::from_static(b"slow")))
            }))
        })
        .await;
    let cost = stand.event().await.cost.expect("a cost");
    assert_eq!(cost.compute_micros, 30_000, "to the head of the answer");
    assert_eq!(cost.compute_nanos, 30_000);
}

#[tokio::test]
async fn the_header_fields_are_whole_numbers_in_the_head_and_never_trailers() {
    let stand = stand();
    let setup: Setup = |layer| priced(layer).latency_header(true).cost_header(true);
    let (head, trailers) = stand
        .call(setup, "/chat", |meter, clock| {
            clock.advance(Duration::from_micros(1_234_999));
            meter.cost().add_upstream(5);
            full("hello")
        })
        .await;
    assert_eq!(head["x-request-latency"], "1234");
    assert_eq!(head["x-compute-cost"], (1_000 + 10 + 5).to_string());
    assert!(trailers.is_empty());
}

#[tokio::test]
async fn a_caller_who_is_not_known_is_told_no_cost() {
    let stand = stand();
    let setup: Setup = |layer| priced(layer).latency_header(true).cost_header(true);
    let (head, _) = stand.call(setup, "/public", |_, _| full("hello")).await;
    assert!(head.contains_key("x-request-latency"));
    assert!(!head.contains_key("x-compute-cost"));
}

#[tokio::test]
async fn a_call_that_is_given_up_costs_what_was_spent_until_then() {
    let stand = stand();
    let clock = stand.clock.clone();
    let handler = service_fn(move |request: Request<Full<Bytes>>| {
        let cost = meter_of(&request).cost();
        let clock = clock.clone();
        async move {
            let _timer = cost.time();
            cost.add_upstream(9);
            clock.advance(Duration::from_millis(4));
            pending::<()>().await;
            infallible(Response::new(full("never")))
        }
    });
    let layer = priced(MeterLayer::new(stand.recorder.clone()));
    let mut service = ServiceBuilder::new()
        .layer(layer)
        .map_request(identify(identity()))
        .service(handler);
    let request = Request::get("/chat")
        .body(Full::default())
        .expect("a request");
    let mut call = Box::pin(service.call(request));
    assert!(
        std::future::poll_fn(|cx| std::task::Poll::Ready(call.as_mut().poll(cx).is_pending()))
            .await
    );
    stand.clock.advance(Duration::from_millis(6));
    drop(call);
    let cost = stand.event().await.cost.expect("a cost");
    assert_eq!((cost.compute_micros, cost.upstream_nanos), (10_000, 9));
}

#[tokio::test]
async fn sums_stay_at_their_ends_and_nothing_is_heard_after_the_call() {
    let stand = stand();
    let kept: Arc<std::sync::Mutex<Option<Meter>>> = Arc::default();
    let keep = Arc::clone(&kept);
    let service = priced(MeterLayer::new(stand.recorder.clone())).layer(service_fn(
        move |request: Request<Full<Bytes>>| {
            let meter = meter_of(&request);
            meter.identify(&identity());
            let cost = meter.cost();
            cost.add_compute(Duration::MAX);
            cost.add_compute(Duration::MAX);
            cost.add_upstream(u64::MAX);
            cost.add_upstream(1);
            cost.add_tokens("input", u64::MAX);
            *keep.lock().expect("a lock") = Some(meter);
            async { infallible(Response::new(full("hello"))) }
        },
    ));
    let request = Request::get("/chat")
        .body(Full::default())
        .expect("a request");
    drop(service.oneshot(request).await.expect("an answer"));
    let late = kept.lock().expect("a lock").take().expect("a meter");
    late.cost().add_upstream(1);
    late.cost().add_tokens("late", 1);
    drop(late.cost().time());
    let event = stand.event().await;
    let cost = event.cost.expect("a cost");
    assert_eq!(
        (cost.total_nanos, cost.upstream_nanos),
        (u64::MAX, u64::MAX)
    );
    assert_eq!(cost.compute_micros, u64::MAX / 1_000);
    assert!(!event.quantities.contains_key("late"));
}

#[tokio::test]
async fn a_handler_of_axum_takes_the_scope_as_an_argument() {
    let stand = stand();
    let app = Router::new()
        .route("/chat", get(async |cost: CostScope| cost.add_upstream(3)))
        .layer(
            ServiceBuilder::new()
                .layer(MeterLayer::new(stand.recorder.clone()))
                .map_request(identify(identity())),
        );
    let request = Request::get("/chat")
        .body(Body::empty())
        .expect("a request");
    let answer = app.oneshot(request).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    drop(answer);
    let cost: CallCost = stand.event().await.cost.expect("a cost");
    assert_eq!(cost.total_nanos, 3);
    let bare = Router::new().route("/chat", get(async |_: CostScope| ()));
    let request = Request::get("/chat")
        .body(Body::empty())
        .expect("a request");
    let answer = bare.oneshot(request).await.expect("an answer");
    assert_eq!(answer.status(), 500, "no meter around it");
}

#[tokio::test]
async fn what_costs_and_what_is_billed_differ_where_a_client_leaves() {
    let stand = stand();
    let service = ServiceBuilder::new()
        .layer(priced(MeterLayer::new(stand.recorder.clone())))
        .map_request(identify(identity()))
        .service(service_fn(async |request: Request<Full<Bytes>>| {
            meter_of(&request).add("input", 10);
            pending::<()>().await;
            infallible(Response::new(full("never")))
        }));
    let request = Request::get("/chat")
        .body(Full::default())
        .expect("a request");
    let mut call = Box::pin(service.oneshot(request));
    let poll = std::future::poll_fn(|cx| std::task::Poll::Ready(call.as_mut().poll(cx)));
    assert!(poll.await.is_pending());
    drop(call);
    let event = stand.event().await;
    assert!(!event.quantities.contains_key("input") || event.quantities["input"] == 0);
    let cost = event.cost.expect("a cost");
    assert_eq!(cost.tokens_nanos, 30, "the work was done");
}

#[tokio::test(start_paused = true)]
async fn the_reports_of_a_call_that_goes_on_add_up_to_its_cost() {
    let (clock, sink) = (ManualClock::default(), MemorySink::new());
    let recorder = Recorder::builder(sink.clone())
        .clock(Arc::new(clock.clone()))
        .report_every(Duration::from_secs(60))
        .build()
        .expect("a recorder");
    let kept: Arc<std::sync::Mutex<Option<Meter>>> = Arc::default();
    let keep = Arc::clone(&kept);
    let answer = move |request: Request<Full<Bytes>>| {
        *keep.lock().expect("a lock") = Some(meter_of(&request));
        let never = tokio_stream::pending::<Result<http_body::Frame<Bytes>, Infallible>>();
        async { infallible(Response::new(StreamBody::new(never))) }
    };
    let service = ServiceBuilder::new()
        .layer(priced(MeterLayer::new(recorder.clone())))
        .map_request(identify(identity()))
        .service(service_fn(answer));
    let request = Request::get("/chat")
        .body(Full::default())
        .expect("a request");
    let response = service.oneshot(request).await.expect("an answer");
    let meter = kept.lock().expect("a lock").take().expect("a meter");
    let hold = meter.hold();
    for _ in 0..3 {
        hold.add("input", 10);
        meter.cost().add_upstream(100);
        meter.cost().add_compute(Duration::from_nanos(1_500));
        clock.advance(Duration::from_secs(61));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    meter.cost().add_upstream(1);
    drop((response, hold));
    recorder.flush().await;
    let events = sink.events();
    assert_eq!(events.len(), 4);
    let costs: Vec<_> = events
        .iter()
        .map(|event| event.cost.expect("a cost"))
        .collect();
    let sum = |part: fn(&CallCost) -> u64| costs.iter().map(part).sum::<u64>();
    assert_eq!(
        sum(|cost| cost.call_nanos),
        1_000,
        "one call, whatever its reports"
    );
    assert_eq!(sum(|cost| cost.upstream_nanos), 301);
    assert_eq!(sum(|cost| cost.tokens_nanos), 90);
    assert_eq!(sum(|cost| cost.compute_micros), 4, "of 4,500 nanoseconds");
    for event in &events {
        assert_eq!(
            priced_by_hand(event),
            event.cost.expect("a cost").total_nanos
        );
    }
}

/// What the rates of `priced` give for an event.
fn priced_by_hand(event: &UsageEvent) -> u64 {
    let cost = event.cost.expect("a cost");
    let call = if event.part_of.is_none() { 1_000 } else { 0 };
    let tokens = event.quantities.get("input").copied().unwrap_or(0) * 3;
    call + cost.compute_micros * 2 + cost.upstream_nanos + tokens
}
