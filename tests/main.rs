//! Behaviour through the public API.

mod auth;
mod tenant_store;
