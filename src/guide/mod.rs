//! How the crate works and why: pages without code.
//!
//! - [`architecture`]: the rooms of the crate, how a call walks through them, and what is deliberately absent.
//! - [`layer_order`]: why the layers stand in their order, and where yours go.
//! - [`defaults`]: each default as a question, with its reason.
//! - [`errors`]: every error code, and what a client should do.
//! - [`failure`]: what happens when a store, a sink, a process or a client fails.
//! - [`restart`]: what survives a restart and a kill, one document for keys, tenants and plans, the snapshot of quotas.

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = include_str!("defaults.md")]
pub mod defaults {}

#[doc = include_str!("errors.md")]
pub mod errors {}

#[doc = include_str!("failure.md")]
pub mod failure {}

#[doc = include_str!("layer_order.md")]
pub mod layer_order {}

#[doc = include_str!("restart.md")]
pub mod restart {}
