// cargo run --example usage_to_postgres
//! Usage in PostgreSQL: every call once as an event, and added up by the minute and the hour.
//!
//! It starts a PostgreSQL of its own; `DATABASE_URL=postgres://user:password@host/database` names another. It calls
//! itself ninety times and asks the tables what was used; the last line is `calls=90 tokens=1080 events=90`.

#[allow(dead_code, reason = "shared with another example")]
#[path = "common/servers.rs"]
mod servers;

use std::{env, time::Duration};

use axum::{Router, body::Body, http::Request, routing::post};
use servers::{Outcome, Server};
use tollgate::{
    Meter, Tollgate, identity::NewKey, limit::Rate, plan::Plan, postgres_support::Postgres,
    sink::PostgresSink, usage::LatencySketch,
};
use tower::ServiceExt;

#[tokio::main]
async fn main() -> Outcome<()> {
    if let Ok(url) = env::var("DATABASE_URL") {
        return meter(&url).await;
    }
    let dir = tempfile::tempdir()?;
    let server = Server::postgres(dir.path())?;
    meter(&format!(
        "postgres://tollgate@127.0.0.1:{}/postgres",
        server.port
    ))
    .await
}

async fn meter(url: &str) -> Outcome<()> {
    let postgres = connect(url).await?;
    // Makes the schema `tollgate`, or brings it to this version: every process may do it at its start.
    postgres.migrate().await?;
    let gate = Tollgate::builder()
        .plans([Plan::new("pro").rule(Rate::per_second(1_000))])
        .usage(PostgresSink::connect(&postgres).await?)
        .build()?;
    let tenant = format!("tenant-{}", std::process::id());
    let issued = gate
        .keys()
        .issue(NewKey::for_tenant(&tenant).plan("pro"))
        .await?;
    let chat = |meter: Meter| async move {
        meter.add("tokens", 12);
        "an answer"
    };
    let app: Router = Router::new()
        .route("/v1/chat", post(chat))
        .layer(gate.layer());
    for _ in 0..90 {
        let request = Request::post("/v1/chat").header("x-api-key", issued.key.expose());
        let response = app.clone().oneshot(request.body(Body::empty())?).await?;
        axum::body::to_bytes(response.into_body(), 1_024).await?;
    }
    println!("{:?}", gate.shutdown(Duration::from_secs(10)).await);

    let routes: Vec<(String, String, i64, Vec<u8>)> = sqlx::query_as(
        "SELECT s.method, s.route, h.calls, h.latency FROM tollgate.usage_hours h
         JOIN tollgate.usage_series s ON s.id = h.series WHERE s.tenant = $1 ORDER BY h.start",
    )
    .bind(&tenant)
    .fetch_all(postgres.pool())
    .await?;
    let mut calls = 0;
    for (method, route, n, latency) in routes {
        let p99 = LatencySketch::from_bytes(&latency)?
            .quantile(9_900)
            .unwrap_or(0);
        println!("{method} {route}: {n} calls, 99 % of them within {p99} us");
        calls += n;
    }
    let (tokens, events): (i64, i64) = sqlx::query_as(
        "SELECT (SELECT sum(q.amount)::bigint FROM tollgate.usage_minute_quantities q
                 JOIN tollgate.usage_series s ON s.id = q.series WHERE s.tenant = $1 AND q.name = 'tokens'),
                (SELECT count(*) FROM tollgate.usage_events WHERE tenant = $1)",
    )
    .bind(&tenant)
    .fetch_one(postgres.pool())
    .await?;
    println!("calls={calls} tokens={tokens} events={events}");
    Ok(())
}

/// A server that was just started may not take connections yet.
async fn connect(url: &str) -> Outcome<Postgres> {
    for _ in 0..100 {
        if let Ok(postgres) = Postgres::connect(url).await {
            return Ok(postgres);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(Postgres::connect(url).await?)
}
