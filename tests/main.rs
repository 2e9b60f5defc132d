//! Behaviour through the public API.

mod auth;
mod common;
mod errors;
mod limit;
mod tenant_store;
