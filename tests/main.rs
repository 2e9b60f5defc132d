//! Behaviour through the public API.

mod common;
mod errors;
