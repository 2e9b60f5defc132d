//! What every process shares in a real Redis, through the public API.

#[allow(
    dead_code,
    unused_imports,
    reason = "shared with the other test targets"
)]
mod common;
mod redis_limits;
mod redis_stores;
