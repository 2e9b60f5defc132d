//! Behaviour through the public API.

mod common;
mod errors;
mod meter;
mod sink;
