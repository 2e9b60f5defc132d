//! The id of a request.

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request},
    routing::get,
};
use bytes::Bytes;
use http_body_util::Full;
use tollgate::{
    head::RequestHead,
    request_id::{RequestId, RequestIdLayer, TrustPeers},
};
use tower::{Layer, ServiceExt};

use crate::common::{request, serve};

fn with_id(id: &'static str) -> Request<Full<Bytes>> {
    let mut request = request("GET", "/id");
    let id = HeaderValue::from_static(id);
    request.headers_mut().insert("x-request-id", id);
    request
}

fn echo_id() -> Router {
    Router::new().route(
        "/id",
        get(|request: Request<Body>| async move {
            let field = request.headers()["x-request-id"].clone();
            let id = request.extensions().get::<RequestId>().cloned();
            assert_eq!(id.expect("an id").header_value(), &field);
            field.to_str().expect("a text").to_owned()
        }),
    )
}

#[tokio::test]
async fn an_id_from_a_stranger_is_replaced() {
    let server = serve(RequestIdLayer::new().layer(echo_id())).await;
    let first = server.send(with_id("spoof-1")).await;
    let second = server.send(with_id("spoof-1")).await;
    for answer in [&first, &second] {
        let id = answer.header("x-request-id");
        assert_eq!(answer.text(), id);
        assert_eq!(id.len(), 32, "{id}");
        assert!(id.bytes().all(|digit| digit.is_ascii_hexdigit()), "{id}");
    }
    assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
}

#[tokio::test]
async fn a_valid_id_from_a_trusted_peer_is_kept() {
    let here = TrustPeers::new(["127.0.0.0/8".parse().expect("a network")]);
    let server = serve(RequestIdLayer::new().trust(here).layer(echo_id())).await;
    let answer = server.send(with_id("edge:17_a.b-c")).await;
    assert_eq!(answer.header("x-request-id"), "edge:17_a.b-c");
    assert_eq!(answer.text(), "edge:17_a.b-c");
    let answer = server.send(with_id("has a space")).await;
    assert_ne!(answer.header("x-request-id"), "has a space");

    let elsewhere = TrustPeers::new(["10.0.0.0/8".parse().expect("a network")]);
    let server = serve(RequestIdLayer::new().trust(elsewhere).layer(echo_id())).await;
    let answer = server.send(with_id("edge-17")).await;
    assert_ne!(answer.header("x-request-id"), "edge-17");
}

#[tokio::test]
async fn an_id_sent_twice_or_in_foreign_characters_is_replaced() {
    let trusting = RequestIdLayer::new().trust(|_: &RequestHead<'_>| true);
    let server = serve(trusting.layer(echo_id())).await;
    for fields in [
        "x-request-id: a\r\nx-request-id: b",
        "x-request-id: a\r\nX-Request-ID: a",
        "x-request-id: \u{1b}[31m",
        "x-request-id: é",
        "x-request-id: ",
        "x-request-id: a\"b",
    ] {
        let sent = format!("GET /id HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{fields}\r\n\r\n");
        let answer = server.raw(sent.as_bytes()).await;
        // hyper refuses some of these itself; none may come back.
        if let Some((head, body)) = answer.split_once("\r\n\r\n")
            && head.starts_with("HTTP/1.1 200")
        {
            let id = body.lines().find(|line| line.len() == 32);
            assert!(id.is_some_and(|id| head.contains(id)), "{answer}");
        } else {
            assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        }
    }
}

#[tokio::test]
async fn an_id_that_an_outer_layer_gave_stays() {
    let service = RequestIdLayer::new().layer(echo_id());
    let mut request = Request::get("/id").body(Body::empty()).expect("valid");
    let given = RequestId::new(HeaderValue::from_static("from outside"));
    request.extensions_mut().insert(given);
    let response = service.oneshot(request).await.expect("infallible");
    assert_eq!(response.headers()["x-request-id"], "from outside");
}
