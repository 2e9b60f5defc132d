use std::{fmt::Debug, sync::Arc, time::Duration};

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

/// Which events a sink must have in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeliveryOrder {
    /// None: while one batch waits for its retry, later ones may be offered.
    #[default]
    Any,
    /// Those of one tenant: while a batch waits for its retry, no batch with a later event of one of its tenants is
    /// offered. What a sink does within one batch is its own matter.
    PerTenant,
}

/// A sink gave no verdict on a batch: all of it is offered again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// The destination cannot be reached or does not serve now.
    #[error("the sink is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl SinkError {
    /// The destination cannot be reached or does not serve now; keeps the cause.
    #[must_use]
    pub fn unavailable(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unavailable(cause.into())
    }
}

/// Where usage goes.
///
/// # Contract
///
/// - Idempotent on [`UsageEvent::id`](crate::meter::UsageEvent): an event written twice counts once.
/// - [`Verdict::Accepted`] only after the event is as durable as the sink promises to make it.
/// - After an error, or no answer in time, the same batch is offered again: same events, same order. After
///   verdicts, what is offered again is exactly the events without a final one, in their order; no other event
///   ever joins a batch.
/// - After a restart, a batch that was not finished is offered whole, as it was made: same events, same order. Its
///   [`batch_id`](super::batch_id()) is the same again.
/// - A batch that never gets a verdict blocks the ones behind it. An event that cannot be written must be
///   [`Rejected`](Verdict::Rejected), or it stops the others.
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

    /// Which events must come in their order; none unless a sink says so.
    ///
    /// Order costs: a tenant whose batch waits holds up the other tenants of the batches behind it. An event that was
    /// rejected and is offered again later comes late, whatever is said here.
    fn order(&self) -> DeliveryOrder {
        DeliveryOrder::Any
    }
}

macro_rules! forward {
    ($pointer:ident) => {
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<T: UsageSink + ?Sized> UsageSink for $pointer<T> {
            async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
                (**self).write(batch).await
            }

            fn order(&self) -> DeliveryOrder {
                (**self).order()
            }
        }
    };
}

forward!(Arc);
forward!(Box);
