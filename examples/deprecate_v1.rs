// cargo run --example deprecate_v1
//! Three versions of an API: v2 is served, v1 is deprecated and v0 has ended.
//!
//! `curl -i -H "x-api-key: <key>" http://127.0.0.1:3000/v1/hello` shows `Deprecation`, `Sunset` and `Link`; `/v0/hello` is
//! answered 410, and costs nothing of the quota. `/notify` lists who still calls old versions. `PORT` chooses the port
//! (3000 unless set, 0 for any free one).

use std::{
    env,
    error::Error,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Json, Router, extract::State, routing::get};
use tollgate::{
    clock::{Clock, SystemClock},
    meter::UsageEvent,
    prelude::*,
    sink::{SinkError, UsageSink, Verdicts},
    usage::{DeprecationReport, UsageMinute},
};

const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Minutes of usage: here in memory. A rollup keeps them in PostgreSQL, where `PostgresUsage` reads them.
#[derive(Clone, Debug, Default)]
struct Minutes(Arc<Mutex<Vec<UsageMinute>>>);

#[async_trait::async_trait]
impl UsageSink for Minutes {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        let mut minutes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for event in batch {
            // `add` takes what belongs to the same minute and key.
            if !minutes.iter_mut().any(|minute| minute.add(event).is_ok()) {
                minutes.push(UsageMinute::of(event));
            }
        }
        Ok(Verdicts::AllAccepted)
    }
}

async fn hello(tenant: Tenant) -> String {
    format!("hello {}\n", tenant.id())
}

/// Whom to write to, most calls first: for the service's own people, so it needs no key.
async fn notify(State((gate, minutes)): State<(Tollgate, Minutes)>) -> Json<serde_json::Value> {
    gate.usage().flush().await;
    let minutes = minutes.0.lock().unwrap_or_else(PoisonError::into_inner);
    let report = DeprecationReport::of(&*minutes);
    let tenants = report.to_notify(1).into_iter();
    Json(
        tenants
            .map(|(tenant, calls)| serde_json::json!({"tenant": tenant, "calls": calls}))
            .collect(),
    )
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let minutes = Minutes::default();
    let gate = Tollgate::builder()
        .plans([Plan::new("free").rule(Quota::monthly(100))])
        .usage(minutes.clone())
        .build()?;
    let now = SystemClock::new().now().wall();
    let v1 = DeprecationLayer::since(now.saturating_sub(WEEK))
        .sunset(now.saturating_add(WEEK))?
        .document("https://docs.example.com/v1-to-v2")?
        .successor("/v2/hello")?;
    let v0 = DeprecationLayer::since(now.saturating_sub(WEEK * 2))
        .sunset(now.saturating_sub(WEEK))?
        .successor("/v2/hello")?
        .gone_after_sunset();

    let app = Router::new()
        .route("/v2/hello", get(hello))
        .route("/v1/hello", get(hello).route_layer(v1))
        .route("/v0/hello", get(hello).route_layer(v0))
        .layer(gate.layer())
        .route("/notify", get(notify))
        .with_state((gate.clone(), minutes));
    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    let issued = gate
        .keys()
        .issue(NewKey::for_tenant("acme").plan("free"))
        .await?;
    println!("listening on http://{}", listener.local_addr()?);
    println!("key: {}", issued.key.expose());
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).await?;
    Ok(())
}
