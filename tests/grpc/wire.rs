//! Answers that tonic would not make, over a real connection.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tollgate::{
    LimitLayer, Tollgate,
    clock::ManualClock,
    error::{ErrorCode, Problem},
    head::RequestHead,
    identity::NewKey,
    limit::{MemoryLimits, Quota},
    meter::{CallOutcome, UsageEvent},
    plan::Plan,
    sink::MemorySink,
};
use tower::{Layer as _, service_fn};

use super::{Client, Grpc};
use crate::common::{Answer, Server, request, serve};

type TestBody = UnsyncBoxBody<Bytes, Infallible>;

const MESSAGE: Bytes = Bytes::from_static(b"\0\0\0\0\x03\x0a\x01x");

fn frames(trailers: Option<(&'static str, &'static str)>) -> TestBody {
    let trailers = trailers.map(|(name, value)| {
        let fields = [(
            name.parse().expect("a name"),
            HeaderValue::from_static(value),
        )];
        Frame::trailers(HeaderMap::from_iter(fields))
    });
    let frames = [Some(Frame::data(MESSAGE)), trailers].into_iter().flatten();
    StreamBody::new(tokio_stream::iter(frames.map(Ok))).boxed_unsync()
}

/// A frame of gRPC-Web's trailers.
fn web_trailers(block: &str) -> Vec<u8> {
    let mut frame = vec![0x80];
    frame.extend((block.len() as u32).to_be_bytes());
    frame.extend(block.as_bytes());
    frame
}

fn answer(request: &Request<Incoming>) -> Response<TestBody> {
    let mut response = Response::new(Empty::new().boxed_unsync());
    let asked = request.headers().get(CONTENT_TYPE).cloned();
    response
        .headers_mut()
        .extend(asked.map(|value| (CONTENT_TYPE, value)));
    match request.uri().path() {
        "/a.B/Fine" => *response.body_mut() = frames(Some(("grpc-status", "0"))),
        "/a.B/NoTrailers" => *response.body_mut() = frames(None),
        "/a.B/Full" => *response.body_mut() = Full::new(MESSAGE).boxed_unsync(),
        "/a.B/Empty" => {}
        "/a.B/OtherTrailers" => *response.body_mut() = frames(Some(("x-other", "0"))),
        "/a.B/NoNumber" => *response.body_mut() = frames(Some(("grpc-status", "fine"))),
        "/a.B/NoCode" => *response.body_mut() = frames(Some(("grpc-status", "17"))),
        "/a.B/TrailersOnly" => {
            response
                .headers_mut()
                .insert("grpc-status", HeaderValue::from(13));
        }
        "/a.B/Html" => {
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/html"));
            *response.body_mut() = Full::from("<p>hello").boxed_unsync();
        }
        "/a.B/Busy" => {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            *response.body_mut() = Full::from("canary of a proxy").boxed_unsync();
        }
        "/a.B/Json" => {
            *response.status_mut() = StatusCode::NOT_FOUND;
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(CONTENT_TYPE, json);
            *response.body_mut() = Full::from("{}").boxed_unsync();
        }
        "/a.B/Text" => {
            *response.status_mut() = StatusCode::BAD_REQUEST;
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            *response.body_mut() = Full::from("caf\u{e9}: 100%\nwrong").boxed_unsync();
        }
        "/test.Echo/Say" => {
            response = Problem::new(ErrorCode::Conflict)
                .detail("caf\u{e9}: 100%\nwrong")
                .into_response::<TestBody>(request.method())
                .map(|body| body.boxed_unsync());
        }
        "/a.B/WebFailed" => {
            let mut body = MESSAGE.to_vec();
            body.extend(web_trailers("grpc-status:14\r\n"));
            *response.body_mut() = Full::from(body).boxed_unsync();
        }
        "/a.B/WebText" => {
            // The message of MESSAGE and `grpc-status:0`.
            let body = "AAAAAAMKAXg=gAAAAA9ncnBjLXN0YXR1czowDQo=";
            *response.body_mut() = Full::from(body).boxed_unsync();
        }
        other => panic!("no such path: {other}"),
    }
    response
}

struct Raw {
    gate: Tollgate,
    sink: Arc<MemorySink>,
    server: Server,
    key: String,
}

impl Raw {
    async fn start() -> Self {
        let (sink, clock) = (Arc::new(MemorySink::new()), ManualClock::default());
        let gate = super::builder(&sink, &clock)
            .plans([Plan::new("free").rule(Quota::monthly(100))])
            .build()
            .expect("a legal gate");
        let new = NewKey::for_tenant("acme").plan("free");
        let issued = gate.keys().issue(new).await.expect("a key");
        let service = gate
            .layer()
            .layer(service_fn(|request: Request<Incoming>| async move {
                Ok::<_, Infallible>(answer(&request))
            }));
        Self {
            server: serve(service).await,
            key: issued.key.expose().to_owned(),
            gate,
            sink,
        }
    }

    fn request(&self, path: &str, media_type: &'static str) -> Request<Full<Bytes>> {
        let mut request = request("POST", path);
        let fields = request.headers_mut();
        fields.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        fields.insert("x-api-key", self.key.parse().expect("a field"));
        request
    }

    async fn call(&self, path: &str) -> Answer {
        let request = self.request(path, "application/grpc");
        self.server.send_http2(request).await
    }

    async fn last_event(&self, n_calls: u64) -> UsageEvent {
        let usage = self.gate.usage();
        crate::common::eventually(|| usage.counters().settled == n_calls).await;
        usage.flush().await;
        self.sink.events().pop().expect("an event")
    }
}

#[tokio::test]
async fn a_call_that_ends_without_a_status_has_failed_as_unknown_and_is_given_back() {
    for (path, outcome, status, left) in [
        ("/a.B/Fine", CallOutcome::Served, 0, "r=98"),
        ("/a.B/NoTrailers", CallOutcome::Failed, 2, "r=99"),
        ("/a.B/Full", CallOutcome::Failed, 2, "r=99"),
        ("/a.B/Empty", CallOutcome::Failed, 2, "r=99"),
        ("/a.B/OtherTrailers", CallOutcome::Failed, 2, "r=99"),
        ("/a.B/NoNumber", CallOutcome::Failed, 2, "r=99"),
        ("/a.B/NoCode", CallOutcome::Failed, 2, "r=99"),
        ("/a.B/Html", CallOutcome::Failed, 2, "r=99"),
        ("/a.B/TrailersOnly", CallOutcome::Failed, 13, "r=99"),
        ("/a.B/Busy", CallOutcome::Failed, 14, "r=99"),
        ("/a.B/Json", CallOutcome::Served, 12, "r=98"),
    ] {
        let raw = Raw::start().await;
        raw.call(path).await;
        let event = raw.last_event(1).await;
        assert_eq!(
            (event.outcome, event.grpc_status),
            (outcome, Some(status)),
            "{path}"
        );
        let next = raw.call("/a.B/Fine").await;
        assert!(next.header("ratelimit").contains(left), "{path}: {next:?}");
    }
}

#[tokio::test]
async fn a_limit_alone_gives_back_what_fails_by_its_trailers() {
    for (path, left) in [
        ("/a.B/Fine", "r=8"),
        ("/a.B/NoTrailers", "r=9"),
        ("/a.B/Empty", "r=9"),
    ] {
        let limits = LimitLayer::new(MemoryLimits::new(), [Quota::daily(10)]).expect("a rule");
        let service = limits
            .by(|_: &RequestHead<'_>| Some("everybody"))
            .layer(service_fn(|request: Request<Incoming>| async move {
                Ok::<_, Infallible>(answer(&request))
            }));
        let server = serve(service).await;
        let call = async |path| {
            let mut request = request("POST", path);
            let grpc = HeaderValue::from_static("application/grpc");
            request.headers_mut().insert(CONTENT_TYPE, grpc);
            server.send_http2(request).await
        };
        call(path).await;
        let next = call("/a.B/Fine").await;
        assert!(next.header("ratelimit").contains(left), "{path}: {next:?}");
    }
}

#[tokio::test]
async fn a_plain_error_becomes_an_answer_without_messages() {
    let raw = Raw::start().await;
    for (path, status, message) in [
        ("/a.B/Busy", "14", "Service unavailable"),
        ("/a.B/Json", "12", "Not found"),
        ("/a.B/Text", "3", "caf%C3%A9: 100%25%0Awrong"),
    ] {
        let answer = raw.call(path).await;
        assert_eq!(
            (answer.status, answer.header("grpc-status")),
            (StatusCode::OK, status)
        );
        assert_eq!(answer.header("grpc-message"), message);
        assert_eq!(answer.header("content-type"), "application/grpc");
        assert!(!answer.headers.contains_key("content-length"));
        assert!(answer.headers.contains_key("x-request-id"));
        assert!(answer.headers.contains_key("ratelimit"));
        assert!(answer.body.is_empty());
    }
}

#[tokio::test]
async fn the_stream_ends_with_the_header_fields() {
    let raw = Raw::start().await;
    let stream = TcpStream::connect(raw.server.addr)
        .await
        .expect("a connection");
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.expect("a handshake");
    tokio::spawn(connection);
    let mut request = request("POST", "http://test/a.B/Fine");
    let grpc = HeaderValue::from_static("application/grpc+proto");
    request.headers_mut().insert(CONTENT_TYPE, grpc);
    let response = sender.send_request(request).await.expect("an answer");
    assert_eq!(response.headers()["grpc-status"], "16");
    assert!(response.body().is_end_stream());
}

#[tokio::test]
async fn a_message_of_any_text_reaches_the_client() {
    let raw = Raw::start().await;
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", raw.server.addr));
    let channel = channel
        .expect("an address")
        .connect()
        .await
        .expect("a connection");
    let mut client = Client {
        grpc: Grpc::new(channel),
        key: Some(raw.key.clone()),
    };
    let status = client.say("hello").await.unwrap_err();
    assert_eq!(status.message(), "caf\u{e9}: 100%\nwrong");
}

#[tokio::test]
async fn grpc_web_is_told_in_the_last_frame_of_the_body() {
    let raw = Raw::start().await;
    let refused = async |media_type| {
        let mut request = raw.request("/a.B/Fine", media_type);
        request.headers_mut().remove("x-api-key");
        raw.server.send(request).await
    };
    let binary = refused("application/grpc-web+proto").await;
    assert_eq!(binary.status, 200);
    assert_eq!(binary.header("content-type"), "application/grpc-web");
    assert!(!binary.headers.contains_key("grpc-status"));
    assert!(binary.header("www-authenticate").contains("ApiKey"));
    let [0x80, a, b, c, d, block @ ..] = &binary.body[..] else {
        panic!("no trailers in {binary:?}")
    };
    assert_eq!(u32::from_be_bytes([*a, *b, *c, *d]) as usize, block.len());
    let block = std::str::from_utf8(block).expect("a text");
    assert!(
        block.starts_with("grpc-status:16\r\ngrpc-message:"),
        "{block}"
    );
    assert!(
        block.ends_with("\r\n") && !block.ends_with("\r\n\r\n"),
        "{block}"
    );

    let text = refused("application/grpc-web-text").await;
    assert_eq!(text.header("content-type"), "application/grpc-web-text");
    // The first twelve bytes of the same frame but for its length, in base64.
    assert!(text.text().starts_with("gAAA"), "{text:?}");
    assert_eq!(text.text().len(), binary.body.len().div_ceil(3) * 4);
}

#[tokio::test]
async fn grpc_web_is_metered_by_its_last_frame() {
    let raw = Raw::start().await;
    let failed = raw.request("/a.B/WebFailed", "application/grpc-web+proto");
    raw.server.send(failed).await;
    let event = raw.last_event(1).await;
    assert_eq!(
        (event.outcome, event.grpc_status),
        (CallOutcome::Failed, Some(14))
    );
    let fine = raw.request("/a.B/WebText", "application/grpc-web-text");
    let answer = raw.server.send(fine).await;
    assert!(answer.header("ratelimit").contains("r=99"), "{answer:?}");
    let event = raw.last_event(2).await;
    assert_eq!(
        (event.outcome, event.grpc_status),
        (CallOutcome::Served, Some(0))
    );
}

#[tokio::test]
async fn a_call_of_another_kind_has_no_grpc_status() {
    let raw = Raw::start().await;
    let plain = raw.request("/a.B/Busy", "application/json");
    let answer = raw.server.send(plain).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert_eq!(raw.last_event(1).await.grpc_status, None);
}
