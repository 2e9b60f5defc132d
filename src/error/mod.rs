//! One JSON form for every error (RFC 9457).

mod code;
mod config;
mod problem;

pub use self::{code::ErrorCode, config::ConfigError, problem::Problem};
