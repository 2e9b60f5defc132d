//! Behaviour through the public API.

mod auth;
mod common;
mod errors;
mod limit;
mod limit_layer;
mod meter;
mod sink;
mod identity;
mod plan;
mod tenant;
mod tenant_store;
