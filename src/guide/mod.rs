//! How the crate works and why.
//!
//! - [`architecture`]: the rooms of the crate, how a call walks through them, and what is deliberately absent.
//! - [`layer_order`]: why the layers stand in their order, and where yours go.
//! - [`defaults`]: each default as a question, with its reason.
//! - [`errors`]: every error code, and what a client should do.
//! - [`failure`]: what happens when a store, a sink, a process or a client fails.
//! - [`streaming`]: streams, clients that leave, connections that leave HTTP, and bodies that are counted.
//! - [`metering`]: what of usage is lost, what is doubled, what each choice costs, and what a sink has to do.
//! - [`grpc`]: what gRPC callers are told, how their calls are metered, and what to set.
#![cfg_attr(
    feature = "jwt",
    doc = "- [`tokens`]: access tokens of an identity provider: what is checked, and what happens when it fails."
)]
//! - [`restart`]: what survives a restart and a kill, one document for keys, tenants and plans, the snapshot of quotas.
#![cfg_attr(
    feature = "redis",
    doc = "- [`redis`]: what limits in Redis promise and what they cost."
)]
#![cfg_attr(
    all(feature = "postgres", feature = "redis", feature = "usage"),
    doc = "- [`usage`]: the way of an event to a line of an invoice, its tables, and what survives what."
)]
#![cfg_attr(
    feature = "postgres",
    doc = "- [`postgres`]: keys, tenants and rows of your own in PostgreSQL: migrations, roles, row-level security."
)]
#![cfg_attr(
    all(feature = "postgres", feature = "usage"),
    doc = "- [`insight`]: what usage says: questions, objectives, drift, deprecated versions, margins."
)]
#![cfg_attr(
    feature = "openapi",
    doc = "- [`openapi`]: what each caller sees of the API's document."
)]
#![cfg_attr(
    feature = "billing",
    doc = "- [`billing`]: a payment provider's events, from the route they come to until a tenant's access follows."
)]
//! - [`sinks`]: each destination of usage: what it promises, what to set on its server, its limits.
//! - [`pricing`]: each price model with a worked example, rounding, plans that change within a period.
//! - [`invoices`]: drafts of invoices, corrections for what arrives late, and where drafts go.
//! - [`metrics`]: every metric with its labels, and what to watch.

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[cfg(feature = "billing")]
#[cfg_attr(docsrs, doc(cfg(feature = "billing")))]
#[doc = include_str!("billing.md")]
pub mod billing {}

#[doc = include_str!("defaults.md")]
pub mod defaults {}

#[doc = include_str!("errors.md")]
pub mod errors {}

#[doc = include_str!("failure.md")]
pub mod failure {}

#[doc = include_str!("grpc.md")]
pub mod grpc {}

#[doc = include_str!("layer_order.md")]
pub mod layer_order {}

#[cfg(all(feature = "postgres", feature = "usage"))]
#[cfg_attr(docsrs, doc(cfg(all(feature = "postgres", feature = "usage"))))]
#[doc = include_str!("insight.md")]
pub mod insight {}

#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
#[doc = include_str!("postgres.md")]
pub mod postgres {}

#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
#[doc = include_str!("redis.md")]
pub mod redis {}

#[cfg(feature = "jwt")]
#[cfg_attr(docsrs, doc(cfg(feature = "jwt")))]
#[doc = include_str!("tokens.md")]
pub mod tokens {}

#[doc = include_str!("sinks.md")]
pub mod sinks {}

#[doc = include_str!("streaming.md")]
pub mod streaming {}

#[doc = include_str!("metering.md")]
pub mod metering {}

#[doc = include_str!("metrics.md")]
pub mod metrics {}

#[doc = include_str!("restart.md")]
pub mod restart {}

#[cfg(all(feature = "postgres", feature = "redis", feature = "usage"))]
#[cfg_attr(
    docsrs,
    doc(cfg(all(feature = "postgres", feature = "redis", feature = "usage")))
)]
#[doc = include_str!("usage.md")]
pub mod usage {}

#[cfg(feature = "openapi")]
#[cfg_attr(docsrs, doc(cfg(feature = "openapi")))]
#[doc = include_str!("openapi.md")]
pub mod openapi {}

#[doc = include_str!("pricing.md")]
pub mod pricing {}

#[doc = include_str!("invoices.md")]
pub mod invoices {}
