//! Connections that leave HTTP: the call ends when its task lets go of it.

use std::{convert::Infallible, time::Duration};

use axum::{
    Router,
    extract::ws::{Message as AxumMessage, WebSocketUpgrade},
    routing::get,
};
use bytes::Bytes;
use futures_util::SinkExt as _;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};
use tokio_stream::StreamExt as _;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message, client::IntoClientRequest};
use tollgate::{
    id::TenantId,
    limit::{Concurrency, LimitLayer, MemoryLimits},
    meter::{CallOutcome, Meter, MeterHold},
    prelude::*,
};
use tower::{Layer as _, Service as _, ServiceExt as _, service_fn};

use super::stand::{
    ALL, BYTES, CALLS, Left, RATE, RESERVED, SLOTS, TOKENS, http2, meter_of, stand,
};
use crate::common::{Server, eventually, serve};

/// Echoes what comes over an upgraded connection, and meters it.
async fn echo(request: Request<Incoming>, hold: MeterHold) {
    let Ok(upgraded) = hyper::upgrade::on(request).await else {
        return;
    };
    let mut stream = TokioIo::new(upgraded);
    let mut some = [0; 64];
    while let Ok(n @ 1..) = stream.read(&mut some).await {
        assert!(!some.starts_with(b"panic"), "the task panicked on purpose");
        hold.add_received_bytes(n as u64);
        hold.add("tokens", 7);
        if stream.write_all(&some[..n]).await.is_err() {
            return;
        }
        hold.add_sent_bytes(n as u64);
    }
}

async fn upgrade(request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
    let mut response = Response::new(Empty::new());
    let meter = meter_of(&request);
    let path = request.uri().path().to_owned();
    let is_connect = request.method() == http::Method::CONNECT;
    let hold = meter.hold();
    tokio::spawn(echo(request, hold));
    if path == "/declined" {
        return Ok(response);
    }
    if path == "/hang" {
        std::future::pending::<()>().await;
    }
    if !is_connect {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert("connection", HeaderValue::from_static("upgrade"));
        headers.insert("upgrade", HeaderValue::from_static("echo"));
    }
    Ok(response)
}

/// Asks to leave HTTP and reads the head of the answer.
async fn ask(server: &Server, key: &str, path: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(server.addr).await.expect("a connection");
    let head = format!(
        "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\nx-api-key: {key}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.expect("a byte"));
    }
    (stream, String::from_utf8(answer).expect("a text"))
}

#[tokio::test]
async fn an_upgraded_connection_holds_its_call_its_charge_and_its_slot() {
    let stand = stand(|builder| builder).await;
    let server = stand.serve(service_fn(upgrade)).await;
    let (mut stream, head) = ask(&server, &stand.key, "/").await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    for _ in 0..3 {
        stream.write_all(b"ten bytes.").await.expect("written");
        stream.read_exact(&mut [0; 10]).await.expect("an echo");
    }
    let open = stand.gate.usage().counters();
    assert_eq!((open.opened, open.open), (1, 1));
    assert_eq!(
        stand.left().await,
        Left {
            slots: SLOTS - 1,
            calls: CALLS - 1,
            rate: RATE - 1,
            tokens: TOKENS - RESERVED,
            bytes: BYTES,
        }
    );
    stand.clock.advance(Duration::from_secs(90));
    drop(stream);
    // The probe was a call of its own.
    let event = stand.events(2).await.remove(1);
    assert_eq!((event.outcome, event.status), (CallOutcome::Served, 101));
    assert_eq!((event.request_bytes, event.response_bytes), (30, 30));
    assert_eq!(event.quantities["tokens"], 21);
    assert_eq!(event.latency_micros, 90_000_000);
    assert_eq!(
        stand.left().await,
        Left {
            slots: SLOTS,
            calls: CALLS - 2,
            // A minute and a half has brought some of the rate back.
            rate: RATE,
            tokens: TOKENS - 21,
            bytes: BYTES - 30,
        }
    );
}

#[tokio::test]
async fn an_upgrade_that_never_completes_settles() {
    // The service answers 200, or the client leaves before it answers, or at once after.
    for path in ["/declined", "/hang", "/"] {
        let stand = stand(|builder| builder).await;
        let server = stand.serve(service_fn(upgrade)).await;
        if path == "/hang" {
            let stream = stand.raw(&server, path).await;
            eventually(|| stand.gate.usage().counters().open == 1).await;
            drop(stream);
        } else {
            drop(ask(&server, &stand.key, path).await);
        }
        let event = stand.events(1).await.remove(0);
        let outcome = match path {
            "/hang" => (CallOutcome::Aborted, 499),
            "/declined" => (CallOutcome::Served, 200),
            _ => (CallOutcome::Served, 101),
        };
        assert_eq!((event.outcome, event.status), outcome, "{path}");
        let left = stand.left().await;
        assert_eq!((left.slots, left.tokens), (SLOTS, TOKENS), "{path}");
    }
}

#[tokio::test]
async fn a_task_that_panics_ends_its_call() {
    let stand = stand(|builder| builder).await;
    let server = stand.serve(service_fn(upgrade)).await;
    let (mut stream, _) = ask(&server, &stand.key, "/").await;
    stream.write_all(b"panic").await.expect("written");
    let event = stand.events(1).await.remove(0);
    assert_eq!((event.outcome, event.status), (CallOutcome::Panicked, 101));
    assert_eq!(stand.left().await.slots, SLOTS);
}

#[tokio::test]
async fn connect_over_http2_is_held_as_an_upgrade_is() {
    let stand = stand(|builder| builder).await;
    let server = stand.serve(service_fn(upgrade)).await;
    let mut sender = http2(&server).await;
    let request = Request::connect("test:80")
        .header("x-api-key", &stand.key)
        .body(Empty::new())
        .expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    assert_eq!(response.status(), 200);
    let upgraded = hyper::upgrade::on(response).await.expect("a connection");
    let mut stream = TokioIo::new(upgraded);
    stream.write_all(b"ten bytes.").await.expect("written");
    stream.read_exact(&mut [0; 10]).await.expect("an echo");
    assert_eq!(stand.gate.usage().counters().open, 1);
    drop(stream);
    let event = stand.events(1).await.remove(0);
    assert_eq!((event.outcome, event.status), (CallOutcome::Served, 200));
    assert_eq!((event.request_bytes, event.response_bytes), (10, 10));
    assert_eq!(event.quantities["tokens"], 7);
    assert_eq!(stand.left().await.slots, SLOTS);
}

fn chat() -> Router {
    async fn serve_socket(meter: Meter, upgrade: WebSocketUpgrade) -> axum::response::Response {
        let hold = meter.hold().count_millis("connection_ms");
        upgrade.on_upgrade(move |mut socket| async move {
            while let Some(Ok(AxumMessage::Text(text))) = socket.recv().await {
                hold.add("tokens", text.len() as u64);
                if socket.send(AxumMessage::Text(text)).await.is_err() {
                    return;
                }
            }
        })
    }
    Router::new().route("/ws", get(serve_socket))
}

type Socket = tokio_tungstenite::WebSocketStream<TcpStream>;

async fn connect(server: &Server, key: &str) -> Result<Socket, SocketError> {
    let target = format!("ws://{}/ws", server.addr);
    let mut request = target.into_client_request().expect("a request");
    let key = key.parse().expect("a header value");
    request.headers_mut().insert("x-api-key", key);
    let stream = TcpStream::connect(server.addr).await.expect("a connection");
    let (socket, _) = tokio_tungstenite::client_async(request, stream).await?;
    Ok(socket)
}

#[tokio::test]
async fn a_web_socket_meters_messages_and_time_until_it_is_closed() {
    let stand = stand(|builder| builder).await;
    let server = serve(chat().layer(stand.layer())).await;
    let mut socket = connect(&server, &stand.key).await.expect("a socket");
    for text in ["one", "two", "three"] {
        socket.send(Message::text(text)).await.expect("sent");
        let echo = socket.next().await.expect("a message").expect("a message");
        assert_eq!(echo, Message::text(text));
    }
    stand.clock.advance(Duration::from_millis(2_500));
    socket.close(None).await.expect("closed");
    let event = stand.events(1).await.remove(0);
    assert_eq!((event.outcome, event.status), (CallOutcome::Served, 101));
    assert_eq!(event.quantities["tokens"], 11);
    assert_eq!(event.quantities["connection_ms"], 2_500);
    assert_eq!(&*event.route, "/ws");
    let left = stand.left().await;
    assert_eq!((left.slots, left.tokens), (SLOTS, TOKENS - 11));
}

#[tokio::test]
async fn each_open_web_socket_takes_a_slot() {
    let stand = stand(|builder| builder).await;
    let server = serve(chat().layer(stand.layer())).await;
    let mut sockets = Vec::new();
    for _ in 0..SLOTS {
        sockets.push(connect(&server, &stand.key).await.expect("a socket"));
    }
    let Err(SocketError::Http(refused)) = connect(&server, &stand.key).await else {
        panic!("more sockets than slots")
    };
    assert_eq!(refused.status(), 429);
    sockets.truncate(3);
    eventually(|| stand.gate.usage().counters().open == 3).await;
    let again = connect(&server, &stand.key).await;
    again.expect("a slot that was given back");
}

#[tokio::test]
async fn a_tenant_that_may_only_read_may_not_leave_http() {
    let stand = stand(|builder| builder).await;
    let server = serve(chat().layer(stand.layer())).await;
    let acme = TenantId::new("acme").expect("an id");
    let read_only = AccessState::ReadOnly { suspend_at: None };
    let changed = stand.gate.tenants().set_access(&acme, read_only).await;
    changed.expect("a change");
    let Err(SocketError::Http(refused)) = connect(&server, &stand.key).await else {
        panic!("a socket of a tenant that may only read")
    };
    assert_eq!(refused.status(), 402);

    // Not over HTTP/2 either, nor where the service says that everything only reads.
    let lenient = super::stand::stand(|builder| builder.reads(|_: &RequestHead<'_>| true)).await;
    let changed = lenient.gate.tenants().set_access(&acme, read_only).await;
    changed.expect("a change");
    let server = lenient.serve(service_fn(upgrade)).await;
    let request = Request::connect("test:80")
        .header("x-api-key", &lenient.key)
        .body(Empty::new())
        .expect("a request");
    let response = http2(&server).await.send_request(request).await;
    assert_eq!(response.expect("an answer").status(), 402);
}

#[tokio::test]
async fn the_last_of_several_holds_ends_the_call_and_a_late_one_holds_nothing() {
    let stand = stand(|builder| builder).await;
    let (holds_to, mut holds) = mpsc::unbounded_channel();
    let service = stand
        .layer()
        .layer(service_fn(move |request: Request<Empty<Bytes>>| {
            let meter = meter_of(&request);
            let _ = holds_to.send((meter.hold(), meter.hold(), meter));
            async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
        }));
    drop(service.oneshot(stand.get("/")).await);
    let (one, two, meter) = holds.recv().await.expect("holds");
    assert!(one.is_live() && two.is_live());
    drop(one);
    let third = meter.hold();
    assert!(third.is_live());
    drop(two);
    assert_eq!(stand.gate.usage().counters().open, 1);
    third.add("tokens", 5);
    drop(third);
    let late = meter.hold();
    assert!(!late.is_live());
    late.add("tokens", 100);
    late.add_sent_bytes(100);
    drop(late);
    let event = stand.events(1).await.remove(0);
    assert_eq!((event.quantities["tokens"], event.response_bytes), (5, 0));
    assert_eq!(stand.left().await.slots, ALL.slots);
}

#[tokio::test]
async fn a_limit_layer_alone_keeps_its_slot_while_the_call_is_held() {
    let layer = LimitLayer::new(MemoryLimits::new(), [Concurrency::new(1)]).expect("a layer");
    let (holds_to, mut holds) = mpsc::unbounded_channel();
    let mut service = layer.layer(service_fn(move |request: Request<()>| {
        let _ = holds_to.send(meter_of(&request).hold());
        async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
    }));
    let mut call = async || {
        let response = service.call(Request::new(())).await;
        response.expect("infallible").status().as_u16()
    };
    assert_eq!(call().await, 200);
    assert_eq!(call().await, 429);
    drop(holds.recv().await);
    assert_eq!(call().await, 200);
}
