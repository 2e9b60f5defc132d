//! Behaviour through the public API.

mod limit;
