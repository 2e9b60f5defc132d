//! Behaviour through the public API.

mod auth;
mod common;
mod errors;
mod identity;
mod plan;
mod tenant;
mod tenant_store;
