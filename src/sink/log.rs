use async_trait::async_trait;

use super::{SinkError, UsageSink, Verdict, Verdicts};
use crate::meter::UsageEvent;

/// Writes each event as one line of JSON: a `tracing` event of level INFO and target `tollgate::usage`, whose
/// message is the JSON.
///
/// A line carries the event's id, so that whoever reads the log can drop repetitions. `Accepted` means handed
/// to the `tracing` subscriber: whether it reaches a disk is the subscriber's matter, and an event is lost
/// where no subscriber listens to the target.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct LogSink;

impl LogSink {
    /// The target of the lines.
    pub const TARGET: &'static str = "tollgate::usage";

    /// A sink that logs.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

#[async_trait]
impl UsageSink for LogSink {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        if !tracing::enabled!(target: LogSink::TARGET, tracing::Level::INFO) {
            return Ok(Verdicts::AllAccepted);
        }
        let verdicts = batch
            .iter()
            .map(|event| match serde_json::to_string(event) {
                Ok(json) => {
                    tracing::info!(target: LogSink::TARGET, "{json}");
                    Verdict::Accepted
                }
                Err(_) => Verdict::Rejected { reason: "not_json" },
            })
            .collect();
        Ok(Verdicts::Each(verdicts))
    }
}
