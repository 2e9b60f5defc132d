//! Behaviour through the public API.

mod abuse;
mod auth;
mod cloud_events;
mod common;
mod conformance;
mod errors;
mod gate;
mod grpc;
mod identity;
mod jwt;
mod limit;
mod limit_layer;
mod meter;
mod plan;
mod preflight;
mod redis_limits;
mod restart;
mod series;
mod sink;
mod span;
mod streams;
mod tenant;
mod tenant_store;
