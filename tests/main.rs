//! Behaviour through the public API.

mod common;
mod errors;
mod auth;
mod tenant_store;
