//! Key, tenant, plan and compiled rules, resolved once and cached together.

#[expect(
    clippy::module_inception,
    reason = "the room is named after its main type"
)]
mod identity;

pub use self::identity::{Grant, Identity};
