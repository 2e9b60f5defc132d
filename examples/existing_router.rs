// cargo run --example existing_router
//! A service that had authentication, a health check and CORS before; what tollgate changed is marked `NEW`.

use std::{env, error::Error, net::SocketAddr, time::Duration};

use axum::{
    Router,
    extract::Request,
    http::{HeaderName, Method, StatusCode, header},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use tollgate::{
    Tollgate,
    identity::NewKey,
    limit::{Quota, Rate},
    plan::Plan,
    tenant::Tenant,
};
use tower_http::cors::{Any, CorsLayer};

/// The staff's own authentication, as it was.
async fn staff_only(request: Request, next: Next) -> Result<Response, StatusCode> {
    let token = request
        .headers()
        .get(header::AUTHORIZATION)
        .map(header::HeaderValue::as_bytes);
    match token {
        Some(b"Basic c3RhZmY6c2VjcmV0") => Ok(next.run(request).await),
        _ => Err(StatusCode::UNAUTHORIZED),
    }
}

async fn report(tenant: Tenant) -> String {
    format!("report for {}\n", tenant.id())
}

async fn order(tenant: Tenant) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("ordered by {}\n", tenant.id()))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // NEW: the gate, with what a caller may do.
    let gate = Tollgate::builder()
        .plans([Plan::new("starter")
            .rule(Rate::per_minute(60).burst(5))
            .rule(Quota::daily(10_000))])
        .build()?;
    let issued = gate
        .keys()
        .issue(NewKey::for_tenant("acme").plan("starter"))
        .await?;

    // The routes that customers pay for, as they were.
    let api = Router::new()
        .route("/v1/report", get(report))
        .route("/v1/order", post(order))
        .layer(gate.layer()); // NEW: one line, on these routes only.

    // The staff's routes keep their own authentication and are not metered.
    let admin = Router::new()
        .route("/admin/stats", get(|| async { "42 reports\n" }))
        .layer(middleware::from_fn(staff_only));

    // CORS stays outermost: it answers preflights itself, before the gate asks for a key, and the gate's own
    // refusals carry the CORS headers too. NEW: browsers must be allowed to send and to read our headers.
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([HeaderName::from_static("x-api-key"), header::CONTENT_TYPE])
        .expose_headers([
            HeaderName::from_static("ratelimit"),
            HeaderName::from_static("ratelimit-policy"),
            header::RETRY_AFTER,
        ]);

    let app = Router::new()
        .route("/health", get(|| async { "ok\n" })) // Outside the gate: no key needed.
        .merge(api)
        .merge(admin)
        .layer(cors);

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
    let _report = gate.shutdown(Duration::from_secs(5)).await; // NEW: what was metered is written before the process ends.
    Ok(())
}
