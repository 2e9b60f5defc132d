//! Which answers become problems, and what of them stays.

use std::convert::Infallible;

use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::Full;
use tollgate::{body::ResponseBody, error::ProblemLayer, request_id::RequestIdLayer};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};
use tower_http::cors::CorsLayer;

use super::{app, assert_problem, body_of, router};
use crate::common::{request, serve};

#[tokio::test]
async fn the_405_of_a_router_keeps_allow() {
    let server = app().await;
    let answer = server.send(request("POST", "/get")).await;
    assert_problem(&answer, 405, "method_not_allowed");
    assert_eq!(answer.header("allow"), "GET,HEAD");
    assert_eq!(answer.header("cache-control"), "no-store");
}

#[tokio::test]
async fn a_404_a_413_and_a_bare_502_become_problems_over_http_1_and_2() {
    let server = app().await;
    assert_problem(&server.get("/nowhere").await, 404, "not_found");
    assert_problem(&server.get("/bad-gateway").await, 502, "upstream_error");
    let mut large = request("POST", "/small");
    *large.body_mut() = Full::from("12345");
    let answer = server.send(large.clone()).await;
    assert_problem(&answer, 413, "payload_too_large");
    let answer = server.send_http2(large).await;
    assert_problem(&answer, 413, "payload_too_large");
    let answer = server.send_http2(request("GET", "/nowhere")).await;
    assert_problem(&answer, 404, "not_found");
}

#[tokio::test]
async fn a_service_is_called_only_when_it_is_ready() {
    // `ConcurrencyLimit` panics when it is called without having been ready.
    let stack = ServiceBuilder::new()
        .layer(RequestIdLayer::new())
        .layer(ProblemLayer::new())
        .layer(ConcurrencyLimitLayer::new(1));
    let mut service = stack.service(service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new(String::new()))
    }));
    for _ in 0..3 {
        let ready = service.ready().await.expect("infallible");
        let response = ready.call(Request::new(())).await.expect("infallible");
        assert_eq!(response.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn json_of_the_service_passes_untouched() {
    let answer = app().await.get("/own-json").await;
    assert_eq!(answer.status, 422);
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.text(), r#"{"error":"mine"}"#);
    assert!(!answer.headers.contains_key("cache-control"));
}

#[tokio::test]
async fn what_describes_the_old_body_goes_and_the_rest_stays() {
    let answer = app().await.get("/html").await;
    assert_problem(&answer, 401, "unauthorized");
    assert!(!answer.text().contains("Not here"));
    for gone in ["etag", "content-language"] {
        assert!(!answer.headers.contains_key(gone), "{gone}");
    }
    assert_eq!(answer.header("retry-after"), "7");
    assert_eq!(answer.header("www-authenticate"), "Basic realm=\"x\"");
    assert_eq!(answer.header("vary"), "accept");
    assert_eq!(answer.header("set-cookie"), "a=b");
    assert_eq!(answer.header("cache-control"), "max-age=5");
    let length: usize = answer
        .header("content-length")
        .parse()
        .expect("a length in digits");
    assert_eq!(length, answer.body.len());
}

#[tokio::test]
async fn cors_fields_stay_on_an_error() {
    let stack = ServiceBuilder::new()
        .layer(ProblemLayer::new())
        .layer(CorsLayer::permissive());
    let server = serve(stack.service(router())).await;
    let mut cross = request("GET", "/fail");
    let origin = HeaderValue::from_static("https://app.example");
    cross.headers_mut().insert(header::ORIGIN, origin);
    let answer = server.send(cross).await;
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    assert_eq!(answer.json()["code"], "internal");
}

#[tokio::test]
async fn the_answer_to_head_has_the_fields_of_get_and_no_body() {
    let server = app().await;
    for path in ["/nowhere", "/fail", "/html", "/problem"] {
        let get = server.get(path).await;
        let head = server.send(request("HEAD", path)).await;
        assert_eq!(head.status, get.status, "{path}");
        assert!(head.body.is_empty(), "{path}");
        for field in ["content-type", "content-length"] {
            assert_eq!(head.header(field), get.header(field), "{path} {field}");
        }
    }
    // What a GET would be told is not known here, so its length must not be claimed.
    let get = server.get("/text").await;
    assert_eq!(get.json()["detail"], "no name");
    let head = server.send(request("HEAD", "/text")).await;
    assert_eq!(head.header("content-type"), "application/problem+json");
    assert!(!head.headers.contains_key("content-length"));
    // Read the bytes themselves: a client drops a body that should not be there.
    let answer = server
        .raw(b"HEAD /fail HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await;
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_problem_from_a_handler_gets_the_request_id_and_keeps_its_fields() {
    let answer = app().await.get("/problem").await;
    assert_problem(&answer, 409, "conflict");
    assert_eq!(answer.header("retry-after"), "3");
    assert_eq!(answer.json()["detail"], "the widget has changed");
    assert_eq!(answer.json()["widget"], 7);
}

#[tokio::test]
async fn a_call_of_grpc_is_answered_in_its_own_form() {
    let service = ProblemLayer::new().layer(service_fn(|_: Request<()>| async {
        let mut response = Response::new("canary of a backend".to_owned());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        Ok::<_, Infallible>(response)
    }));
    let call = Request::post("/pkg.Service/Method")
        .header(header::CONTENT_TYPE, "application/grpc")
        .body(())
        .expect("valid");
    let response = service.oneshot(call).await.expect("infallible");
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["grpc-status"], "14");
    assert_eq!(body_of(response).await, "");
}

#[tokio::test]
async fn success_passes_untouched() {
    let answer = app().await.get("/get").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text(), "fine");
    assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
    assert!(!answer.headers.contains_key("cache-control"));
}

#[tokio::test]
async fn layers_stack_on_a_body_of_any_type() {
    let service = ServiceBuilder::new()
        .layer(ProblemLayer::new())
        .layer(ProblemLayer::new())
        .service(service_fn(|_: Request<()>| async {
            Ok::<_, Infallible>(Response::new(ResponseBody::<Full<Bytes>>::full("twice")))
        }));
    let response = service.oneshot(Request::new(())).await.expect("infallible");
    assert_eq!(body_of(response).await, "twice");
}
