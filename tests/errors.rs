//! Every error leaves in one form.

mod codes;
mod details;
mod inside;
mod layer;
mod render;
mod request_id;

use axum::{
    Json, Router,
    extract::DefaultBodyLimit,
    http::{HeaderValue, Response, StatusCode, header},
    routing::{get, post},
};
use bytes::Bytes;
use serde_json::{Value, json};
use tollgate::{
    error::{DEFAULT_TYPE_BASE, ErrorCode, Problem, ProblemLayer, catch_panic},
    request_id::RequestIdLayer,
};
use tower::ServiceBuilder;

use crate::common::{Answer, serve};

/// A word that stands for what must not leave the service.
const CANARY: &str = "redis://10.1.2.3:6379";

async fn body_of<B>(response: Response<B>) -> Bytes
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    use http_body_util::BodyExt as _;
    response
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes()
}

fn router() -> Router {
    Router::new()
        .route("/get", get(|| async { "fine" }))
        .route(
            "/json",
            post(|Json(document): Json<Value>| async move { Json(document) }),
        )
        .route(
            "/small",
            post(|body: Bytes| async move { body }).layer(DefaultBodyLimit::max(4)),
        )
        .route(
            "/fail",
            get(|| async { (StatusCode::INTERNAL_SERVER_ERROR, CANARY) }),
        )
        .route("/bad-gateway", get(|| async { StatusCode::BAD_GATEWAY }))
        .route(
            "/panic",
            get(|| async {
                if true {
                    panic!("{CANARY} is gone");
                }
            }),
        )
        .route(
            "/own-json",
            get(|| async {
                let own = Json(json!({"error": "mine"}));
                (StatusCode::UNPROCESSABLE_ENTITY, own)
            }),
        )
        .route(
            "/html",
            get(|| async {
                let page = "<h1>Not here</h1>";
                let fields = [
                    (header::CONTENT_TYPE, "text/html; charset=utf-8"),
                    (header::ETAG, "\"page\""),
                    (header::CONTENT_LANGUAGE, "en"),
                    (header::RETRY_AFTER, "7"),
                    (header::WWW_AUTHENTICATE, "Basic realm=\"x\""),
                    (header::VARY, "accept"),
                    (header::SET_COOKIE, "a=b"),
                    (header::CACHE_CONTROL, "max-age=5"),
                ];
                (StatusCode::UNAUTHORIZED, fields, page)
            }),
        )
        .route(
            "/problem",
            get(|| async {
                Problem::new(ErrorCode::Conflict)
                    .detail("the widget has changed")
                    .with("widget", 7)
                    .header(header::RETRY_AFTER, HeaderValue::from_static("3"))
            }),
        )
        .route(
            "/text",
            get(|| async { (StatusCode::BAD_REQUEST, "no name") }),
        )
        .route(
            "/long-text",
            get(|| async { (StatusCode::BAD_REQUEST, "x".repeat(1_025)) }),
        )
}

async fn app() -> crate::common::Server {
    let stack = ServiceBuilder::new()
        .layer(RequestIdLayer::new())
        .layer(ProblemLayer::new())
        .layer(catch_panic());
    serve(stack.service(router())).await
}

fn assert_problem(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let problem = answer.json();
    assert_eq!(problem["status"], status);
    assert_eq!(problem["code"], code);
    assert_eq!(problem["type"], format!("{DEFAULT_TYPE_BASE}{code}"));
    assert_eq!(problem["instance"], answer.header("x-request-id"));
}
