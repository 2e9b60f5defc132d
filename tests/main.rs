//! Behaviour through the public API.

mod auth;
mod common;
mod errors;
mod tenant_store;
