//! Who calls: what is cached of it, how changes reach it, and what a request may bring along.

mod admin;
mod cache;
mod call;
mod changes;
pub(crate) mod fake;
mod guards;
mod layer;
mod refusals;
mod spoofing;
mod uses;
