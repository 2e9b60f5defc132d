//! Tower middleware that turns an HTTP API into a paid one.

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(test),
    warn(
        clippy::expect_used,
        clippy::panic,
        clippy::print_stderr,
        clippy::print_stdout,
        clippy::unwrap_used
    )
)]

pub mod auth;
pub mod body;
pub mod clock;
pub mod error;
pub mod guide;
pub mod head;
pub mod id;
pub mod identity;
pub mod limit;
pub mod meter;
pub mod plan;
pub mod request_id;
pub mod sink;
pub mod tenant;

/// The readme's server, compiled like every other example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
