// cargo run --example freemium
//! A free plan with a hard quota: what is above it is refused with the address where more is sold.
//!
//! The free plan has five calls a month, the pro plan a thousand and exports. An exceeded quota is answered 402, as
//! nothing but another plan helps, and a missing feature 403; both with `upgrade_url`. `POST /upgrade` is what the
//! payment would do: the same key calls under the other plan at once, and what was used stays used.
//! `PORT` chooses the port (3000 unless set, 0 for any free one).

use std::{env, error::Error};

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use tollgate::{
    id::{PlanName, TenantId},
    prelude::*,
};

async fn hello(tenant: Tenant) -> String {
    format!("hello {} on {}\n", tenant.id(), tenant.plan())
}

async fn export() -> &'static str {
    "id,total\n1,29.00\n"
}

/// Where a payment ends: the tenant is on the plan that was paid for.
async fn upgrade(State(gate): State<Tollgate>) -> Result<&'static str, StatusCode> {
    let failed = StatusCode::INTERNAL_SERVER_ERROR;
    let (acme, pro) = TenantId::new("acme")
        .ok()
        .zip(PlanName::new("pro").ok())
        .ok_or(failed)?;
    let moved = gate.tenants().set_plan(&acme, &pro).await;
    moved.map_err(|_| failed)?;
    Ok("acme is on pro\n")
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    const PRICES: &str = "https://shop.example/prices";
    let gate = Tollgate::builder()
        .plans([
            Plan::new("free")
                .rule(Quota::monthly(5))
                .upgrade_url(PRICES),
            Plan::new("pro")
                .rule(Quota::monthly(1_000))
                .feature("export"),
        ])
        .quota_status(StatusCode::PAYMENT_REQUIRED)
        .public(["/upgrade"])
        .build()?;
    let new = NewKey::for_tenant("acme").plan("free");
    let issued = gate.keys().issue(new).await?;

    let app = Router::new()
        .route("/v1/hello", get(hello))
        .route(
            "/v1/export",
            get(export).route_layer(RequireFeature::new("export")),
        )
        .route("/upgrade", post(upgrade))
        .with_state(gate.clone())
        .layer(gate.layer());

    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    let address = listener.local_addr()?;
    println!("listening on http://{address}");
    println!("key: {}", issued.key.expose());
    println!(
        "try: curl -i -H 'X-API-Key: {}' http://{address}/v1/hello",
        issued.key.expose()
    );
    println!("     six times; then curl -X POST http://{address}/upgrade, and once more");
    axum::serve(listener, app)
        .with_graceful_shutdown(async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    Ok(())
}
