//! What must not leave the service.

use std::{
    convert::Infallible,
    io::Write,
    sync::{Arc, Mutex},
};

use axum::http::{Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::Full;
use tollgate::error::catch_panic;
use tower::{Layer, ServiceExt, service_fn};

use super::{CANARY, app, assert_problem};
use crate::common::request;

#[tokio::test]
async fn a_failing_service_gives_nothing_of_its_inside_away() {
    let server = app().await;
    for path in ["/fail", "/panic"] {
        let answer = server.get(path).await;
        assert_problem(&answer, 500, "internal");
        assert!(!answer.text().contains(CANARY), "{}", answer.text());
        assert!(!answer.text().contains("10.1.2.3"), "{}", answer.text());
        for value in answer.headers.values() {
            assert!(!value.as_bytes().windows(8).any(|part| part == b"10.1.2.3"));
        }
        assert_eq!(answer.json().get("detail"), None);
    }
}

/// Collects what the subscriber writes.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("unpoisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_panic_is_logged_in_one_line_without_the_request() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let service = catch_panic().layer(service_fn(|_: Request<Full<Bytes>>| async {
        if true {
            panic!("one\ntwo\u{1b}[31m\u{2028}three");
        }
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    }));
    let secret = request("GET", "/pay?card=4242");
    let response = service.oneshot(secret).await.expect("infallible");
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let log = String::from_utf8(log.0.lock().expect("unpoisoned").clone()).expect("a text");
    assert_eq!(log.lines().count(), 1, "{log:?}");
    assert!(log.contains("ERROR tollgate::panic"), "{log:?}");
    assert!(log.contains(r"one\ntwo\u{1b}[31m\u{2028}three"), "{log:?}");
    assert!(!log.contains("4242"), "{log:?}");
}

#[tokio::test]
async fn the_connection_survives_a_panic() {
    let server = app().await;
    let both = b"GET /panic HTTP/1.1\r\nhost: a\r\n\r\nGET /get HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answers = server.raw(both).await;
    assert!(answers.starts_with("HTTP/1.1 500 "), "{answers}");
    assert!(answers.contains("HTTP/1.1 200 OK"), "{answers}");
}
