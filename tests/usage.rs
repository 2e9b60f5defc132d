//! Usage on its way from the recorder to real servers, and what is told of it, through the public API.

#[allow(
    dead_code,
    unused_imports,
    reason = "shared with the other test targets"
)]
mod common;
#[path = "usage/postgres_sink.rs"]
mod postgres_sink;
#[path = "usage/postgres_support.rs"]
mod postgres_support;
#[path = "usage/redis_stream.rs"]
mod redis_stream;
#[path = "usage/rollup.rs"]
mod rollup;
#[path = "usage/support.rs"]
mod support;
