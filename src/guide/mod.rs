//! How the crate works and why: pages without code.

#[doc = include_str!("errors.md")]
pub mod errors {}
