// cargo run --example stripe_webhook
//! A payment provider's events keep tenants, keys and access: verified, handled once, whatever is sent again.
//!
//! `POST /webhooks/stripe` is what the provider calls. Without an account of Stripe's, `POST /pretend/payment_failed` and
//! `POST /pretend/paid` sign such an event and send it there, as `stripe trigger` does. `PORT` chooses the port.

use std::{env, error::Error, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::Request,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tollgate::{
    auth::KeySecret,
    billing::{MemoryLedger, Provisioner, StripeSignature, WebhookService},
    clock::Timestamp,
    id::Environment,
    prelude::*,
};
use tower::ServiceExt;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What Stripe would send, and the secret that it would sign with.
#[derive(Clone)]
struct Pretender {
    signature: StripeSignature,
    webhooks: WebhookService,
}

impl Pretender {
    async fn send(&self, name: &str, object: Value) -> Outcome<Response> {
        let now = Timestamp::from(jiff::Timestamp::now());
        let body = json!({
            "id": format!("evt_{}", now.as_unix_micros()), "object": "event", "type": name,
            "created": now.as_unix_seconds(), "livemode": false, "data": {"object": object},
        });
        let body = body.to_string();
        let header = self.signature.sign(body.as_bytes(), now);
        let request = Request::post("/")
            .header("stripe-signature", header)
            .body(Body::from(body))?;
        Ok(self
            .webhooks
            .clone()
            .oneshot(request)
            .await?
            .into_response())
    }
}

async fn pretend(State(pretender): State<Pretender>, Path(what): Path<String>) -> Response {
    let invoice = json!({
        "id": "in_1", "customer": "cus_acme", "hosted_invoice_url": "https://pay.example/in_1",
        "parent": {"subscription_details": {"subscription": "sub_1"}},
    });
    let sent = pretender.send(&format!("invoice.{what}"), invoice).await;
    sent.unwrap_or_else(|error| error.to_string().into_response())
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let gate = Tollgate::builder()
        .plans([Plan::new("free"), Plan::new("pro")])
        .build()?;

    // In a service of yours: secrets from the environment, and a `PostgresLedger`.
    let ledger = Arc::new(MemoryLedger::new());
    let secret = KeySecret::new(b"an example's secret, not 32 random bytes")?;
    let provisioner =
        Provisioner::builder(gate.keys(), gate.tenants(), Arc::clone(&ledger), secret)
            .price("price_pro", "pro")
            .build()?;
    let signature = StripeSignature::new(["whsec_of_an_example"])?;
    let webhooks = WebhookService::builder(signature.clone())
        .environment(Environment::Test)
        .ledger(ledger)
        .handler(provisioner.clone())
        .build()?;

    // A customer buys, as Stripe tells it: the subscription first, the checkout after it.
    let pretender = Pretender {
        signature,
        webhooks: webhooks.clone(),
    };
    let subscription = json!({
        "id": "sub_1", "customer": "cus_acme", "status": "active", "items": {"data": [{"price": {"id": "price_pro"}}]},
    });
    pretender
        .send("customer.subscription.created", subscription)
        .await?;
    let checkout = json!({
        "id": "cs_1", "customer": "cus_acme", "subscription": "sub_1", "mode": "subscription", "payment_status": "paid",
    });
    pretender
        .send("checkout.session.completed", checkout)
        .await?;
    let issued = provisioner
        .key_of_checkout(Environment::Test, "cs_1")
        .await?;

    // Outside of the gate: the provider has a signature and no key. Neither part may be left to a public path.
    let app = Router::new()
        .route(
            "/v1/hello",
            get(|tenant: Tenant| async move {
                format!(
                    "hello {} on {}, {}\n",
                    tenant.id(),
                    tenant.plan(),
                    tenant.access().as_str()
                )
            }),
        )
        .layer(gate.layer())
        .route("/pretend/{what}", post(pretend))
        .with_state(pretender)
        .route_service("/webhooks/stripe", webhooks);

    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    println!("key: {}", issued.ok_or("no key was issued")?.key.expose());
    axum::serve(
        listener,
        app.into_make_service_with_connect_info::<SocketAddr>(),
    )
    .with_graceful_shutdown(async {
        let _ = tokio::signal::ctrl_c().await;
    })
    .await?;
    println!("{:?}", gate.shutdown(Duration::from_secs(5)).await);
    Ok(())
}
