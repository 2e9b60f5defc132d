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
#[cfg(feature = "conformance")]
#[cfg_attr(docsrs, doc(cfg(feature = "conformance")))]
pub mod conformance;
pub mod error;
pub mod head;
pub mod id;
pub mod identity;
pub mod limit;
pub mod meter;
pub mod plan;
pub mod sink;
pub mod tenant;
