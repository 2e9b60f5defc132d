// cargo run --example custom_errors
//! Errors in the service's own form instead of `application/problem+json`.
//!
//! The hook sees every error of the gate, of the router and of the handlers, each with its stable code.

use std::{env, error::Error, net::SocketAddr, time::Duration};

use axum::{Router, http::HeaderValue, routing::get};
use bytes::Bytes;
use serde_json::json;
use tollgate::{
    Tollgate,
    error::{ErrorContext, Problem, Rendered},
    identity::NewKey,
    limit::Rate,
    plan::Plan,
    tenant::Tenant,
};

/// `{"error": {"type": "rate_limited", "message": "..", "request_id": ".."}}`
fn house_style(problem: &Problem, context: &ErrorContext<'_>) -> Rendered {
    let message = problem
        .detail_text()
        .unwrap_or_else(|| problem.code().title());
    let body = json!({
        "error": {
            "type": problem.code().as_str(),
            "message": message,
            "request_id": context.request_id(),
        }
    });
    Rendered::new(
        HeaderValue::from_static("application/json"),
        Bytes::from(body.to_string()),
    )
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let gate = Tollgate::builder()
        .plans([Plan::new("free").rule(Rate::per_minute(2))])
        .render_errors(house_style)
        .build()?;
    let issued = gate
        .keys()
        .issue(NewKey::for_tenant("acme").plan("free"))
        .await?;

    let app = Router::new()
        .route(
            "/v1/hello",
            get(|tenant: Tenant| async move { format!("hello {}\n", tenant.id()) }),
        )
        .layer(gate.layer());

    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    println!("key: {}", issued.key.expose());
    axum::serve(
        listener,
        app.into_make_service_with_connect_info::<SocketAddr>(),
    )
    .with_graceful_shutdown(async {
        let _ = tokio::signal::ctrl_c().await;
    })
    .await?;
    let _report = gate.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
