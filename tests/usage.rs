//! Usage on its way from the recorder to real servers, and what is told of it, through the public API.

#[allow(
    dead_code,
    unused_imports,
    reason = "shared with the other test targets"
)]
mod common;
#[path = "usage/postgres_stores.rs"]
mod postgres_stores;
#[path = "usage/postgres_support.rs"]
mod postgres_support;
#[path = "usage/row_level_security.rs"]
mod row_level_security;
