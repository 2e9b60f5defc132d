//! Other forms than that of RFC 9457.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderValue, Request, StatusCode, header},
    response::IntoResponse,
};
use serde_json::{Value, json};
use tollgate::{
    error::{ErrorCode, ErrorContext, Problem, ProblemJson, ProblemLayer, Rendered, catch_panic},
    request_id::RequestIdLayer,
};
use tower::{Layer, ServiceBuilder, ServiceExt};

use super::{body_of, router};
use crate::common::{request, serve};

#[tokio::test]
async fn a_hook_renders_every_error() {
    let hook = |problem: &Problem, context: &ErrorContext<'_>| {
        Rendered::json(&json!({
            "error": problem.code().as_str(),
            "id": context.request_id(),
            "wants": context.accept().and_then(|accept| accept.to_str().ok()),
        }))
    };
    let stack = ServiceBuilder::new()
        .layer(RequestIdLayer::new())
        .layer(ProblemLayer::new().render(hook))
        .layer(catch_panic());
    let server = serve(stack.service(router())).await;
    for (path, code) in [
        ("/problem", "conflict"),
        ("/fail", "internal"),
        ("/panic", "internal"),
        ("/nowhere", "not_found"),
    ] {
        let mut asked = request("GET", path);
        let accept = HeaderValue::from_static("text/html");
        asked.headers_mut().insert(header::ACCEPT, accept);
        let answer = server.send(asked).await;
        assert_eq!(answer.header("content-type"), "application/json");
        let expected =
            json!({"error": code, "id": answer.header("x-request-id"), "wants": "text/html"});
        assert_eq!(answer.json(), expected);
    }
}

#[tokio::test]
async fn the_outermost_layer_decides_the_form_and_types_may_point_elsewhere() {
    let own = ProblemJson::new().type_base("https://api.example/errors/");
    let shared: Arc<dyn tollgate::error::RenderError> = Arc::new(own);
    let inner = ProblemLayer::new();
    let outer = ProblemLayer::shared(shared);
    let service = ServiceBuilder::new().layer(outer).layer(inner);
    let response = service
        .service(router())
        .oneshot(Request::get("/nowhere").body(Body::empty()).expect("valid"))
        .await
        .expect("infallible");
    assert_eq!(
        response.extensions().get::<Problem>().map(Problem::code),
        Some(ErrorCode::NotFound)
    );
    let problem: Value = serde_json::from_slice(&body_of(response).await).expect("json");
    assert_eq!(problem["type"], "https://api.example/errors/not_found");
    assert_eq!(problem.get("instance"), None);
}

#[tokio::test]
async fn the_document_agrees_with_a_status_changed_on_the_way() {
    let changed = router().layer(axum::middleware::map_response(
        |response: axum::response::Response| async move {
            (StatusCode::IM_A_TEAPOT, response).into_response()
        },
    ));
    let response = ProblemLayer::new()
        .layer(changed)
        .oneshot(Request::get("/problem").body(Body::empty()).expect("valid"))
        .await
        .expect("infallible");
    assert_eq!(response.status(), StatusCode::IM_A_TEAPOT);
    let problem: Value = serde_json::from_slice(&body_of(response).await).expect("json");
    assert_eq!(problem["status"], 418);
    assert_eq!(problem["code"], "conflict");
}
