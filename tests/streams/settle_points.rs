//! Every way in which a server lets go of a call: what it pays, and that nothing is left behind.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header::CONTENT_LENGTH};
use http_body::Frame;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::Incoming;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{Notify, mpsc},
};
use tokio_stream::{Stream, StreamExt as _};
use tollgate::meter::{AbortPolicy, CallOutcome, Meter, UsageEvent};
use tower::{ServiceExt as _, service_fn};

use super::stand::{
    ALL, BoxError, CALLS, Left, RATE, Stand, TOKENS, TestBody, boxed, http2, meter_of, stand,
};
use crate::common::{Server, eventually};

const CHUNK: Bytes = Bytes::from_static(b"ten bytes.");

fn chunks(n: usize, meter: Meter) -> impl Stream<Item = Result<Frame<Bytes>, BoxError>> {
    tokio_stream::iter(0..n).map(move |_| {
        meter.add("tokens", 10);
        Ok(Frame::data(CHUNK))
    })
}

/// Where a test and the service meet.
#[derive(Clone)]
struct Signals {
    arrived: mpsc::UnboundedSender<()>,
    go_on: Arc<Notify>,
}

async fn answer(
    request: Request<Incoming>,
    signals: Signals,
) -> Result<Response<TestBody>, Infallible> {
    let meter = meter_of(&request);
    let mut response = Response::new(boxed(Empty::new()));
    let path = request.uri().path();
    if path.starts_with("/early") {
        // The tokens of the question, before anything is answered.
        meter.add("tokens", 100);
    }
    match path {
        "/early/full" => *response.body_mut() = boxed(Full::new(CHUNK)),
        "/early/empty" => {}
        "/early/no-content" => *response.status_mut() = StatusCode::NO_CONTENT,
        "/early/not-modified" => *response.status_mut() = StatusCode::NOT_MODIFIED,
        "/early/fail" => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
        "/early/stream" => *response.body_mut() = boxed(StreamBody::new(chunks(5, meter))),
        "/early/declared" => {
            response.headers_mut().insert(CONTENT_LENGTH, 50.into());
            *response.body_mut() = boxed(StreamBody::new(chunks(5, meter)));
        }
        "/early/trailers" => {
            let trailers = Ok(Frame::trailers(http::HeaderMap::new()));
            let frames = chunks(5, meter).chain(tokio_stream::once(trailers));
            *response.body_mut() = boxed(StreamBody::new(frames));
        }
        "/early/silent" => {
            *response.body_mut() = boxed(StreamBody::new(
                chunks(0, meter).chain(tokio_stream::pending()),
            ))
        }
        "/early/panic" => panic!("the handler panicked on purpose"),
        "/early/hang" => {
            let _ = signals.arrived.send(());
            std::future::pending::<()>().await;
        }
        "/early/wait" => {
            let _ = signals.arrived.send(());
            signals.go_on.notified().await;
        }
        "/stalled" => {
            // A token that no frame follows.
            let unsent = tokio_stream::once(()).filter_map({
                let meter = meter.clone();
                move |()| {
                    meter.add("tokens", 1_000);
                    None
                }
            });
            let frames = chunks(2, meter)
                .chain(unsent)
                .chain(tokio_stream::pending());
            *response.body_mut() = boxed(StreamBody::new(frames));
        }
        "/endless" => *response.body_mut() = boxed(StreamBody::new(chunks(usize::MAX, meter))),
        "/broken" => {
            let error = Err(BoxError::from("the source broke"));
            let frames = chunks(2, meter).chain(tokio_stream::once(error));
            *response.body_mut() = boxed(StreamBody::new(frames));
        }
        "/panics" => {
            let frames = chunks(3, meter).map({
                let mut n = 0;
                move |frame| {
                    n += 1;
                    assert!(n < 3, "the stream panicked on purpose");
                    frame
                }
            });
            *response.body_mut() = boxed(StreamBody::new(frames));
        }
        "/greedy" => {
            meter.add("tokens", u64::MAX);
            meter.add("tokens", u64::MAX);
        }
        other => panic!("no such path: {other}"),
    }
    Ok(response)
}

/// A stand whose server ends calls as their paths say.
struct Served {
    stand: Stand,
    server: Server,
    arrived: mpsc::UnboundedReceiver<()>,
    go_on: Arc<Notify>,
    /// Calls that came in from the network, counted outside of the gate.
    n_seen: Arc<AtomicU64>,
}

async fn served() -> Served {
    served_under(AbortPolicy::default()).await
}

async fn served_under(policy: AbortPolicy) -> Served {
    let stand = stand(|builder| builder.abort_policy(policy)).await;
    let (arrived_at, arrived) = mpsc::unbounded_channel();
    let signals = Signals {
        arrived: arrived_at,
        go_on: Arc::new(Notify::new()),
    };
    let go_on = Arc::clone(&signals.go_on);
    let n_seen = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&n_seen);
    let service = tower::Layer::layer(
        &stand.layer(),
        service_fn(move |request| answer(request, signals.clone())),
    )
    .map_request(move |request: Request<Incoming>| {
        counter.fetch_add(1, Ordering::SeqCst);
        request
    });
    let server = crate::common::serve(service).await;
    Served {
        stand,
        server,
        arrived,
        go_on,
        n_seen,
    }
}

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Http1,
    Http2,
}

const BOTH: [Protocol; 2] = [Protocol::Http1, Protocol::Http2];

/// What is left of a call that was paid with so many tokens.
const fn paid(tokens: u64) -> Left {
    Left {
        calls: CALLS - 1,
        rate: RATE - 1,
        tokens: TOKENS - tokens,
        ..ALL
    }
}

/// What is left of a call that nobody pays for: the rate keeps its charge.
const UNPAID: Left = Left {
    rate: RATE - 1,
    ..ALL
};

impl Served {
    /// Reads an answer as far as it goes.
    async fn read(&self, protocol: Protocol, method: &str, path: &str) {
        let mut request = crate::common::request(method, path);
        let key = self.stand.key.parse().expect("a header value");
        request.headers_mut().insert("x-api-key", key);
        match protocol {
            Protocol::Http1 => {
                let mut stream = tokio::net::TcpStream::connect(self.server.addr)
                    .await
                    .expect("a connection");
                let head = format!(
                    "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\nx-api-key: {}\r\n\r\n",
                    self.stand.key
                );
                stream.write_all(head.as_bytes()).await.expect("written");
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
            Protocol::Http2 => {
                let _ = self.server.try_http2(request).await;
            }
        }
    }

    /// Waits until no call is open and none comes any more.
    async fn settle(&self) {
        let n_seen = || self.n_seen.load(Ordering::SeqCst);
        loop {
            let before = n_seen();
            eventually(|| {
                let counters = self.stand.gate.usage().counters();
                counters.open == 0 && counters.settled == n_seen()
            })
            .await;
            // The server may not have read all that was sent.
            tokio::time::sleep(Duration::from_millis(50)).await;
            if n_seen() == before {
                break;
            }
        }
    }

    async fn event(&self) -> UsageEvent {
        self.stand.events(1).await.remove(0)
    }

    /// Leaves a stream after its first bytes and gives the event.
    async fn leave(&self, protocol: Protocol, path: &str) -> UsageEvent {
        match protocol {
            Protocol::Http1 => {
                let mut stream = self.stand.raw(&self.server, path).await;
                let mut head = Vec::new();
                // The head, and of a stream that has begun some of its content.
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.expect("a byte"));
                }
                if path != "/early/silent" {
                    stream.read_exact(&mut [0; 14]).await.expect("a chunk");
                }
            }
            Protocol::Http2 => {
                let mut sender = http2(&self.server).await;
                let request = self.stand.get(path);
                let response = sender.send_request(request).await.expect("an answer");
                let mut body = response.into_body();
                if path != "/early/silent" {
                    body.frame().await.expect("a frame").expect("data");
                }
                // Resets the stream; the connection stays until the event has come.
                drop(body);
                return self.event().await;
            }
        }
        self.event().await
    }

    /// Leaves while the handler still works.
    async fn leave_early(&mut self, protocol: Protocol) -> UsageEvent {
        let path = "/early/hang";
        match protocol {
            Protocol::Http1 => {
                let stream = self.stand.raw(&self.server, path).await;
                self.arrived.recv().await.expect("a call");
                drop(stream);
            }
            Protocol::Http2 => {
                let mut sender = http2(&self.server).await;
                let call = sender.send_request(self.stand.get(path));
                tokio::select! {
                    _ = call => panic!("/early/hang answered"),
                    _ = self.arrived.recv() => {}
                }
                // The call's future is gone by now, which resets the stream.
                return self.event().await;
            }
        }
        self.event().await
    }
}

#[tokio::test]
async fn a_call_that_is_served_pays_for_everything_that_was_added() {
    let calls = [
        ("GET", "/early/full", 100),
        ("GET", "/early/empty", 100),
        ("GET", "/early/no-content", 100),
        ("GET", "/early/not-modified", 100),
        ("GET", "/early/stream", 150),
        ("GET", "/early/declared", 150),
        ("GET", "/early/trailers", 150),
        ("HEAD", "/early/full", 100),
        ("HEAD", "/early/empty", 100),
    ];
    for (method, path, tokens) in calls {
        for protocol in BOTH {
            for policy in [
                AbortPolicy::Delivered,
                AbortPolicy::NothingBeforeFirstByte,
                AbortPolicy::Produced,
            ] {
                let served = served_under(policy).await;
                served.read(protocol, method, path).await;
                let event = served.event().await;
                let told = format!("{method} {path} over {protocol:?} under {policy:?}");
                assert_eq!(event.outcome, CallOutcome::Served, "{told}");
                assert_eq!(event.quantities["tokens"], tokens, "{told}");
                assert!(!event.waived, "{told}");
                assert_eq!(served.stand.left().await, paid(tokens), "{told}");
            }
        }
    }
}

#[tokio::test]
async fn a_call_that_fails_gets_its_quotas_back_and_no_slot_stays_taken() {
    for (path, outcome, status) in [
        ("/early/fail", CallOutcome::Failed, 500),
        ("/early/panic", CallOutcome::Panicked, 500),
        ("/broken", CallOutcome::Failed, 200),
        ("/panics", CallOutcome::Panicked, 200),
    ] {
        for protocol in BOTH {
            let served = served().await;
            served.read(protocol, "GET", path).await;
            let event = served.event().await;
            let told = format!("{path} over {protocol:?}");
            assert_eq!((event.outcome, event.status), (outcome, status), "{told}");
            assert_eq!(served.stand.left().await, UNPAID, "{told}");
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_pays_for_what_was_handed_over() {
    for path in ["/endless", "/stalled"] {
        for protocol in BOTH {
            let served = served().await;
            let event = served.leave(protocol, path).await;
            let told = format!("{path} over {protocol:?}");
            let outcome = (event.outcome, event.status);
            assert_eq!(outcome, (CallOutcome::Aborted, 200), "{told}");
            let tokens = event.quantities["tokens"];
            // Ten for each frame of ten bytes, and not the thousand that no frame followed.
            assert_eq!(tokens, event.response_bytes, "{told}");
            assert!(tokens >= 10, "{told}");
            assert_eq!(served.stand.left().await, paid(tokens), "{told}");
        }
    }
}

#[tokio::test]
async fn work_that_is_paid_as_produced_is_paid_unseen_too() {
    for protocol in BOTH {
        let mut served = served_under(AbortPolicy::Produced).await;
        let event = served.leave_early(protocol).await;
        assert_eq!((event.outcome, event.status), (CallOutcome::Aborted, 499));
        assert_eq!(event.quantities["tokens"], 100);
        assert_eq!(served.stand.left().await, paid(100), "{protocol:?}");

        let served = served_under(AbortPolicy::Produced).await;
        let event = served.leave(protocol, "/stalled").await;
        assert_eq!(event.quantities["tokens"], 1_020);
        assert_eq!(served.stand.left().await, paid(1_020), "{protocol:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_pays_the_call_and_no_token() {
    for protocol in BOTH {
        let mut served = served().await;
        let event = served.leave_early(protocol).await;
        assert_eq!((event.outcome, event.status), (CallOutcome::Aborted, 499));
        assert_eq!(event.quantities["tokens"], 0);
        assert!(!event.waived);
        assert_eq!(served.stand.left().await, paid(0), "{protocol:?}");
    }
}

#[tokio::test]
async fn nothing_before_the_first_byte_is_nothing_and_the_rate_is_charged() {
    let policy = AbortPolicy::NothingBeforeFirstByte;
    for protocol in BOTH {
        let mut early = served_under(policy).await;
        let event = early.leave_early(protocol).await;
        assert_eq!((event.outcome, event.status), (CallOutcome::Aborted, 499));
        assert_eq!((event.quantities["tokens"], event.waived), (0, true));
        assert_eq!(early.stand.left().await, UNPAID, "{protocol:?}");

        // A head alone is no byte of content.
        let silent = served_under(policy).await;
        let event = silent.leave(protocol, "/early/silent").await;
        assert_eq!((event.outcome, event.status), (CallOutcome::Aborted, 200));
        assert_eq!((event.quantities["tokens"], event.waived), (0, true));
        assert_eq!(silent.stand.left().await, UNPAID, "{protocol:?}");

        let begun = served_under(policy).await;
        let event = begun.leave(protocol, "/stalled").await;
        assert_eq!((event.quantities["tokens"], event.waived), (20, false));
        assert_eq!(begun.stand.left().await, paid(20), "{protocol:?}");
    }
}

/// FAULTS, section 4: with a second request in its buffer, hyper does not see that the client has left.
#[tokio::test]
async fn a_pipelined_request_hides_that_the_client_left_and_both_calls_end_once() {
    let mut served = served().await;
    let mut stream = served.stand.raw(&served.server, "/early/wait").await;
    served.arrived.recv().await.expect("a call");
    let second = format!(
        "GET /early/full HTTP/1.1\r\nhost: test\r\nx-api-key: {}\r\n\r\n",
        served.stand.key
    );
    stream.write_all(second.as_bytes()).await.expect("written");
    drop(stream);
    // The handler runs on, and ends as if its client were there.
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(served.stand.gate.usage().counters().settled, 0);
    served.go_on.notify_one();
    served.settle().await;
    let n_seen = served.n_seen.load(Ordering::SeqCst);
    let events = served.stand.events(n_seen).await;
    assert_eq!(events[0].outcome, CallOutcome::Served);
    assert_eq!(events[0].quantities["tokens"], 100);
    assert_eq!(served.stand.left().await.slots, ALL.slots);
}

/// CVE-2023-44487: streams that are reset as soon as they are opened.
#[tokio::test]
async fn streams_that_are_reset_rapidly_on_one_connection_are_each_charged_once() {
    let served = served().await;
    let mut n_sent = 0;
    while n_sent < 1_000 {
        let mut sender = http2(&served.server).await;
        // The server ends a connection that resets too much; then comes the next one.
        while n_sent < 1_000 && sender.ready().await.is_ok() {
            let path = ["/early/hang", "/early/full", "/endless"][n_sent % 3];
            let call = sender.send_request(served.stand.get(path));
            n_sent += 1;
            if n_sent % 2 == 0 {
                let _ = tokio::time::timeout(Duration::from_micros(300), call).await;
            }
        }
    }
    served.settle().await;
    let n_seen = served.n_seen.load(Ordering::SeqCst);
    // Ten slots for a thousand calls: some were refused, which charges nothing.
    let charged = served.stand.limits.n_charged.load(Ordering::SeqCst);
    let settled = served.stand.limits.n_settled.load(Ordering::SeqCst);
    assert_eq!(charged, settled);
    served.stand.gate.usage().flush().await;
    let events = served.stand.sink.events();
    assert_eq!(events.len() as u64, n_seen);
    let admitted = events
        .iter()
        .filter(|event| event.outcome != CallOutcome::Refused);
    assert_eq!(admitted.count() as u64, charged);
    assert_eq!(served.stand.sink.duplicates(), 0);
    assert_eq!(served.stand.left().await.slots, ALL.slots);
}

#[tokio::test]
async fn the_largest_number_saturates_in_the_event_and_bounds_the_debt() {
    for protocol in BOTH {
        let served = served().await;
        served.read(protocol, "GET", "/greedy").await;
        let event = served.event().await;
        assert_eq!(event.outcome, CallOutcome::Served);
        assert_eq!(event.quantities["tokens"], u64::MAX);
        // The quota is overdrawn and stays so until its period ends; nothing has wrapped to "all is left".
        let refused = served.server.send({
            let mut request = crate::common::request("GET", "/early/full");
            let key = served.stand.key.parse().expect("a header value");
            request.headers_mut().insert("x-api-key", key);
            request
        });
        assert_eq!(refused.await.status, 429);
        served.stand.clock.advance(Duration::from_secs(86_400));
        served.read(protocol, "GET", "/early/full").await;
        eventually(|| served.stand.gate.usage().counters().settled == 3).await;
        served.stand.gate.usage().flush().await;
        let events = served.stand.sink.events();
        assert_eq!(events[2].outcome, CallOutcome::Served, "{protocol:?}");
    }
}
