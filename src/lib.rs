//! Tower middleware that turns an HTTP API into a paid one.
//!
//! A service adds one layer, and from then on every request is
//!
//! 1. **identified** by its API key or its access token ([`auth`], [`identity`]);
//! 2. **placed** in a tenant with a plan and a state of payment ([`tenant`], [`plan`]);
//! 3. **admitted or refused** by token buckets, sliding windows and quotas ([`limit`]);
//! 4. **metered**, however it ends ([`meter`], [`sink`]);
//! 5. **answered** in one JSON form when something is wrong ([`error`]).
//!
//! Behind the calls, usage goes where you keep it ([`sink`]), is priced and becomes a draft of an invoice ([`pricing`],
//! [`invoicing`]), and, with the feature `billing`, a payment provider's events decide what a tenant may do.
//!
//! Everything runs in the process, with no server beside it unless you want one. Everything behind a layer is a trait, so that a
//! service can keep its keys, tenants, counts and usage where it likes; and each layer works alone, in any
//! tower stack, for a service that needs one part only.
//!
#![cfg_attr(feature = "axum", doc = "```")]
#![cfg_attr(not(feature = "axum"), doc = "```ignore")]
//! use axum::{Router, body::Body, http::Request, routing::get};
//! use tollgate::prelude::*;
//! use tower::ServiceExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let gate = Tollgate::builder()
//!     .plans([
//!         Plan::new("free").rule(Rate::per_second(5).burst(2)).rule(Quota::monthly(1_000)),
//!         Plan::new("pro").rule(Rate::per_second(100)).rule(Quota::monthly(100_000).overage()),
//!     ])
//!     .build()?;
//! let issued = gate.keys().issue(NewKey::for_tenant("acme").plan("free")).await?;
//!
//! let app: Router = Router::new()
//!     .route("/v1/hello", get(|tenant: Tenant| async move { format!("hello {}", tenant.id()) }))
//!     .layer(gate.layer());
//!
//! let call = async |key: &str| {
//!     let request = Request::get("/v1/hello").header("x-api-key", key).body(Body::empty())?;
//!     Ok::<_, Box<dyn std::error::Error>>(app.clone().oneshot(request).await?.status().as_u16())
//! };
//! assert_eq!(call(issued.key.expose()).await?, 200);
//! assert_eq!(call(issued.key.expose()).await?, 200);
//! assert_eq!(call(issued.key.expose()).await?, 429);
//! assert_eq!(call("tg_live_guess").await?, 401);
//!
//! // Every call of a known tenant is one usage event, refused ones too.
//! gate.usage().flush().await;
//! assert_eq!(gate.usage().counters().acked, 3);
//! # Ok(())
//! # }
//! ```
//!
//! The [`guide`] explains the [architecture](guide::architecture), the [order of the
//! layers](guide::layer_order), each [default](guide::defaults), each [error](guide::errors) and what each
//! [failure](guide::failure) does. It has pages on [streams and long connections](guide::streaming),
//! [gRPC](guide::grpc), [metrics](guide::metrics), [restarts](guide::restart), [lost and doubled usage](guide::metering),
//! [sinks](guide::sinks), [pricing](guide::pricing) and [invoices](guide::invoices), and on what features bring.
//!
//! # Features
//!
//! None is on by default; each adds and changes nothing else.
//!
//! - `axum`: extractors for [`Tenant`], [`Identity`], [`Meter`] and [`CostScope`](meter::CostScope); route
//!   templates and peer addresses as axum knows them.
//! - `billing`: events of a payment provider, verified and handled once: tenants, plans, keys and access follow.
//! - `clickhouse`: usage in ClickHouse.
//! - `conformance`: test suites for your own key, tenant and limit stores.
//! - `grpc`: errors in gRPC's form, metering by `grpc-status`, and routes of gRPC methods.
//! - `jwt`: access tokens of an identity provider beside API keys.
//! - `kafka`: usage in Kafka.
//! - `openapi`: the API's OpenAPI document, of which each caller sees what they may use.
//! - `redis`: limits, keys, tenants and plans shared by all processes, and counters of usage.
//! - `reqwest`: an HTTP client; with `jwt`, a provider's keys from their address.
//! - `stripe`: usage as Stripe's meter events.
//! - `toml`: [`Document`]s read from and written as TOML.
//! - `usage`: minutes of usage with their latencies.
//! - `full`: all of them.

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(test),
    warn(
        clippy::expect_used,
        clippy::panic,
        clippy::print_stderr,
        clippy::print_stdout,
        clippy::unwrap_used
    )
)]

pub mod auth;
#[cfg(feature = "billing")]
#[cfg_attr(docsrs, doc(cfg(feature = "billing")))]
pub mod billing;
pub mod body;
pub mod clock;
#[cfg(feature = "conformance")]
#[cfg_attr(docsrs, doc(cfg(feature = "conformance")))]
pub mod conformance;
mod disk;
pub mod error;
mod field;
pub mod gate;
#[cfg(feature = "grpc")]
#[cfg_attr(docsrs, doc(cfg(feature = "grpc")))]
pub mod grpc;
#[cfg(not(feature = "grpc"))]
#[path = "grpc/off.rs"]
mod grpc;
pub mod guide;
pub mod head;
pub mod http_send;
pub mod id;
pub mod identity;
pub mod invoicing;
pub mod limit;
mod listeners;
pub mod meter;
#[cfg(feature = "openapi")]
#[cfg_attr(docsrs, doc(cfg(feature = "openapi")))]
pub mod openapi;
pub mod plan;
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub mod postgres_support;
pub mod pricing;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub mod redis_support;
pub mod request_id;
pub mod route;
mod series;
pub mod sink;
pub mod span;
pub mod tenant;
#[cfg(feature = "usage")]
#[cfg_attr(docsrs, doc(cfg(feature = "usage")))]
pub mod usage;

/// The readme's server, compiled like every other example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub use crate::{
    gate::{Document, Tollgate, TollgateBuilder, TollgateLayer},
    identity::{AuthLayer, Identity, TenantLayer},
    limit::LimitLayer,
    meter::{Meter, MeterLayer},
    plan::Plan,
    tenant::Tenant,
};

/// What a service that uses the gate needs in scope.
pub mod prelude {
    pub use crate::{
        LimitLayer, Tollgate,
        head::RequestHead,
        identity::{
            DeprecationLayer, Identity, IpAllowLayer, NewKey, RequireFeature, RequireScope,
        },
        limit::{Concurrency, Cost, MemoryLimits, Quota, Rate, Rule, Scope, Unit, Window},
        meter::Meter,
        plan::Plan,
        tenant::{AccessState, Tenant},
    };
}
