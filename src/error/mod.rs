//! One JSON form for every error (RFC 9457).

mod code;
mod config;
mod json;
mod problem;
mod response;

pub use self::{code::ErrorCode, config::ConfigError, json::DEFAULT_TYPE_BASE, problem::Problem};
