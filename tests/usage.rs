//! Usage on its way from the recorder to real servers, and what is told of it, through the public API.

#[allow(
    dead_code,
    unused_imports,
    reason = "shared with the other test targets"
)]
mod common;
#[path = "usage/postgres_support.rs"]
mod postgres_support;
#[path = "usage/stripe_emulator.rs"]
mod stripe_emulator;
