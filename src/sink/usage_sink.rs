use std::{fmt::Debug, time::Duration};

use async_trait::async_trait;

use crate::meter::UsageEvent;

/// What a sink says of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Written for good.
    Accepted,
    /// Was there already: as good as accepted.
    Duplicate,
    /// Not written; offer it again, not before this time has passed.
    Retry {
        /// The shortest wait; zero leaves it to the backoff.
        after: Duration,
    },
    /// Not written, and never will be as it is: the event goes to the dead letters.
    Rejected {
        /// Why, for people and metrics: a short constant.
        reason: &'static str,
    },
}

/// A sink's verdicts on a batch, one for each event in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdicts {
    /// Every event was accepted (or was a duplicate).
    AllAccepted,
    /// One verdict for each event, in the batch's order. Events without a verdict are offered again.
    Each(Vec<Verdict>),
}

/// A sink gave no verdict on a batch: all of it is offered again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// The destination cannot be reached or does not serve now.
    #[error("the sink is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Where usage goes.
///
/// # Contract
///
/// - Idempotent on [`UsageEvent::id`](crate::meter::UsageEvent): an event written twice counts once.
/// - [`Verdict::Accepted`] only after the event is as durable as the sink promises to make it.
/// - A batch that is retried is the same batch: same events, same order.
/// - May be slow: nothing on the request path waits for it.
#[async_trait]
pub trait UsageSink: Debug + Send + Sync + 'static {
    /// Writes a batch and says of each event what became of it.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have written any part of the batch; the batch is offered again.
    ///
    /// # Errors
    ///
    /// [`SinkError`] when there is no verdict at all.
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError>;
}
