//! Usage on its way from the recorder to real servers, and what is told of it, through the public API.

#[path = "usage/billed.rs"]
mod billed;
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
#[path = "usage/country.rs"]
mod country;
#[path = "usage/delivery.rs"]
mod delivery;
#[path = "usage/deprecation.rs"]
mod deprecation;
#[path = "usage/kafka.rs"]
mod kafka;
#[path = "usage/kill.rs"]
mod kill;
#[path = "usage/margin.rs"]
mod margin;
#[path = "usage/minutes.rs"]
mod minutes;
#[path = "usage/postgres_sink.rs"]
mod postgres_sink;
#[path = "usage/postgres_stores.rs"]
mod postgres_stores;
#[path = "usage/postgres_support.rs"]
mod postgres_support;
#[path = "usage/query.rs"]
mod query;
#[path = "usage/reconcile.rs"]
mod reconcile;
#[path = "usage/redis_stream.rs"]
mod redis_stream;
#[path = "usage/rollup.rs"]
mod rollup;
#[path = "usage/row_level_security.rs"]
mod row_level_security;
#[path = "usage/sample.rs"]
mod sample;
#[path = "usage/sla.rs"]
mod sla;
#[path = "usage/spool.rs"]
mod spool;
#[path = "usage/spool_letters.rs"]
mod spool_letters;
#[path = "usage/spool_sync.rs"]
mod spool_sync;
#[path = "usage/stand.rs"]
mod stand;
#[path = "usage/stripe_emulator.rs"]
mod stripe_emulator;
#[path = "usage/stripe_meter.rs"]
mod stripe_meter;
#[path = "usage/stripe_rejects.rs"]
mod stripe_rejects;
#[path = "usage/support.rs"]
mod support;
