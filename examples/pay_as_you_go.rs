// cargo run --example pay_as_you_go
//! Every unit has its price: usage is metered as calls come, and `/invoice` drafts what the month comes to.
//!
//! A call of `/v1/chat` costs 0.0005 dollars and 0.00002 for each token that it made, 50 tokens here. Usage goes into
//! totals as the recorder writes it; a draft is made of them without a look at any call, and prints each line with how
//! it came about. `PORT` chooses the port (3000 unless set, 0 for any free one).

use std::{
    env,
    error::Error,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use tollgate::{
    clock::{Clock, SystemClock, Timestamp},
    id::TenantId,
    limit::{Period, QuotaParameters},
    meter::UsageEvent,
    prelude::*,
    pricing::{BillingPeriod, InvoiceDraft, MeterPrice, Prices, UsageTotals},
    sink::{SinkError, UsageSink, Verdicts},
};

/// What was used, in the process: a service of yours reads it from where its events go.
#[derive(Clone, Debug, Default)]
struct Usage(Arc<Mutex<Vec<UsageEvent>>>);

#[async_trait::async_trait]
impl UsageSink for Usage {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        events.extend_from_slice(batch);
        Ok(Verdicts::AllAccepted)
    }
}

impl Usage {
    fn of(&self, tenant: &TenantId, period: BillingPeriod) -> UsageTotals {
        let events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = events.iter().filter(|event| event.tenant == *tenant);
        own.filter(|event| period.contains(event.time)).collect()
    }
}

async fn chat(meter: Meter) -> &'static str {
    meter.add("tokens", 50);
    "fifty tokens\n"
}

/// The calendar month that an instant lies in.
fn month(now: Timestamp) -> Result<BillingPeriod, Box<dyn Error>> {
    let months = QuotaParameters::new(0, Period::Month, None)?;
    Ok(months.bounds(now, None).try_into()?)
}

fn draft(gate: &Tollgate, usage: &Usage) -> Result<InvoiceDraft, Box<dyn Error>> {
    let acme = TenantId::new("acme")?;
    let plan = gate.plans().find(&"metered".parse()?);
    let plan = plan.ok_or("the plan is gone")?;
    let prices = plan.prices().ok_or("the plan has no prices")?;
    let period = month(SystemClock::new().now().wall())?;
    let used = usage.of(&acme, period);
    let draft = InvoiceDraft::builder(acme, period)
        .plan(plan.name().clone(), Arc::clone(prices), used)
        .draft()?;
    for each in &draft.standing {
        println!("{}: {}", each.line, each.line.amount);
        for step in &each.line.trace {
            println!("    {step:?}");
        }
    }
    Ok(draft)
}

/// For the service's own people, so it needs no key.
async fn invoice(
    State((gate, usage)): State<(Tollgate, Usage)>,
) -> Result<Json<InvoiceDraft>, (StatusCode, String)> {
    gate.usage().flush().await;
    let failed = |error: Box<dyn Error>| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    draft(&gate, &usage).map(Json).map_err(failed)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let prices = Prices::new("USD")
        .meter(MeterPrice::per_unit("calls", "0.0005"))
        .meter(MeterPrice::per_unit("tokens", "0.00002"));
    let usage = Usage::default();
    let gate = Tollgate::builder()
        .plans([Plan::new("metered").prices(prices)])
        .usage(usage.clone())
        .public(["/invoice"])
        .build()?;
    let new = NewKey::for_tenant("acme").plan("metered");
    let issued = gate.keys().issue(new).await?;
    let app = Router::new()
        .route("/v1/chat", get(chat))
        .route("/invoice", get(invoice))
        .with_state((gate.clone(), usage))
        .layer(gate.layer());

    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    println!("key: {}", issued.key.expose());
    axum::serve(listener, app)
        .with_graceful_shutdown(async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    Ok(())
}
