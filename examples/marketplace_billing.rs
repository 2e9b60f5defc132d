// cargo run --example marketplace_billing
//! A month of one customer: checkout, key, metered calls, a failed payment, grace, reading only, paid, a draft of the invoice.
//!
//! Events are signed as Stripe signs them, and one of them comes twice. Time is moved by hand. The last line is
//! `states=active,grace,read_only,active keys_issued=1 invoice_total=3000 USD`.

use std::{convert::Infallible, error::Error, iter::repeat_n, sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tollgate::{
    auth::KeySecret,
    billing::{MemoryLedger, Provisioner, StripeSignature, WebhookService},
    clock::{Clock, ManualClock},
    id::{Environment, PlanName, TenantId},
    prelude::*,
    pricing::{BillingPeriod, InvoiceDraft, MeterPrice, PriceBook, Prices, UsageTotals},
    sink::MemorySink,
};
use tower::{Layer, ServiceExt, service_fn};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What Stripe sends.
struct Provider {
    clock: ManualClock,
    signature: StripeSignature,
    webhooks: WebhookService,
}

impl Provider {
    /// Sends an event twice, as happens when an answer is lost.
    async fn send(&self, name: &str, object: Value) -> Outcome<()> {
        let now = self.clock.now().wall();
        let (created, id) = (now.as_unix_seconds(), format!("evt_{name}_{now}"));
        let body = json!({
            "id": id, "type": name, "created": created, "livemode": true, "data": {"object": object},
        });
        let body = body.to_string();
        for _ in 0..2 {
            let header = self.signature.sign(body.as_bytes(), now);
            let request = Request::post("/")
                .header("stripe-signature", header)
                .body(body.clone())?;
            let answer = self.webhooks.clone().oneshot(request).await?;
            assert_eq!(answer.status(), StatusCode::OK);
        }
        self.clock.advance(Duration::from_secs(1));
        Ok(())
    }

    async fn invoice(&self, what: &str) -> Outcome<()> {
        let subscription = json!({"subscription_details": {"subscription": "sub_1"}});
        let object = json!({"id": "in_1", "customer": "cus_1", "parent": subscription});
        self.send(&format!("invoice.{what}"), object).await
    }
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let (clock, usage) = (ManualClock::default(), Arc::new(MemorySink::new()));
    let start = clock.now().wall();
    let gate = Tollgate::builder()
        .plans([Plan::new("pro").rule(Quota::monthly(10_000))])
        .usage(Arc::clone(&usage))
        .clock(Arc::new(clock.clone()))
        .build()?;
    let api = gate.layer().layer(service_fn(async |_: Request<String>| {
        Ok::<_, Infallible>(Response::new("a picture".to_owned()))
    }));

    let ledger = Arc::new(MemoryLedger::new());
    let secret = KeySecret::new(b"an example's secret, not 32 random bytes")?;
    let provisioner =
        Provisioner::builder(gate.keys(), gate.tenants(), Arc::clone(&ledger), secret)
            .price("price_pro", "pro")
            .clock(Arc::new(clock.clone()))
            .build()?;
    let signature = StripeSignature::new(["whsec_of_an_example"])?;
    let webhooks = WebhookService::builder(signature.clone())
        .ledger(ledger)
        .handler(provisioner.clone())
        .clock(Arc::new(clock.clone()))
        .build()?;
    let provider = Provider {
        clock: clock.clone(),
        signature,
        webhooks,
    };

    let items = json!({"data": [{"price": {"id": "price_pro"}}]});
    let subscription =
        json!({"id": "sub_1", "customer": "cus_1", "status": "active", "items": items});
    provider
        .send("customer.subscription.created", subscription)
        .await?;
    let checkout =
        json!({"id": "cs_1", "customer": "cus_1", "subscription": "sub_1", "mode": "subscription"});
    provider
        .send("checkout.session.completed", checkout)
        .await?;
    let issued = provisioner
        .key_of_checkout(Environment::Live, "cs_1")
        .await?
        .ok_or("no key")?;

    let tenant = TenantId::new("cus_1")?;
    let mut states = Vec::new();
    // So many calls that change something and so many that read, and what the state lets through.
    let mut live = async |writes: usize, reads: usize| -> Outcome<()> {
        let methods = repeat_n(Method::POST, writes).chain(repeat_n(Method::GET, reads));
        for method in methods {
            let call = Request::builder()
                .method(method)
                .header("x-api-key", issued.key.expose());
            api.clone().oneshot(call.body(String::new())?).await?;
        }
        let found = gate.tenants().find(&tenant).await?.ok_or("no tenant")?;
        states.push(
            found
                .access()
                .at(clock.now().wall())
                .as_str()
                .replace('-', "_"),
        );
        Ok(())
    };
    live(30, 0).await?;
    provider.invoice("payment_failed").await?;
    live(10, 0).await?;
    clock.advance(7 * DAY);
    live(7, 5).await?; // The seven are answered 402, and nobody pays for them.
    provider.invoice("paid").await?;
    live(5, 0).await?;

    gate.usage().flush().await;
    let mut totals = UsageTotals::new();
    usage.of_tenant(&tenant).iter().for_each(|event| {
        totals.record(event);
    });
    let prices = Prices::new("USD")
        .fee("base", "29.00")
        .meter(MeterPrice::per_unit("calls", "0.02"));
    let period = BillingPeriod::new(start, start.saturating_add(31 * DAY))?;
    let draft = InvoiceDraft::builder(tenant.clone(), period)
        .plan(
            PlanName::new("pro")?,
            Arc::new(PriceBook::new(&prices)?),
            totals,
        )
        .draft()?;
    let keys = gate.keys().list(&tenant).await?.len();
    let (states, total) = (states.join(","), draft.total);
    println!(
        "states={states} keys_issued={keys} invoice_total={} {}",
        total.minor(),
        total.currency()
    );
    Ok(())
}
