//! What a charge becomes when the call ends.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use tollgate::{
    clock::ManualClock,
    error::{ErrorCode, Problem},
    head::RequestHead,
    limit::{Concurrency, Cost, Quota, Rate, Rule, Unit},
    meter::Meter,
};
use tower::{Layer, ServiceExt, service_fn};

use super::{hello, items, layer, request, status};

#[tokio::test]
async fn a_reservation_is_settled_with_what_the_handler_used() {
    let clock = ManualClock::default();
    let service = layer(&clock, [Quota::daily(1_000).unit(Unit::custom("tokens"))])
        .cost(|_: &RequestHead<'_>| Cost::default().with("tokens", 400))
        .layer(service_fn(|request: Request<()>| async move {
            let meter = request.extensions().get::<Meter>().unwrap();
            meter.add("tokens", 150);
            hello(Request::new(())).await
        }));
    let remaining = async || {
        let response = service.clone().oneshot(request()).await.unwrap();
        let left = items(&response, "ratelimit")[0].1[0].1.clone();
        response.into_body().collect().await.unwrap();
        left
    };
    // Each call shows its hold of 400; the next finds that only 150 were used.
    assert_eq!(remaining().await, "600");
    assert_eq!(remaining().await, "450");
    assert_eq!(remaining().await, "300");
}

#[tokio::test]
async fn a_reservation_that_the_handler_never_names_is_released_and_a_plain_cost_is_not() {
    let clock = ManualClock::default();
    let tokens = || Quota::daily(1_000).unit(Unit::custom("tokens"));
    for (cost, left) in [
        (Cost::default().reserve("tokens", 400), "600"),
        (Cost::default().with("tokens", 400), "200"),
    ] {
        let service = layer(&clock, [tokens()])
            .cost(move |_: &RequestHead<'_>| cost.clone())
            .layer(service_fn(hello));
        drop(service.clone().oneshot(request()).await.unwrap());
        let response = service.oneshot(request()).await.unwrap();
        assert_eq!(items(&response, "ratelimit")[0].1[0].1, left);
    }
}

#[tokio::test]
async fn a_settlement_counts_at_its_own_time_and_not_at_that_of_the_decision() {
    let clock = ManualClock::default();
    let later = clock.clone();
    let rule = || Rate::per_second(1).burst(10).unit(Unit::custom("rows"));
    let service = layer(&clock, [rule()])
        .cost(|_: &RequestHead<'_>| Cost::default().with("rows", 1))
        .layer(service_fn(move |request: Request<()>| {
            let clock = later.clone();
            async move {
                clock.advance(Duration::from_secs(3600));
                if request.uri().path() == "/more" {
                    request.extensions().get::<Meter>().unwrap().add("rows", 9);
                }
                hello(Request::new(())).await
            }
        }));
    let spend = Request::get("/more").body(()).unwrap();
    drop(service.clone().oneshot(spend).await.unwrap());
    let response = service.oneshot(request()).await.unwrap();
    // Eight of nine rows were charged when the bucket was full again, and one by this call.
    assert_eq!(items(&response, "ratelimit")[0].1[0].1, "1");
}

#[tokio::test]
async fn what_a_handler_says_by_itself_gives_nothing_back() {
    let clock = ManualClock::default();
    let service = layer(&clock, [Quota::daily(2)]).layer(service_fn(|_: Request<()>| async {
        let problem = Problem::new(ErrorCode::NotFound);
        Ok::<_, Infallible>(problem.into_response::<Full<Bytes>>(&http::Method::GET))
    }));
    assert_eq!(status(&service, request()).await, StatusCode::NOT_FOUND);
    assert_eq!(status(&service, request()).await, StatusCode::NOT_FOUND);
    assert_eq!(
        status(&service, request()).await,
        StatusCode::TOO_MANY_REQUESTS
    );
}

#[tokio::test]
async fn a_handler_that_uses_more_than_was_held_overdraws_and_the_next_call_waits() {
    let clock = ManualClock::default();
    let service = layer(&clock, [Quota::daily(100).unit(Unit::custom("tokens"))])
        .cost(|_: &RequestHead<'_>| Cost::default().with("tokens", 10))
        .layer(service_fn(|request: Request<()>| async move {
            request
                .extensions()
                .get::<Meter>()
                .unwrap()
                .add("tokens", u64::MAX);
            hello(Request::new(())).await
        }));
    assert_eq!(status(&service, request()).await, StatusCode::OK);
    assert_eq!(
        status(&service, request()).await,
        StatusCode::TOO_MANY_REQUESTS
    );
}

#[tokio::test]
async fn a_failure_of_the_service_gives_the_quota_back_but_not_the_rate() {
    let clock = ManualClock::default();
    let rules: [Rule; 2] = [Rate::per_minute(3).into(), Quota::daily(1).into()];
    let service = layer(&clock, rules).layer(service_fn(|request: Request<()>| async move {
        let mut response = hello(Request::new(())).await?;
        if request.uri().path() == "/fails" {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
        Ok::<_, Infallible>(response)
    }));
    let failing = || Request::get("/fails").body(()).unwrap();
    assert_eq!(
        status(&service, failing()).await,
        StatusCode::INTERNAL_SERVER_ERROR
    );
    assert_eq!(
        status(&service, failing()).await,
        StatusCode::INTERNAL_SERVER_ERROR
    );
    assert_eq!(
        status(&service, request()).await,
        StatusCode::OK,
        "the quota of one is still there"
    );
    clock.advance(Duration::from_secs(20));
    let refused = service.clone().oneshot(request()).await.unwrap();
    let body = refused.into_body().collect().await.unwrap().to_bytes();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["code"], "quota_exceeded");
}

#[tokio::test]
async fn a_slot_is_held_until_the_body_ends_or_is_dropped() {
    let clock = ManualClock::default();
    let service = layer(&clock, [Concurrency::new(1)]).layer(service_fn(hello));
    let first = service.clone().oneshot(request()).await.unwrap();
    assert_eq!(first.status(), StatusCode::OK);
    let second = service.clone().oneshot(request()).await.unwrap();
    assert_eq!(second.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(
        !second.headers().contains_key("retry-after"),
        "nobody knows when a call ends"
    );
    drop(first);
    let third = service.clone().oneshot(request()).await.unwrap();
    assert_eq!(third.status(), StatusCode::OK);
    third.into_body().collect().await.unwrap();
    assert_eq!(status(&service, request()).await, StatusCode::OK);
}

#[tokio::test]
async fn a_dropped_future_and_a_broken_body_release_the_slot() {
    let clock = ManualClock::default();
    let service =
        layer(&clock, [Concurrency::new(1)]).layer(service_fn(|request: Request<()>| async move {
            if request.uri().path() == "/hangs" {
                std::future::pending::<()>().await;
            }
            let frames = [
                Ok(http_body::Frame::data(Bytes::from("a"))),
                Err(std::io::Error::other("cut")),
            ];
            Ok::<_, Infallible>(Response::new(StreamBody::new(tokio_stream::iter(frames))))
        }));
    let mut hanging = tokio_test_poll(
        service
            .clone()
            .oneshot(Request::get("/hangs").body(()).unwrap()),
    );
    assert!(hanging.poll_once().is_pending());
    assert_eq!(
        status(&service, request()).await,
        StatusCode::TOO_MANY_REQUESTS
    );
    drop(hanging);
    let broken = service.clone().oneshot(request()).await.unwrap();
    assert!(broken.into_body().collect().await.is_err());
    assert_eq!(status(&service, request()).await, StatusCode::OK);
}

/// A future that is polled by hand.
struct ByHand<F>(std::pin::Pin<Box<F>>);

fn tokio_test_poll<F: Future>(future: F) -> ByHand<F> {
    ByHand(Box::pin(future))
}

impl<F: Future> ByHand<F> {
    fn poll_once(&mut self) -> std::task::Poll<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        self.0.as_mut().poll(&mut context)
    }
}
