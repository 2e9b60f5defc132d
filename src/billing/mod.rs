//! What the payment provider says, and what follows from it: tenants, plans, keys and access.
//!
//! 1. A [`WebhookService`] takes a delivery: so many bytes, in so much time.
//! 2. Its [signature](Signature) is verified over the raw bytes, by Stripe's scheme, Standard Webhooks' or Paddle's;
//!    nothing is read before.
//! 3. The bytes are read as a [`BillingEvent`], of the endpoint's mode.
//! 4. An [`EventLedger`] says whether the event is new. Who claims it handles it; a claim that a crash left behind ends
//!    with its lease.
//! 5. [Handlers](BillingEventHandler) do what follows; the [`Provisioner`] keeps tenants, plans, keys and access as the
//!    provider says.
//! 6. Only then is the event done and the provider told 200. Whatever went wrong before, it sends the event again; what
//!    goes wrong too often is put aside as a [`DeadLetter`].
//!
//! What a tenant may do while it does not pay is a pure function, [`lifecycle::step`]. Nothing here is called by a request
//! of the API: the gate reads the tenant's record, and no payment provider.
//!
//! The guide's page on [billing](crate::guide::billing) tells how to mount it, and what is promised.
//!
//! ```
//! use std::sync::Arc;
//! use axum::{Router, body::Body, http::Request, routing::get};
//! use tollgate::{
//!     auth::KeySecret,
//!     billing::{MemoryLedger, Provisioner, StripeSignature, WebhookService},
//!     id::Environment, prelude::*,
//! };
//! use tower::ServiceExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let gate = Tollgate::builder().plans([Plan::new("pro")]).build()?;
//! let ledger = Arc::new(MemoryLedger::new());
//! let secret = KeySecret::new(b"32 random bytes or more of yours")?;
//! let provisioner = Provisioner::builder(gate.keys(), gate.tenants(), ledger.clone(), secret)
//!     .price("price_pro", "pro")
//!     .build()?;
//! let signature = StripeSignature::new(["whsec_of_the_dashboard"])?;
//! let webhooks = WebhookService::builder(signature.clone()).ledger(ledger).handler(provisioner.clone()).build()?;
//!
//! let app: Router = Router::new()
//!     .route("/v1/hello", get(|tenant: Tenant| async move { format!("hello {}", tenant.id()) }))
//!     .layer(gate.layer())
//!     .route_service("/webhooks/stripe", webhooks);
//!
//! let now = tollgate::clock::Timestamp::from(jiff::Timestamp::now());
//! for body in [
//!     r#"{"id":"evt_1","type":"customer.subscription.created","created":1763769590,"livemode":true,"data":{"object":
//!         {"id":"sub_1","customer":"cus_1","status":"active","items":{"data":[{"price":{"id":"price_pro"}}]}}}}"#,
//!     r#"{"id":"evt_2","type":"checkout.session.completed","created":1763769591,"livemode":true,"data":{"object":
//!         {"id":"cs_1","customer":"cus_1","subscription":"sub_1","mode":"subscription","payment_status":"paid"}}}"#,
//! ] {
//!     let header = signature.sign(body.as_bytes(), now);
//!     let delivery = Request::post("/webhooks/stripe").header("stripe-signature", header).body(Body::from(body))?;
//!     assert_eq!(app.clone().oneshot(delivery).await?.status(), 200);
//! }
//! let issued = provisioner.key_of_checkout(Environment::Live, "cs_1").await?.expect("a key");
//! let call = Request::get("/v1/hello").header("x-api-key", issued.key.expose()).body(Body::empty())?;
//! assert_eq!(app.clone().oneshot(call).await?.status(), 200);
//!
//! // Nobody else can send events.
//! let forged = Request::post("/webhooks/stripe").header("stripe-signature", "t=1,v1=00").body(Body::from("{}"))?;
//! assert_eq!(app.oneshot(forged).await?.status(), 400);
//! # Ok(())
//! # }
//! ```

mod account;
mod event;
mod facts;
mod handler;
mod ledger;
pub mod lifecycle;
mod memory_ledger;
mod notifier;
#[cfg(feature = "postgres")]
mod postgres_ledger;
mod provisioner;
#[cfg(feature = "redis")]
mod redis_ledger;
mod service;
mod signature;

#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use self::postgres_ledger::PostgresLedger;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use self::redis_ledger::RedisLedger;
pub use self::{
    account::Account,
    event::{
        BillingEvent, BillingObject, Checkout, Customer, Delivered, Dispute, EntitlementSummary,
        EventError, EventKind, Invoice, PriceRef, RelatedObject, Subscription, SubscriptionItem,
        SubscriptionStatus, ThinEvent,
    },
    handler::{BillingEventHandler, Handled, HandlerError, ThinEventHandler},
    ledger::{
        AccountStore, Claim, Claimed, DeadLetter, EventKey, EventLedger, LedgerError,
        MIN_RETENTION, Try,
    },
    lifecycle::{LifecyclePolicies, LifecyclePolicy},
    memory_ledger::MemoryLedger,
    notifier::{LogNotices, Notice, NoticeKind, Notifier, NotifyError},
    provisioner::{
        Difference, DifferenceKind, Downgrade, ProvisionError, Provisioner, ProvisionerBuilder,
        ReconcileReport, RefetchSubscription, reconcile_subscriptions,
    },
    service::{ReplayError, WebhookBuilder, WebhookFuture, WebhookService},
    signature::{
        MAX_SIGNATURES, PaddleSignature, Signature, SignatureError, StandardWebhooksSignature,
        StripeSignature,
    },
};
