// cargo run --example tiered
//! Tiers, included calls and overage: thirty-five calls become an invoice draft.
//!
//! The plan costs 29.00 dollars and includes 10 calls; the next 10 cost 1.00 each, those after them 0.50. Its quota is
//! 30 calls, and calls above it pass at 2.00. Five calls are refused by the service and cost nothing. The last line is
//! `calls=35 included=10 overage=5 total=54.00 USD`.

use std::{error::Error, sync::Arc};

use axum::{Router, body::Body, http::Request, http::StatusCode, routing::get};
use tollgate::{
    clock::{Clock, ManualClock, Timestamp},
    id::{PlanName, TenantId},
    plan::PlanDocument,
    prelude::*,
    pricing::{BillingPeriod, InvoiceDraft, TraceStep, UsageTotals},
    sink::MemorySink,
};
use tower::ServiceExt;

const PLANS: &str = r#"{ "plans": [{
    "name": "pro",
    "rules": [{ "kind": "quota", "limit": 30, "period": "month", "action": "overage" }],
    "prices": {
        "currency": "USD",
        "fees": [{ "name": "base", "amount": "29.00" }],
        "meters": [{
            "meter": "calls", "model": "graduated", "included": 10, "overage": "2.00",
            "tiers": [{ "from": 1, "up_to": 10, "price": "1.00" }, { "from": 11, "price": "0.50" }]
        }]
    }
}] }"#;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let document = PlanDocument::from_json(PLANS)?;
    let clock = ManualClock::default();
    let events = MemorySink::new();
    let gate = Tollgate::builder()
        .plans(document.plans())
        .usage(events.clone())
        .clock(Arc::new(clock.clone()))
        .build()?;
    let new = NewKey::for_tenant("acme").plan("pro");
    let issued = gate.keys().issue(new).await?;
    let broken = get(|| async { StatusCode::INTERNAL_SERVER_ERROR });
    let app = Router::new()
        .route("/v1/hello", get(|| async { "hello" }))
        .route("/v1/broken", broken)
        .layer(gate.layer());
    for n in 0..40 {
        // What the service fails to do costs nothing, and is given back to the quota.
        let path = if n % 8 == 0 {
            "/v1/broken"
        } else {
            "/v1/hello"
        };
        let request = Request::get(path).header("x-api-key", issued.key.expose());
        app.clone().oneshot(request.body(Body::empty())?).await?;
    }
    gate.usage().flush().await;

    // January, in which the clock stands.
    let january = |day: u64| Timestamp::from_unix_seconds(1_767_225_600 + day * 86_400);
    let period = BillingPeriod::new(january(0), january(31))?;
    assert!(period.contains(clock.now().wall()));
    let (acme, pro) = (TenantId::new("acme")?, PlanName::new("pro")?);
    let usage: UsageTotals = events.of_tenant(&acme).iter().collect();
    let plan = gate.plans().find(&pro).ok_or("the plan is gone")?;
    let prices = plan.prices().ok_or("the plan has no prices")?;
    let draft = InvoiceDraft::builder(acme, period)
        .plan(pro, Arc::clone(prices), usage)
        .draft()?;

    let (mut calls, mut included, mut overage) = (0, 0, 0);
    for each in &draft.standing {
        println!(
            "{:<12} {:>10}",
            each.line.to_string(),
            each.line.amount.to_string()
        );
        calls += each.line.used.units;
        for step in &each.line.trace {
            println!("    {}", serde_json::to_string(step)?);
            match step {
                TraceStep::Included { units } => included += units,
                TraceStep::Overage { units, .. } => overage += units,
                _ => {}
            }
        }
    }
    println!(
        "calls={calls} included={included} overage={overage} total={}",
        draft.total
    );
    Ok(())
}
