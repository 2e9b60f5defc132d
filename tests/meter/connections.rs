//! Calls over real connections: each ends in one event that says what happened.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_LENGTH};
use http_body::Frame;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};
use tokio_stream::{Stream, StreamExt as _};
use tollgate::{
    error::{ErrorCode, Problem, catch_panic},
    head::RequestHead,
    meter::{CallOutcome, Meter, MeterLayer, Recorder, UsageEvent},
    route::RouteTemplate,
    sink::MemorySink,
};
use tower::{ServiceBuilder, service_fn};

use super::{
    BoxError, TestBody, boxed, events_of, identify, identity, infallible, meter_of, recorder,
};
use crate::common::{Server, request, serve};

const CHUNK: Bytes = Bytes::from_static(b"ten bytes.");

fn chunks(n: usize, meter: Meter) -> impl Stream<Item = Result<Frame<Bytes>, BoxError>> {
    tokio_stream::iter(0..n).map(move |_| {
        meter.add("chunks", 1);
        Ok(Frame::data(CHUNK))
    })
}

async fn answer(
    request: Request<Incoming>,
    arrived: mpsc::UnboundedSender<()>,
) -> Result<Response<TestBody>, Infallible> {
    let meter = meter_of(&request);
    let mut response = Response::new(boxed(Empty::new()));
    match request.uri().path() {
        "/full" | "/public/full" => *response.body_mut() = boxed(Full::new(CHUNK)),
        "/empty" => {}
        "/no-content" => *response.status_mut() = StatusCode::NO_CONTENT,
        "/not-modified" => *response.status_mut() = StatusCode::NOT_MODIFIED,
        "/missing" => *response.status_mut() = StatusCode::NOT_FOUND,
        "/fail" => {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            *response.body_mut() = boxed(Full::new(CHUNK));
        }
        "/stream" => *response.body_mut() = boxed(StreamBody::new(chunks(5, meter))),
        "/declared" => {
            response.headers_mut().insert(CONTENT_LENGTH, 50.into());
            *response.body_mut() = boxed(StreamBody::new(chunks(5, meter)));
        }
        "/trailers" => {
            let trailers = Ok(Frame::trailers(http::HeaderMap::new()));
            let frames = chunks(2, meter).chain(tokio_stream::once(trailers));
            *response.body_mut() = boxed(StreamBody::new(frames));
        }
        "/endless" => *response.body_mut() = boxed(StreamBody::new(chunks(usize::MAX, meter))),
        "/stalled" => {
            let frames = chunks(2, meter).chain(tokio_stream::pending());
            *response.body_mut() = boxed(StreamBody::new(frames));
        }
        "/broken" => {
            let error = Err(BoxError::from("the source broke"));
            let frames = chunks(2, meter).chain(tokio_stream::once(error));
            *response.body_mut() = boxed(StreamBody::new(frames));
        }
        "/hang" => {
            meter.add("started", 1);
            let _ = arrived.send(());
            std::future::pending::<()>().await;
        }
        "/panic" => panic!("the handler panicked on purpose"),
        "/greedy" => {
            meter.add("tokens", u64::MAX);
            meter.add("tokens", u64::MAX);
        }
        "/limited" => {
            let problem = Problem::new(ErrorCode::RateLimited);
            response = problem
                .into_response::<Full<Bytes>>(request.method())
                .map(boxed);
        }
        "/public/denied" => {
            let problem = Problem::new(ErrorCode::MissingCredentials);
            response = problem
                .into_response::<Full<Bytes>>(request.method())
                .map(boxed);
        }
        other => panic!("no such path: {other}"),
    }
    infallible(response)
}

/// A server whose calls are metered, and both ends of it.
struct Metered {
    server: Server,
    recorder: Recorder,
    sink: MemorySink,
    arrived: mpsc::UnboundedReceiver<()>,
    /// Calls that came in from the network, counted outside of the meter.
    n_seen: Arc<AtomicU64>,
}

impl Metered {
    async fn start() -> Self {
        let (recorder, sink) = recorder();
        let (arrived_at, arrived) = mpsc::unbounded_channel();
        let n_seen = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&n_seen);
        let service = ServiceBuilder::new()
            .map_request(move |request: Request<Incoming>| {
                counter.fetch_add(1, Ordering::SeqCst);
                request
            })
            .layer(catch_panic())
            .layer(MeterLayer::new(recorder.clone()).api("chat").route_of(
                |head: &RequestHead<'_>| {
                    Some(RouteTemplate::from(Arc::<str>::from(head.uri().path())))
                },
            ))
            .map_request(identify(identity()))
            .service(service_fn(move |request| {
                answer(request, arrived_at.clone())
            }));
        Self {
            server: serve(service).await,
            recorder,
            sink,
            arrived,
            n_seen,
        }
    }

    async fn events(&self, n_calls: u64) -> Vec<UsageEvent> {
        events_of(&self.recorder, &self.sink, n_calls).await
    }

    /// Makes one whole call over each protocol and checks that both made the same event.
    async fn event_of(method: Method, path: &str) -> UsageEvent {
        let metered = Self::start().await;
        let call = || request(method.as_str(), path);
        let one = metered.server.send(call()).await;
        let two = metered.server.send_http2(call()).await;
        assert_eq!((one.status, &one.body), (two.status, &two.body));
        let events = metered.events(2).await;
        let [first, second] = &events[..] else {
            panic!("two calls made {} events", events.len())
        };
        assert_ne!(first.id, second.id);
        assert_eq!(first.outcome, second.outcome);
        assert_eq!(first.response_bytes, second.response_bytes);
        assert_eq!(first.quantities, second.quantities);
        assert_eq!(first.status, one.status.as_u16());
        assert_eq!(second.status, two.status.as_u16());
        assert_eq!(first.response_bytes, one.body.len() as u64);
        first.clone()
    }

    /// A connection of HTTP/1.1 that has sent a request.
    async fn raw(&self, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.server.addr)
            .await
            .expect("a connection");
        let head = format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
        stream
            .write_all(head.as_bytes())
            .await
            .expect("a server that reads");
        stream
    }

    /// A connection of HTTP/2.
    async fn http2(&self) -> hyper::client::conn::http2::SendRequest<Empty<Bytes>> {
        let stream = TcpStream::connect(self.server.addr)
            .await
            .expect("a connection");
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .expect("a handshake");
        tokio::spawn(connection);
        sender
    }
}

fn http2_request(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://test{path}"))
        .body(Empty::new())
        .expect("a request")
}

#[tokio::test]
async fn a_full_body_is_served_though_its_end_is_never_asked_for() {
    let event = Metered::event_of(Method::GET, "/full").await;
    assert_eq!(event.outcome, CallOutcome::Served);
    assert_eq!(event.response_bytes, 10);
    assert_eq!(event.tenant.as_str(), "acme");
    assert_eq!(event.key.as_ref().map(|key| key.as_str()), Some("key-1"));
    assert_eq!(event.plan.as_str(), "pro");
    assert_eq!(
        (&*event.api, &*event.route, &*event.method),
        ("chat", "/full", "GET")
    );
}

#[tokio::test]
async fn a_stream_is_counted_to_its_end_with_what_it_adds_on_the_way() {
    for path in ["/stream", "/declared"] {
        let event = Metered::event_of(Method::GET, path).await;
        assert_eq!(event.outcome, CallOutcome::Served, "{path}");
        assert_eq!(event.response_bytes, 50, "{path}");
        assert_eq!(event.quantities["chunks"], 5, "{path}");
    }
}

#[tokio::test]
async fn trailers_end_a_body() {
    let event = Metered::event_of(Method::GET, "/trailers").await;
    assert_eq!(
        (event.outcome, event.response_bytes),
        (CallOutcome::Served, 20)
    );
}

#[tokio::test]
async fn bodies_that_are_never_polled_are_no_aborts() {
    for path in ["/empty", "/no-content", "/not-modified", "/missing"] {
        let event = Metered::event_of(Method::GET, path).await;
        assert_eq!(event.outcome, CallOutcome::Served, "{path}");
        assert_eq!(event.response_bytes, 0, "{path}");
    }
    // Over HTTP/1.1 only: hyper sends the content of a HEAD answer over HTTP/2 when a service gives it one.
    for path in ["/full", "/stream"] {
        let metered = Metered::start().await;
        let answer = metered.server.send(request("HEAD", path)).await;
        assert!(answer.body.is_empty());
        let events = metered.events(1).await;
        assert_eq!(events[0].outcome, CallOutcome::Served, "HEAD {path}");
        assert_eq!(events[0].response_bytes, 0, "HEAD {path}");
        assert_eq!(&*events[0].method, "HEAD");
    }
}

#[tokio::test]
async fn a_server_error_is_a_failure() {
    let event = Metered::event_of(Method::GET, "/fail").await;
    assert_eq!((event.outcome, event.status), (CallOutcome::Failed, 500));
}

#[tokio::test]
async fn a_refusal_is_told_by_its_code() {
    let event = Metered::event_of(Method::GET, "/limited").await;
    assert_eq!((event.outcome, event.status), (CallOutcome::Refused, 429));
    assert_eq!(event.refused.as_deref(), Some("rate_limited"));
}

#[tokio::test]
async fn a_sum_saturates() {
    let event = Metered::event_of(Method::GET, "/greedy").await;
    assert_eq!(event.quantities["tokens"], u64::MAX);
}

#[tokio::test]
async fn a_panic_is_told_once() {
    let event = Metered::event_of_panic().await;
    assert_eq!((event.outcome, event.status), (CallOutcome::Panicked, 500));
}

impl Metered {
    async fn event_of_panic() -> UsageEvent {
        let metered = Self::start().await;
        let one = metered.server.get("/panic").await;
        let two = metered.server.send_http2(request("GET", "/panic")).await;
        assert_eq!((one.status.as_u16(), two.status.as_u16()), (500, 500));
        let events = metered.events(2).await;
        assert_eq!(events[0].outcome, events[1].outcome);
        assert_eq!(events[0].status, events[1].status);
        events[0].clone()
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_stream_is_an_abort() {
    for path in ["/endless", "/stalled"] {
        let metered = Metered::start().await;

        let mut stream = metered.raw(path).await;
        let mut some = [0; 64];
        stream.read_exact(&mut some).await.expect("a begin");
        drop(stream);
        let one = metered.events(1).await.remove(0);

        let mut http2 = metered.http2().await;
        let response = http2
            .send_request(http2_request(path))
            .await
            .expect("an answer");
        let mut body = response.into_body();
        body.frame().await.expect("a frame").expect("data");
        // Resets the stream; the connection stays.
        drop(body);
        let two = metered.events(2).await.remove(1);
        drop(http2);

        for event in [one, two] {
            assert_eq!(
                (event.outcome, event.status),
                (CallOutcome::Aborted, 200),
                "{path}"
            );
            assert!(event.response_bytes >= 10, "{path}");
            assert_eq!(
                event.response_bytes,
                10 * event.quantities["chunks"],
                "{path}"
            );
        }
    }
}

#[tokio::test]
async fn a_stream_that_breaks_is_a_failure() {
    let metered = Metered::start().await;
    let mut stream = metered.raw("/broken").await;
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    let mut http2 = metered.http2().await;
    // The stream may be reset before the answer's head was flushed.
    if let Ok(response) = http2.send_request(http2_request("/broken")).await {
        assert!(response.into_body().collect().await.is_err());
    }
    for event in metered.events(2).await {
        assert_eq!((event.outcome, event.status), (CallOutcome::Failed, 200));
        assert_eq!(event.response_bytes, 20);
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_is_an_abort_with_499() {
    let mut metered = Metered::start().await;

    let stream = metered.raw("/hang").await;
    metered.arrived.recv().await;
    drop(stream);
    metered.events(1).await;

    let mut http2 = metered.http2().await;
    let call = http2.send_request(http2_request("/hang"));
    tokio::select! {
        _ = call => panic!("/hang answered"),
        _ = metered.arrived.recv() => {}
    }
    // The call's future is gone by now, which resets the stream.
    for event in metered.events(2).await {
        assert_eq!((event.outcome, event.status), (CallOutcome::Aborted, 499));
        assert_eq!(event.response_bytes, 0);
        // Nothing was handed over.
        assert_eq!(event.quantities["started"], 0);
    }
}

#[tokio::test]
async fn events_and_counters_together_are_every_call_by_status() {
    let metered = Metered::start().await;
    let mut seen = std::collections::BTreeMap::<u16, u64>::new();
    let paths = [
        "/full",
        "/public/full",
        "/limited",
        "/public/denied",
        "/missing",
        "/fail",
        "/panic",
    ];
    for (n, path) in paths.iter().cycle().take(70).enumerate() {
        let answer = if n % 2 == 0 {
            metered.server.get(path).await
        } else {
            metered.server.send_http2(request("GET", path)).await
        };
        *seen.entry(answer.status.as_u16()).or_default() += 1;
    }
    let events = metered.events(70).await;
    let counters = metered.recorder.counters();
    assert_eq!(counters.unidentified(200), 10);
    assert_eq!(counters.unidentified(401), 10);
    assert_eq!(counters.unidentified_total(), 20);
    for (status, n) in seen {
        let with_event = events.iter().filter(|event| event.status == status).count() as u64;
        assert_eq!(with_event + counters.unidentified(status), n, "{status}");
    }
}

/// Clients that leave after a random number of bytes, or at once, on both protocols. A server need not see
/// every call of a client that leaves; each one that it has seen makes one event.
#[tokio::test]
async fn hundreds_of_clients_that_leave_at_random_leave_nothing_open() {
    const N_CLIENTS: u64 = 300;
    let metered = Arc::new(Metered::start().await);
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..N_CLIENTS {
        clients.spawn(leave_at_random(Arc::clone(&metered), n));
    }
    while let Some(done) = clients.join_next().await {
        done.expect("a client");
        let counters = metered.recorder.counters();
        assert!(counters.is_balanced(), "{counters:?}");
    }
    let Metered {
        server,
        recorder,
        sink,
        n_seen,
        ..
    } = Arc::into_inner(metered).expect("no client is left");
    // Ends the connections too, so that no call comes in any more once their tasks have noticed.
    drop(server);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let n_seen = n_seen.load(Ordering::SeqCst);
    assert!(n_seen > N_CLIENTS / 2, "the server saw {n_seen} calls only");
    let events = events_of(&recorder, &sink, n_seen).await;
    assert_eq!(events.len() as u64, n_seen);
    let counters = recorder.counters();
    assert_eq!((counters.opened, counters.settled), (n_seen, n_seen));
}

async fn leave_at_random(metered: Arc<Metered>, n: u64) {
    const IMPATIENCE: Duration = Duration::from_millis(50);
    let path = ["/endless", "/full", "/stalled", "/broken", "/stream"][n as usize % 5];
    if n.is_multiple_of(2) {
        let mut stream = metered.raw(path).await;
        let mut some = vec![0; (n as usize * 7919) % 400];
        let _ = tokio::time::timeout(IMPATIENCE, stream.read_exact(&mut some)).await;
    } else {
        let mut http2 = metered.http2().await;
        // A stream that breaks may be reset before the answer's head was flushed.
        let Ok(response) = http2.send_request(http2_request(path)).await else {
            return;
        };
        let mut body = response.into_body();
        for _ in 0..n % 4 {
            let next = tokio::time::timeout(IMPATIENCE, body.frame()).await;
            if !matches!(next, Ok(Some(Ok(_)))) {
                break;
            }
        }
    }
}
