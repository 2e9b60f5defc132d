//! A service that panics, fails or is not ready, at every place where it can.

use std::{
    convert::Infallible,
    future::{Ready, poll_fn, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::Full;
use tollgate::{
    head::RequestHead,
    limit::{Concurrency, Cost, MemoryLimits, Quota},
    meter::CallOutcome,
    plan::Plan,
    route::RouteTemplate,
};
use tower::{Layer as _, Service, ServiceExt as _, limit::ConcurrencyLimitLayer, service_fn};

use super::{BoxError, Stand, call, get, stand, who};
use crate::common::{
    self,
    far_stores::{FakeKeys, FarTenants},
    serve,
};

/// Where the service breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Breaks {
    Call,
    Poll,
    BodyAtOnce,
    BodyHalfWay,
    BodyError,
    /// The answer is an error that explains itself in a text, and the text panics.
    TextOfError,
    ServiceError,
}

const ALL: [Breaks; 7] = [
    Breaks::Call,
    Breaks::Poll,
    Breaks::BodyAtOnce,
    Breaks::BodyHalfWay,
    Breaks::BodyError,
    Breaks::TextOfError,
    Breaks::ServiceError,
];

#[derive(Debug)]
struct Fragile {
    breaks: Breaks,
    n_frames: usize,
}

impl Body for Fragile {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.n_frames += 1;
        match (self.breaks, self.n_frames) {
            (Breaks::BodyAtOnce | Breaks::TextOfError, _) | (Breaks::BodyHalfWay, 3) => {
                panic!("the body was told to panic")
            }
            (Breaks::BodyError, 3) => Poll::Ready(Some(Err("the source broke".into()))),
            _ => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"frame"))))),
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self.breaks {
            Breaks::TextOfError => http_body::SizeHint::with_exact(5),
            _ => http_body::SizeHint::new(),
        }
    }
}

#[derive(Clone, Copy)]
struct FragileService(Breaks);

impl<Q: Send + 'static> Service<Request<Q>> for FragileService {
    type Response = Response<Fragile>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Fragile>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Q>) -> Self::Future {
        let breaks = self.0;
        assert_ne!(breaks, Breaks::Call, "the service was told to panic");
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut response = Response::new(Fragile {
                breaks,
                n_frames: 0,
            });
            match breaks {
                Breaks::Poll => panic!("the future was told to panic"),
                Breaks::ServiceError => return Err("the service was told to fail".into()),
                Breaks::TextOfError => {
                    *response.status_mut() = StatusCode::NOT_FOUND;
                    let text = http::HeaderValue::from_static("text/plain");
                    response.headers_mut().insert("content-type", text);
                }
                _ => {}
            }
            Ok(response)
        })
    }
}

/// One slot, and a quota of one call: whoever is not given both back is refused from then on.
fn fragile_stand() -> Stand {
    let plan = Plan::new("free")
        .rule(Concurrency::new(1))
        .rule(Quota::daily(1));
    stand(|builder| builder.plans([plan]))
}

async fn read_all(response: Response<impl Body<Data = Bytes>>) -> Result<usize, ()> {
    let mut body = Box::pin(response.into_body());
    let mut n_frames = 0;
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        frame.map_err(drop)?;
        n_frames += 1;
    }
    Ok(n_frames)
}

#[tokio::test]
async fn whatever_panics_is_settled_once_and_charged_to_nobody() {
    for breaks in ALL {
        let stand = fragile_stand();
        let key = stand.issue("acme").await;
        for round in 0..3 {
            let service = stand.gate.layer().layer(FragileService(breaks));
            let request: Request<Full<Bytes>> = get("/", &[("x-api-key", &key)]);
            let task = tokio::spawn(async move {
                match service.oneshot(request).await {
                    Ok(response) => {
                        let status = response.status().as_u16();
                        (status, read_all(response).await.is_ok())
                    }
                    Err(_) => (0, false),
                }
            });
            let expected = match breaks {
                Breaks::Call | Breaks::Poll => Some((500, true)),
                Breaks::BodyError => Some((200, false)),
                Breaks::ServiceError => Some((0, false)),
                // As without the gate: the panic ends the connection.
                Breaks::BodyAtOnce | Breaks::BodyHalfWay | Breaks::TextOfError => None,
            };
            assert_eq!(task.await.ok(), expected, "{breaks:?} {round}");
        }
        stand.assert_balanced().await;
        let events = stand.sink.events();
        assert_eq!(events.len(), 3, "{breaks:?}");
        let expected = match breaks {
            Breaks::BodyError | Breaks::ServiceError => CallOutcome::Failed,
            _ => CallOutcome::Panicked,
        };
        assert!(
            events.iter().all(|event| event.outcome == expected),
            "{breaks:?} {events:?}"
        );
    }
}

#[tokio::test]
async fn a_body_whose_panic_somebody_catches_is_settled_as_one_that_panicked() {
    let stand = fragile_stand();
    let key = stand.issue("acme").await;
    for _ in 0..3 {
        let service = stand
            .gate
            .layer()
            .layer(FragileService(Breaks::BodyHalfWay));
        let request: Request<Full<Bytes>> = get("/", &[("x-api-key", &key)]);
        let response = service.oneshot(request).await.expect("an answer");
        assert_eq!(response.status(), 200);
        let mut body = Box::pin(response.into_body());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut panicked = false;
        while !panicked {
            let poll = AssertUnwindSafe(|| body.as_mut().poll_frame(&mut cx).is_ready());
            panicked = catch_unwind(poll).is_err();
        }
        // Dropped by somebody who is not panicking.
        drop(body);
    }
    stand.assert_balanced().await;
    let outcomes = stand.sink.events().into_iter().map(|event| event.outcome);
    assert_eq!(outcomes.collect::<Vec<_>>(), [CallOutcome::Panicked; 3]);
}

#[tokio::test]
async fn a_limit_gives_back_what_a_panic_cost_whoever_catches_it() {
    let rules = [Quota::daily(1)];
    let layer = tollgate::LimitLayer::new(MemoryLimits::new(), rules).expect("legal rules");
    let service = tower_http::catch_panic::CatchPanicLayer::new()
        .layer(layer.layer(FragileService(Breaks::Poll)));
    for _ in 0..3 {
        let request: Request<Full<Bytes>> = get("/", &[]);
        let response = service.clone().oneshot(request).await.expect("an answer");
        assert_eq!(response.status(), 500);
    }
}

#[tokio::test]
async fn a_server_survives_a_service_that_breaks_everywhere_over_http_1_and_2() {
    let plan = Plan::new("free").rule(Concurrency::new(4));
    let stand = stand(|builder| builder.plans([plan]));
    let key = stand.issue("acme").await;
    for breaks in ALL {
        let service = service_fn(move |request: Request<hyper::body::Incoming>| async move {
            if request.uri().path() == "/fine" {
                return Ok(Response::new(super::boxed(Full::from("fine"))));
            }
            let response = FragileService(breaks).oneshot(request).await;
            match response {
                Ok(response) => Ok::<_, Infallible>(response.map(super::boxed)),
                Err(error) => panic!("{error}"),
            }
        });
        let server = serve(stand.gate.layer().layer(service)).await;
        let with_key = |path: &str| {
            let mut request = common::request("GET", path);
            request
                .headers_mut()
                .insert("x-api-key", key.parse().expect("a value"));
            request
        };
        for _ in 0..5 {
            let raw = format!(
                "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-api-key: {key}\r\n\r\n"
            );
            server.raw(raw.as_bytes()).await;
            let _ = server.try_http2(with_key("/")).await;
            assert_eq!(
                server.send(with_key("/fine")).await.text(),
                "fine",
                "{breaks:?}"
            );
            assert_eq!(
                server.send_http2(with_key("/fine")).await.text(),
                "fine",
                "{breaks:?}"
            );
        }
    }
    common::eventually(|| stand.gate.usage().counters().open == 0).await;
    stand.assert_balanced().await;
    assert_eq!(stand.gate.usage().counters().acked, ALL.len() as u64 * 20);
}

#[tokio::test]
async fn hooks_that_panic_become_answers() {
    let plan = || Plan::new("free").rule(Quota::daily(1));
    let stands = [
        stand(|builder| {
            builder
                .plans([plan()])
                .cost(|_: &RequestHead<'_>| -> Cost { panic!("the cost was told to panic") })
        }),
        stand(|builder| {
            builder
                .plans([plan()])
                .client_addr(|_: &RequestHead<'_>| -> Option<std::net::IpAddr> {
                    panic!("the address was told to panic")
                })
        }),
        stand(|builder| {
            builder
                .plans([plan()])
                .route_of(|_: &RequestHead<'_>| -> Option<RouteTemplate> {
                    panic!("the route was told to panic")
                })
        }),
    ];
    for stand in stands {
        let key = stand.issue("acme").await;
        let service = stand.gate.layer().layer(service_fn(who));
        for n in 1..4 {
            assert_eq!(
                call(&service, get("/", &[("x-api-key", &key)])).await.0,
                500
            );
            let counters = stand.gate.usage().counters();
            assert_eq!(counters.opened + counters.unidentified(500), n);
        }
        stand.assert_balanced().await;
    }
}

/// The span of a call asks the same hook, before the call.
#[tokio::test]
async fn a_route_that_panics_within_a_span_becomes_an_answer() {
    let _subscriber = tracing::subscriber::set_default(tracing_subscriber::registry());
    let stand = stand(|builder| {
        builder.plans([Plan::new("free")]).route_of(
            |_: &RequestHead<'_>| -> Option<RouteTemplate> {
                panic!("the route was told to panic")
            },
        )
    });
    let key = stand.issue("acme").await;
    let service = stand.gate.layer().layer(service_fn(who));
    assert_eq!(
        call(&service, get("/", &[("x-api-key", &key)])).await.0,
        500
    );
    assert_eq!(stand.gate.usage().counters().unidentified(500), 1);
    stand.assert_balanced().await;
}

/// Counts how it is used: a service that is called must be the one that was polled ready.
#[derive(Debug)]
struct Picky {
    ready: bool,
    n_called: Arc<AtomicUsize>,
}

impl Clone for Picky {
    fn clone(&self) -> Self {
        Self {
            ready: false,
            n_called: Arc::clone(&self.n_called),
        }
    }
}

impl Service<Request<Full<Bytes>>> for Picky {
    type Response = Response<Full<Bytes>>;
    type Error = &'static str;
    type Future = Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Full<Bytes>>) -> Self::Future {
        if !std::mem::take(&mut self.ready) {
            return ready(Err("called without having been ready"));
        }
        self.n_called.fetch_add(1, Ordering::SeqCst);
        ready(Ok(Response::new(Full::default())))
    }
}

#[tokio::test]
async fn the_instance_that_was_ready_is_the_one_that_is_called_with_stores_near_and_far() {
    let limits = Arc::new(super::slow::SlowLimits::default());
    let far = stand(|builder| {
        builder
            .keys(FakeKeys::slow())
            .tenants(FarTenants::slow())
            .limits(limits)
            .task_local_tenant(true)
    });
    for stand in [far, stand(|builder| builder)] {
        let n_called = Arc::new(AtomicUsize::new(0));
        let picky = Picky {
            ready: false,
            n_called: Arc::clone(&n_called),
        };
        let mut service = stand.gate.layer().layer(picky);
        for n in 0..5 {
            let key = stand.issue(&format!("tenant-{n}")).await;
            for _ in 0..2 {
                poll_fn(|cx| service.poll_ready(cx)).await.expect("ready");
                let response = service.call(get("/", &[("x-api-key", &key)])).await;
                assert_eq!(response.expect("no error").status(), 200);
            }
            // Who is refused does not use the service up.
            poll_fn(|cx| service.poll_ready(cx)).await.expect("ready");
            assert_eq!(
                service
                    .call(get("/", &[]))
                    .await
                    .expect("no error")
                    .status(),
                401
            );
        }
        assert_eq!(n_called.load(Ordering::SeqCst), 10);
        stand.assert_balanced().await;
    }
}

/// Is never ready: it fails, or it panics.
#[derive(Clone, Copy, Debug)]
struct NeverReady(bool);

impl Service<Request<Full<Bytes>>> for NeverReady {
    type Response = Response<Full<Bytes>>;
    type Error = &'static str;
    type Future = Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        assert!(!self.0, "readiness was told to panic");
        Poll::Ready(Err("never ready"))
    }

    fn call(&mut self, _: Request<Full<Bytes>>) -> Self::Future {
        ready(Err("called all the same"))
    }
}

#[tokio::test]
async fn a_service_that_is_never_ready_is_told_on_and_nothing_is_charged() {
    let stand = stand(|builder| builder);
    let key = stand.issue("acme").await;
    let failing = stand.gate.layer().layer(NeverReady(false));
    let result = failing.oneshot(get("/", &[("x-api-key", &key)])).await;
    assert_eq!(result.map(drop), Err("never ready"));
    let panicking = stand.gate.layer().layer(NeverReady(true));
    let request = get("/", &[("x-api-key", &key)]);
    assert!(tokio::spawn(panicking.oneshot(request)).await.is_err());
    assert_eq!(stand.gate.usage().counters().opened, 0);
    assert_eq!(stand.gate.usage().counters().unidentified_total(), 0);
}

#[tokio::test]
async fn a_service_with_one_place_serves_many_in_turn_and_a_refusal_frees_the_place() {
    let stand = stand(|builder| builder);
    let key = stand.issue("acme").await;
    let service = service_fn(|request| async {
        tokio::task::yield_now().await;
        who(request).await
    });
    let service = stand
        .gate
        .layer()
        .layer(ConcurrencyLimitLayer::new(1).layer(service));
    let calls = (0..64).map(|n| {
        let service = service.clone();
        let key = key.clone();
        tokio::spawn(async move {
            let headers: &[(&str, &str)] = if n % 2 == 0 {
                &[("x-api-key", &key)]
            } else {
                &[]
            };
            call(&service, get("/", headers)).await.0
        })
    });
    let mut served = 0;
    for call in calls.collect::<Vec<_>>() {
        served += usize::from(call.await.expect("no panic") == 200);
    }
    assert_eq!(served, 32);
    stand.assert_balanced().await;
    assert_eq!(stand.gate.usage().counters().acked, 32);
}
