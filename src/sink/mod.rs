//! Where usage goes.

mod fan_out;
mod filter;
mod log;
mod memory;
mod offer;
mod usage_sink;

pub(crate) use self::offer::offer;
pub use self::{
    fan_out::{FanOut, SinkCounters},
    filter::Filter,
    log::LogSink,
    memory::MemorySink,
    usage_sink::{SinkError, UsageSink, Verdict, Verdicts},
};
