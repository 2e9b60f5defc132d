//! What of the service's own text becomes the detail.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};

use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::Full;
use serde_json::Value;
use tollgate::error::ProblemLayer;
use tower::{Layer, ServiceExt, service_fn};

use super::{app, assert_problem, body_of};
use crate::common::request;

#[tokio::test]
async fn what_axum_says_of_a_rejected_request_becomes_the_detail() {
    let server = app().await;
    let mut broken = request("POST", "/json");
    let json = HeaderValue::from_static("application/json");
    broken.headers_mut().insert(header::CONTENT_TYPE, json);
    *broken.body_mut() = Full::from("{\"a\": ");
    let answer = server.send(broken).await;
    assert_problem(&answer, 400, "bad_request");
    let detail = answer.json()["detail"].clone();
    let detail = detail.as_str().expect("a detail");
    assert!(detail.starts_with("Failed to parse"), "{detail}");

    let answer = server.send(request("POST", "/json")).await;
    assert_problem(&answer, 415, "unsupported_media_type");
}

#[tokio::test]
async fn a_long_text_is_no_detail() {
    let answer = app().await.get("/long-text").await;
    assert_problem(&answer, 400, "bad_request");
    assert_eq!(answer.json().get("detail"), None);
}

/// Waits once, then ends as it was told to; says beforehand how long it is.
struct SlowText {
    waited: bool,
    left: VecDeque<Result<&'static str, &'static str>>,
    says: SizeHint,
}

impl http_body::Body for SlowText {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        if !std::mem::replace(&mut self.waited, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let next = self.left.pop_front();
        Poll::Ready(
            next.map(|part| part.map(|text| Frame::data(Bytes::from_static(text.as_bytes())))),
        )
    }

    fn size_hint(&self) -> SizeHint {
        self.says
    }
}

async fn detail_of(says: SizeHint, parts: &[Result<&'static str, &'static str>]) -> Value {
    let parts: VecDeque<_> = parts.iter().copied().collect();
    let refusing = service_fn(move |_: Request<()>| {
        let body = SlowText {
            waited: false,
            left: parts.clone(),
            says,
        };
        let response = Response::builder()
            .status(StatusCode::BAD_REQUEST)
            .header(header::CONTENT_TYPE, "text/plain")
            .body(body);
        async { response }
    });
    let response = ProblemLayer::new()
        .layer(refusing)
        .oneshot(Request::new(()))
        .await
        .expect("valid");
    let problem: Value = serde_json::from_slice(&body_of(response).await).expect("json");
    assert_eq!(problem["code"], "bad_request");
    problem["detail"].clone()
}

#[tokio::test]
async fn only_a_whole_short_text_becomes_the_detail() {
    let says = SizeHint::with_exact;
    assert_eq!(
        detail_of(says(8), &[Ok(" no "), Ok("name ")]).await,
        "no name"
    );
    assert_eq!(
        detail_of(says(8), &[Ok("no "), Err("reset")]).await,
        Value::Null
    );
    assert_eq!(detail_of(says(0), &[]).await, Value::Null);
    assert_eq!(detail_of(says(2), &[Ok("\r\n")]).await, Value::Null);
    // One that never said how long it is could be without an end, one that lied already is too long.
    assert_eq!(
        detail_of(SizeHint::default(), &[Ok("no")]).await,
        Value::Null
    );
    let long: &'static str = Box::leak("x".repeat(1_025).into_boxed_str());
    assert_eq!(detail_of(says(8), &[Ok(long)]).await, Value::Null);
}
