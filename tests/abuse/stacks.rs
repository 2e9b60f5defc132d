//! The gate among other layers: retries, buffers, clones, and a gate inside of a gate.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tollgate::{
    auth::{Extractor, KeySource},
    limit::Quota,
    meter::{CallOutcome, Meter},
    plan::Plan,
};
use tower::{
    Layer as _, ServiceBuilder, ServiceExt as _, buffer::BufferLayer, retry::RetryLayer, service_fn,
};

use super::{Stand, TestBody, boxed, call, get, stand, who};

type Body = Full<bytes::Bytes>;

/// Tries a call that failed twice more.
#[derive(Clone, Copy)]
struct Twice(usize);

impl<B> tower::retry::Policy<Request<Body>, Response<B>, Infallible> for Twice {
    type Future = Ready<()>;

    fn retry(
        &mut self,
        _: &mut Request<Body>,
        result: &mut Result<Response<B>, Infallible>,
    ) -> Option<Ready<()>> {
        let failed = result
            .as_ref()
            .is_ok_and(|response| response.status().is_server_error());
        if !failed || self.0 == 0 {
            return None;
        }
        self.0 -= 1;
        Some(ready(()))
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        Some(request.clone())
    }
}

/// Fails twice, then answers.
fn unsteady(
    n_tries: &Arc<AtomicUsize>,
) -> impl Fn(Request<Body>) -> Ready<Result<Response<TestBody>, Infallible>> + Clone {
    let n_tries = Arc::clone(n_tries);
    move |request| {
        let meter = request.extensions().get::<Meter>().expect("a meter");
        meter.add("tries", 1);
        let mut response = Response::new(boxed(Body::from("fine")));
        if n_tries.fetch_add(1, Ordering::SeqCst) % 3 < 2 {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        ready(Ok(response))
    }
}

fn with_quota(n: u64) -> Stand {
    stand(|builder| builder.plans([Plan::new("free").rule(Quota::daily(n))]))
}

#[tokio::test]
async fn a_retry_outside_of_the_gate_makes_a_call_of_each_try() {
    let stand = with_quota(1);
    let key = stand.issue("acme").await;
    let n_tries = Arc::default();
    let service = ServiceBuilder::new()
        .layer(RetryLayer::new(Twice(2)))
        .layer(stand.gate.layer())
        .service(service_fn(unsteady(&n_tries)));
    let (status, _) = call(&service, get("/", &[("x-api-key", &key)])).await;
    assert_eq!((status, n_tries.load(Ordering::SeqCst)), (200, 3));
    stand.assert_balanced().await;
    let events = stand.sink.events();
    let outcomes: Vec<_> = events.iter().map(|event| event.outcome).collect();
    // What failed was given back to the quota of one, or the third try had been refused.
    assert_eq!(
        outcomes,
        [
            CallOutcome::Failed,
            CallOutcome::Failed,
            CallOutcome::Served
        ]
    );
    assert!(events.iter().all(|event| event.quantities["tries"] == 1));
}

#[tokio::test]
async fn a_retry_inside_of_the_gate_is_one_call_that_adds_up_what_all_tries_used() {
    let stand = with_quota(1);
    let key = stand.issue("acme").await;
    let n_tries = Arc::default();
    let service = ServiceBuilder::new()
        .layer(stand.gate.layer())
        .layer(RetryLayer::new(Twice(2)))
        .service(service_fn(unsteady(&n_tries)));
    let (status, _) = call(&service, get("/", &[("x-api-key", &key)])).await;
    assert_eq!((status, n_tries.load(Ordering::SeqCst)), (200, 3));
    stand.assert_balanced().await;
    let events = stand.sink.events();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].outcome, CallOutcome::Served);
    assert_eq!(events[0].quantities["tries"], 3);
    assert_eq!(
        call(&service, get("/", &[("x-api-key", &key)])).await.0,
        429
    );
}

#[tokio::test]
async fn a_thousand_clones_and_a_buffer_share_one_count() {
    let stand = with_quota(100);
    let key = stand.issue("acme").await;
    let gated = stand.gate.layer().layer(service_fn(who));
    let buffered = ServiceBuilder::new()
        .layer(BufferLayer::new(64))
        .service(stand.gate.layer().layer(service_fn(who)));
    let mut calls = tokio::task::JoinSet::new();
    let on_this_thread = tokio::task::LocalSet::new();
    for n in 0..1_000 {
        let request: Request<Body> = get("/", &[("x-api-key", &key)]);
        if n % 2 == 0 {
            let service = gated.clone();
            let call = async move { call(&service, request).await.0 };
            calls.spawn_local_on(call, &on_this_thread);
        } else {
            let service = buffered.clone();
            let answer = async move {
                let response = service.oneshot(request).await.expect("an answer");
                response.status().as_u16()
            };
            calls.spawn_local_on(answer, &on_this_thread);
        }
    }
    let statuses = on_this_thread.run_until(calls.join_all()).await;
    let served = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!(served, 100);
    assert!(statuses.iter().all(|status| matches!(status, 200 | 429)));
    stand.assert_balanced().await;
    assert_eq!(stand.sink.len(), 1_000);
}

/// A gate that reads its key from a field of its own.
fn reading(field: &'static str, quota: u64) -> Stand {
    stand(|builder| {
        let source = KeySource::header(field).expect("a name");
        builder
            .plans([Plan::new("free").rule(Quota::daily(quota))])
            .extractor(Extractor::new([source]).expect("a source"))
    })
}

#[tokio::test]
async fn of_two_gates_with_a_key_each_both_limit_and_the_outer_one_alone_meters() {
    let (outer, inner) = (reading("x-outer-key", 3), reading("x-inner-key", 2));
    let (outer_key, inner_key) = (outer.issue("outer").await, inner.issue("inner").await);
    let service = ServiceBuilder::new()
        .layer(outer.gate.layer())
        .layer(inner.gate.layer())
        .service(service_fn(who));
    let both = [("x-outer-key", &*outer_key), ("x-inner-key", &*inner_key)];
    // The service is told of the inner identity; what the inner gate refuses is given back to the outer quota.
    assert_eq!(
        call(&service, get("/", &both)).await,
        (200, "inner".to_owned())
    );
    assert_eq!(call(&service, get("/", &both)).await.0, 200);
    for _ in 0..5 {
        assert_eq!(call(&service, get("/", &both)).await.0, 429);
    }
    let (status, _) = call(&service, get("/", &both[..1])).await;
    assert_eq!(status, 401, "the inner gate knows nobody by the outer key");
    outer.assert_balanced().await;
    inner.assert_balanced().await;
    let events = outer.sink.events();
    assert_eq!((events.len(), inner.sink.len()), (8, 0));
    assert!(events.iter().all(|event| event.tenant.as_str() == "outer"));
    let refused = events
        .iter()
        .filter(|event| event.outcome == CallOutcome::Refused);
    assert_eq!(refused.count(), 6);
}

#[tokio::test]
async fn of_two_gates_that_read_one_field_the_inner_one_never_sees_the_key() {
    let stand = with_quota(10);
    let key = stand.issue("acme").await;
    let service = ServiceBuilder::new()
        .layer(stand.gate.layer())
        .layer(stand.gate.layer())
        .service(service_fn(who));
    let (status, body) = call(&service, get("/", &[("x-api-key", &key)])).await;
    assert_eq!(status, 401);
    assert!(body.contains("missing_credentials"), "{body}");
    stand.assert_balanced().await;
    assert_eq!(stand.sink.len(), 1, "one call is metered once");
}
