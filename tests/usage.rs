//! Usage on its way from the recorder to real servers, and what is told of it, through the public API.

#[path = "usage/clickhouse.rs"]
mod clickhouse;
#[path = "usage/cloud_events_http.rs"]
mod cloud_events_http;
#[allow(
    dead_code,
    unused_imports,
    reason = "shared with the other test targets"
)]
mod common;
#[path = "usage/kafka.rs"]
mod kafka;
#[path = "usage/postgres_support.rs"]
mod postgres_support;
#[path = "usage/sample.rs"]
mod sample;
#[path = "usage/stripe_emulator.rs"]
mod stripe_emulator;
#[path = "usage/stripe_meter.rs"]
mod stripe_meter;
