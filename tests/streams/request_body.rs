//! Request bodies that are counted as they are read.

use axum::{Router, body::Body, extract::DefaultBodyLimit, routing::post};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_stream::StreamExt as _;
use tollgate::meter::{CallOutcome, CountRequestBodyLayer};

use super::stand::{ALL, BYTES, Stand, stand};
use crate::common::{Server, serve};

async fn read_all(body: axum::body::Bytes) -> String {
    body.len().to_string()
}

/// Reads the first ten bytes or more.
async fn read_some(body: Body) -> &'static str {
    let mut stream = body.into_data_stream();
    let mut n = 0;
    while n < 10 {
        let Some(Ok(data)) = stream.next().await else {
            break;
        };
        n += data.len();
    }
    "enough"
}

async fn counting(stand: &Stand) -> Server {
    let app = Router::new()
        .route("/all", post(read_all))
        .route("/some", post(read_some))
        .route("/none", post(async || "none"))
        .layer(DefaultBodyLimit::disable())
        .layer(CountRequestBodyLayer::new())
        // A second one counts nothing twice.
        .layer(CountRequestBodyLayer::new())
        .layer(stand.layer());
    serve(app).await
}

/// Sends a request in pieces and reads the status.
async fn send(stand: &Stand, server: &Server, path: &str, framing: &str, pieces: &[&str]) -> u16 {
    let mut stream = tokio::net::TcpStream::connect(server.addr)
        .await
        .expect("a connection");
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\nx-api-key: {}\r\n{framing}\r\nconnection: close\r\n\r\n",
        stand.key
    );
    stream.write_all(head.as_bytes()).await.expect("written");
    for piece in pieces {
        stream.write_all(piece.as_bytes()).await.expect("written");
        stream.flush().await.expect("flushed");
    }
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.expect("a status");
    let status = std::str::from_utf8(&status[9..]).expect("a text");
    status.parse().expect("a number")
}

#[tokio::test]
async fn a_chunked_body_is_counted_and_its_limit_is_charged_what_was_read() {
    let stand = stand(|builder| builder).await;
    let server = counting(&stand).await;
    let pieces = ["a\r\nten bytes.\r\n", "7\r\nsix", "teen\r\n0\r\n\r\n"];
    let status = send(
        &stand,
        &server,
        "/all",
        "transfer-encoding: chunked",
        &pieces,
    )
    .await;
    assert_eq!(status, 200);
    let event = stand.events(1).await.remove(0);
    assert_eq!(event.request_bytes, 17);
    assert_eq!(stand.left().await.bytes, BYTES - 17);
}

#[tokio::test]
async fn a_body_that_is_not_read_to_its_end_is_charged_what_was_read() {
    for (path, read) in [("/all", 30), ("/none", 0)] {
        let stand = stand(|builder| builder).await;
        let server = counting(&stand).await;
        let body = "ten bytes.".repeat(3);
        let status = send(&stand, &server, path, "content-length: 30", &[&body]).await;
        assert_eq!(status, 200);
        let event = stand.events(1).await.remove(0);
        assert_eq!(event.outcome, CallOutcome::Served);
        assert_eq!(event.request_bytes, read, "{path}");
        assert_eq!(stand.left().await.bytes, BYTES - read, "{path}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_it_sends_keeps_its_charge() {
    let stand = stand(|builder| builder).await;
    let server = counting(&stand).await;
    let mut stream = tokio::net::TcpStream::connect(server.addr)
        .await
        .expect("a connection");
    let head = format!(
        "POST /all HTTP/1.1\r\nhost: a\r\nx-api-key: {}\r\ncontent-length: 1000\r\n\r\nsome",
        stand.key
    );
    stream.write_all(head.as_bytes()).await.expect("written");
    crate::common::eventually(|| stand.gate.usage().counters().open == 1).await;
    drop(stream);
    let event = stand.events(1).await.remove(0);
    // axum answers 400 to a body that broke, which nobody reads.
    assert!(event.request_bytes <= 4, "{event:?}");
    let left = stand.left().await;
    assert_eq!(left.slots, ALL.slots);
    if event.outcome == CallOutcome::Aborted {
        assert_eq!(left.bytes, BYTES - 1000);
    }
}

#[tokio::test]
async fn without_the_layer_the_content_length_is_what_counts() {
    let stand = stand(|builder| builder).await;
    let app = Router::new()
        .route("/none", post(async || "none"))
        .layer(stand.layer());
    let server = serve(app).await;
    let status = send(&stand, &server, "/none", "content-length: 4", &["four"]).await;
    assert_eq!(status, 200);
    let event = stand.events(1).await.remove(0);
    assert_eq!(event.request_bytes, 4);
    assert_eq!(stand.left().await.bytes, BYTES - 4);
}
