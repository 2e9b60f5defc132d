//! Odd bytes, odd methods and odd clients, over real connections.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tollgate::{identity::Identity, limit::Concurrency, meter::CallOutcome, plan::Plan};
use tower::{Layer as _, service_fn};

use super::{Stand, TestBody, boxed, stand};
use crate::common::{self, Server, eventually, serve};

async fn answer(request: Request<Incoming>) -> Result<Response<TestBody>, Infallible> {
    let identity = request.extensions().get::<Identity>();
    let name = identity.map_or_else(String::new, |one| one.tenant().id().to_string());
    let mut response = Response::new(boxed(Full::from(name)));
    let path = request.uri().path().to_owned();
    match &*path {
        "/hang" => std::future::pending().await,
        "/upgrade" => {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert("connection", HeaderValue::from_static("upgrade"));
            headers.insert("upgrade", HeaderValue::from_static("echo"));
            *response.body_mut() = boxed(Empty::new());
            tokio::spawn(async move {
                let Ok(upgraded) = hyper::upgrade::on(request).await else {
                    return;
                };
                let mut stream = TokioIo::new(upgraded);
                let _ = stream.write_all(b"upgraded").await;
            });
        }
        "/read" if request.into_body().collect().await.is_err() => {
            *response.status_mut() = StatusCode::BAD_REQUEST;
        }
        _ => {}
    }
    Ok(response)
}

/// A gate with few slots, so that one that is lost is missed.
async fn server() -> (Stand, Server, String) {
    let stand = stand(|builder| builder.plans([Plan::new("free").rule(Concurrency::new(3))]));
    let key = stand.issue("acme").await;
    let server = serve(stand.gate.layer().layer(service_fn(answer))).await;
    (stand, server, key)
}

/// All slots are free and every call was written: three calls at once are served again.
async fn assert_sound(stand: &Stand, server: &Server, key: &str) {
    eventually(|| stand.gate.usage().counters().open == 0).await;
    let fine = async || {
        let mut request = common::request("GET", "/");
        request
            .headers_mut()
            .insert("x-api-key", key.parse().expect("a value"));
        server.send_http2(request).await
    };
    let answers = tokio::join!(fine(), fine(), fine());
    for answer in [answers.0, answers.1, answers.2] {
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "acme"));
    }
    eventually(|| stand.gate.usage().counters().open == 0).await;
    stand.assert_balanced().await;
}

fn status_of(answer: &str) -> u16 {
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.unwrap_or(0)
}

#[tokio::test]
async fn odd_bytes_are_refused_and_never_looked_up_or_believed() {
    let (stand, server, key) = server().await;
    let long = "x".repeat(64 * 1024);
    let many = |n: usize| (0..n).map(|n| format!("h{n}: v\r\n")).collect::<String>();
    let cases: Vec<(Vec<u8>, &[u16])> = vec![
        (format!("x-api-key: {key}\r\n").into(), &[200]),
        (format!("X-aPi-KeY:{key}  \r\n").into(), &[200]),
        (format!("authorization: bEARER {key}\r\n").into(), &[200]),
        (format!("authorization: Bearer  {key}\r\n").into(), &[200]),
        (format!("authorization: Bearer\t{key}\r\n").into(), &[401]),
        (format!("x-api-key: {long}\r\n").into(), &[401]),
        (
            format!("x-api-key: {key}\r\nx-other: {long}\r\n").into(),
            &[200],
        ),
        (format!("{}x-api-key: {key}\r\n", many(90)).into(), &[200]),
        (format!("{}x-api-key: {key}\r\n", many(300)).into(), &[431]),
        (format!("x-api-key: {key}\u{e4}\r\n").into(), &[401]),
        (
            [b"x-api-key: ".as_slice(), key.as_bytes(), b"\xff\r\n"].concat(),
            &[401],
        ),
        (format!("x-api-key: {key}\0\r\n").into(), &[400]),
        (format!("x-api-key: \r\n {key}\r\n").into(), &[400]),
        (format!("x-api-key : {key}\r\n").into(), &[400]),
        (
            format!("x-api-key: {key}\r\nX-API-KEY: {key}\r\n").into(),
            &[400],
        ),
        (
            format!("x-api-key: {key}\r\nauthorization: Bearer other\r\n").into(),
            &[400],
        ),
        (
            format!("x-api-key: {key}\r\nauthorization: Bearer {key}\r\n").into(),
            &[200],
        ),
        (format!("x-api-key: {key}, {key}\r\n").into(), &[400]),
        (format!("x-api-key: \"{key}\"\r\n").into(), &[401]),
        (format!("x-api-key: {key};a=b\r\n").into(), &[401]),
        (format!("x_api_key: {key}\r\n").into(), &[401]),
        (format!("api-key: {key}\r\n").into(), &[401]),
        (
            format!("x-api-key:\r\nauthorization: Bearer {key}\r\n").into(),
            &[400, 401],
        ),
        (format!("x-api-key: {key}\x1b[31m\r\n").into(), &[400, 401]),
        (
            format!("x-api-key: {key}\ncontent-length: 0\r\n").into(),
            &[200, 400],
        ),
        (
            format!("x-api-key: {key}\r\ncontent-length: 1\r\ncontent-length: 2\r\n").into(),
            &[400],
        ),
    ];
    for (fields, expected) in cases {
        let head = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n".as_slice();
        let answer = server.raw(&[head, &fields, b"\r\n"].concat()).await;
        let status = status_of(&answer);
        let shown = String::from_utf8_lossy(&fields);
        assert!(expected.contains(&status), "{status} for {shown:.200}");
        assert_eq!(status == 200, answer.ends_with("acme"), "{shown:.200}");
    }
    assert_sound(&stand, &server, &key).await;
}

#[tokio::test]
async fn the_same_bytes_over_http_2_get_the_same_answers() {
    let (stand, server, key) = server().await;
    let value = |bytes: &[u8]| HeaderValue::from_bytes(bytes).expect("a value");
    let cases: Vec<(Vec<(&str, HeaderValue)>, u16)> = vec![
        (vec![("x-api-key", value(key.as_bytes()))], 200),
        (
            vec![
                ("x-api-key", value(key.as_bytes())),
                ("x-api-key", value(key.as_bytes())),
            ],
            400,
        ),
        (
            vec![("x-api-key", value(format!("{key},{key}").as_bytes()))],
            400,
        ),
        (
            vec![("x-api-key", value(&[key.as_bytes(), b"\xff"].concat()))],
            401,
        ),
        (vec![("x-api-key", value(&[b'y'; 9_000]))], 401),
        (vec![("x_api_key", value(key.as_bytes()))], 401),
        (
            vec![
                ("x-api-key", value(key.as_bytes())),
                ("authorization", value(b"Bearer other")),
            ],
            400,
        ),
    ];
    for (fields, expected) in cases {
        let mut request = common::request("GET", "/");
        for (name, value) in &fields {
            request
                .headers_mut()
                .append(http::HeaderName::from_static(name), value.clone());
        }
        let answer = server.send_http2(request).await;
        assert_eq!(answer.status.as_u16(), expected, "{fields:?}");
    }
    assert_sound(&stand, &server, &key).await;
}

#[tokio::test]
async fn every_method_is_a_call_that_needs_a_key() {
    let (stand, server, key) = server().await;
    let targets = [
        ("GET", "/"),
        ("HEAD", "/"),
        ("POST", "/"),
        ("OPTIONS", "*"),
        ("OPTIONS", "/"),
        ("TRACE", "/"),
        ("CONNECT", "example.com:443"),
        ("PRI", "/"),
        ("get", "/"),
        ("X-VERY-LONG-METHOD-OF-A-CLIENT", "/"),
        ("GET", "http://example.com/"),
        ("GET", "//"),
    ];
    for (method, target) in targets {
        let without = format!("{method} {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let answer = server.raw(without.as_bytes()).await;
        assert_eq!(status_of(&answer), 401, "{method} {target}: {answer}");
        let with = format!(
            "{method} {target} HTTP/1.1\r\nhost: a\r\nx-api-key: {key}\r\nconnection: close\r\n\r\n"
        );
        let answer = server.raw(with.as_bytes()).await;
        assert_eq!(status_of(&answer), 200, "{method} {target}: {answer}");
    }
    eventually(|| stand.gate.usage().counters().open == 0).await;
    stand.gate.usage().flush().await;
    assert_eq!(stand.sink.len(), targets.len());
    let total = stand.gate.usage().counters().unidentified(401);
    assert_eq!(total, targets.len() as u64);
    // Nothing after the preface of another protocol is taken for a request of ours.
    let preface =
        format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET / HTTP/1.1\r\nx-api-key: {key}\r\n\r\n");
    server.raw(preface.as_bytes()).await;
    assert_sound(&stand, &server, &key).await;
}

#[tokio::test]
async fn pipelined_requests_are_each_judged_by_their_own_key() {
    let (stand, server, key) = server().await;
    let mut bytes = String::new();
    for n in 0..50 {
        bytes.push_str("GET / HTTP/1.1\r\nhost: a\r\n");
        if n % 2 == 0 {
            bytes.push_str(&format!("x-api-key: {key}\r\n"));
        }
        if n == 49 {
            bytes.push_str("connection: close\r\n");
        }
        bytes.push_str("\r\n");
    }
    let answer = server.raw(bytes.as_bytes()).await;
    let statuses: Vec<_> = answer
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| &answer[at + 9..at + 12])
        .collect();
    let expected: Vec<_> = (0..50)
        .map(|n| if n % 2 == 0 { "200" } else { "401" })
        .collect();
    assert_eq!(statuses, expected);
    assert_sound(&stand, &server, &key).await;
}

#[tokio::test]
async fn an_upgrade_is_one_call_and_reaches_the_service_with_a_key_only() {
    let (stand, server, key) = server().await;
    let ask = "GET /upgrade HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n";
    let refused = server
        .raw(format!("{ask}connection: close\r\n\r\n").as_bytes())
        .await;
    assert_eq!(status_of(&refused), 401);
    let answer = server
        .raw(format!("{ask}x-api-key: {key}\r\n\r\n").as_bytes())
        .await;
    assert_eq!(status_of(&answer), 101);
    assert!(answer.ends_with("upgraded"), "{answer}");
    eventually(|| stand.gate.usage().counters().settled == 1).await;
    assert_sound(&stand, &server, &key).await;
    assert_eq!(stand.sink.events()[0].outcome, CallOutcome::Served);
    assert_eq!(stand.sink.events()[0].status, 101);
}

#[tokio::test]
async fn a_thousand_streams_that_are_reset_at_once_leave_nothing_behind() {
    let (stand, server, key) = server().await;
    let mut n_sent = 0;
    while n_sent < 1_000 {
        let stream = TcpStream::connect(server.addr).await.expect("a connection");
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.expect("a handshake");
        let connection = tokio::spawn(connection);
        // The server ends a connection that resets too much; then comes the next one.
        while n_sent < 1_000 && sender.ready().await.is_ok() {
            let path = if n_sent % 2 == 0 { "/hang" } else { "/" };
            let request = Request::get(format!("http://a{path}"))
                .header("x-api-key", &key)
                .body(Empty::<Bytes>::new())
                .expect("a request");
            let answer = sender.send_request(request);
            n_sent += 1;
            // Some are reset before they are sent, some while they are served.
            if n_sent % 3 == 0 {
                let _ = tokio::time::timeout(Duration::from_millis(1), answer).await;
            }
        }
        connection.abort();
    }
    assert_sound(&stand, &server, &key).await;
    let counters = stand.gate.usage().counters();
    assert!(counters.opened <= 1_003, "{counters:?}");
}

#[tokio::test]
async fn a_client_that_never_finishes_its_request_holds_its_slot_until_it_leaves() {
    let (stand, server, key) = server().await;
    let head = format!(
        "POST /read HTTP/1.1\r\nhost: a\r\nx-api-key: {key}\r\ncontent-length: 100\r\n\r\n"
    );
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(server.addr).await.expect("a connection");
        stream.write_all(head.as_bytes()).await.expect("written");
        stream.write_all(b"a").await.expect("written");
        clients.push(stream);
    }
    eventually(|| stand.gate.usage().counters().open == 3).await;
    let mut request = common::request("GET", "/");
    request
        .headers_mut()
        .insert("x-api-key", key.parse().expect("a value"));
    assert_eq!(server.send(request).await.status, 429);
    // One finishes, one gives up half way, one resets.
    let mut finishes = clients.remove(0);
    finishes.write_all(&[b'a'; 99]).await.expect("written");
    let mut answer = [0; 12];
    finishes.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200");
    clients[0].shutdown().await.expect("half closed");
    drop(clients);
    assert_sound(&stand, &server, &key).await;
}
