//! What a call used.

mod event;
#[expect(
    clippy::module_inception,
    reason = "the room is named after its main type"
)]
mod meter;

pub use self::{
    event::{CallOutcome, EventId, UsageEvent},
    meter::{MAX_QUANTITIES, Meter},
};
