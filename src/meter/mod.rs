//! What a call used.

mod body;
mod config;
mod counters;
mod encode;
mod event;
mod export;
#[cfg(feature = "axum")]
mod extract;
mod flush;
mod future;
mod guard;
mod layer;
#[expect(
    clippy::module_inception,
    reason = "the room is named after its main type"
)]
mod meter;
mod recorder;
mod service;

use self::event::{forges_a_line, printable};
pub use self::{
    body::MeterBody,
    config::RecorderBuilder,
    counters::Counters,
    event::{CallOutcome, EventId, UsageEvent},
    flush::DeadLetter,
    future::ResponseFuture,
    layer::MeterLayer,
    meter::{MAX_QUANTITIES, MAX_QUANTITY_NAME_BYTES, Meter},
    recorder::{FlushReport, Recorder},
    service::Metered,
};
