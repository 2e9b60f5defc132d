// cargo run --example quickstart
//! A paid API in one process: keys, plans, limits and metering, with no server beside it.
//!
//! Prints working keys and the lines to try. `PORT` chooses the port (3000 unless set, 0 for any free one).
//! `KEYS=n` issues n keys of alternating plans. On Ctrl-C it drains and prints what was metered.

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Json, Router, extract::State, routing::get};
use tollgate::{
    meter::UsageEvent,
    prelude::*,
    sink::{SinkError, UsageSink, Verdicts},
};

/// Where usage goes: here a sum of calls by status, in a service of yours a database.
#[derive(Clone, Debug, Default)]
struct Totals(Arc<Mutex<BTreeMap<u16, u64>>>);

#[async_trait::async_trait]
impl UsageSink for Totals {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        let mut totals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for event in batch {
            *totals.entry(event.status).or_default() += 1;
        }
        Ok(Verdicts::AllAccepted)
    }
}

async fn hello(tenant: Tenant, meter: Meter) -> String {
    meter.add("greetings", 1);
    format!("hello {}\n", tenant.id())
}

/// What was metered so far: for the service's own people, so it needs no key.
async fn totals(State((gate, totals)): State<(Tollgate, Totals)>) -> Json<serde_json::Value> {
    gate.usage().flush().await;
    let counters = gate.usage().counters();
    let by_status = totals.0.lock().unwrap_or_else(PoisonError::into_inner);
    Json(serde_json::json!({
        "events": *by_status,
        "unidentified": counters.unidentified_total(),
        "open": counters.open,
        "dropped": counters.dropped(),
        "tasks": tokio::runtime::Handle::current().metrics().num_alive_tasks(),
    }))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt()
        .with_env_filter("info")
        .with_writer(std::io::stderr)
        .init();

    let usage = Totals::default();
    let gate = Tollgate::builder()
        .plans([
            Plan::new("free")
                .rule(Rate::per_second(5).burst(10))
                .rule(Quota::monthly(1_000)),
            Plan::new("pro")
                .rule(Rate::per_second(100))
                .rule(Quota::monthly(100_000).overage()),
        ])
        .usage(usage.clone())
        .public(["/totals"])
        .build()?;

    let n: usize = env::var("KEYS").map_or(Ok(2), |text| text.parse())?;
    let mut first = None;
    for i in 0..n {
        let plan = if i % 2 == 0 { "free" } else { "pro" };
        let issued = gate
            .keys()
            .issue(NewKey::for_tenant(format!("acme-{i}")).plan(plan))
            .await?;
        println!("key {plan}-{i}: {}", issued.key.expose());
        first.get_or_insert(issued);
    }

    let app = Router::new()
        .route("/v1/hello", get(hello))
        .route("/totals", get(totals))
        .with_state((gate.clone(), usage.clone()))
        .layer(gate.layer());

    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    let address = listener.local_addr()?;
    println!("listening on http://{address}");
    if let Some(issued) = first {
        println!("key: {}", issued.key.expose());
        println!(
            "try: curl -i -H 'X-API-Key: {}' http://{address}/v1/hello",
            issued.key.expose()
        );
        println!("     a dozen times within a second, and then without the key");
    }

    // With connect info the failure limiter and rules by address see the peer.
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service)
        .with_graceful_shutdown(async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    let report = gate.shutdown(Duration::from_secs(5)).await;
    println!("metered: {:?}, {report:?}", usage.0);
    Ok(())
}
