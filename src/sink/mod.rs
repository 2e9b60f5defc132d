//! Where usage goes.

mod usage_sink;

pub use self::usage_sink::{SinkError, UsageSink, Verdict, Verdicts};
