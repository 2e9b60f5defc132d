//! Behaviour through the public API.

mod abuse;
mod auth;
mod cloud_events;
#[allow(dead_code, reason = "shared with the other test targets")]
mod common;
mod conformance;
mod errors;
mod gate;
mod grpc;
mod identity;
mod jwt;
mod limit;
mod limit_layer;
mod meter;
mod plan;
mod preflight;
mod restart;
mod series;
mod sink;
mod span;
mod streams;
mod tenant;
mod tenant_store;
