use std::fmt;

use async_trait::async_trait;

use super::{DeliveryOrder, SinkError, UsageSink, Verdict, Verdicts};
use crate::meter::UsageEvent;

/// Lets the events through to a sink that a predicate chooses; the others are accepted and go nowhere.
///
/// The predicate must say the same of the same event each time, or a retried event may be lost.
pub struct Filter<S, P> {
    inner: S,
    chooses: P,
}

impl<S, P> Filter<S, P>
where
    S: UsageSink,
    P: Fn(&UsageEvent) -> bool + Send + Sync + 'static,
{
    /// Writes to `inner` the events for which `chooses` is true.
    pub const fn new(inner: S, chooses: P) -> Self {
        Self { inner, chooses }
    }
}

#[async_trait]
impl<S, P> UsageSink for Filter<S, P>
where
    S: UsageSink,
    P: Fn(&UsageEvent) -> bool + Send + Sync + 'static,
{
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        let chosen: Vec<bool> = batch.iter().map(&self.chooses).collect();
        if chosen.iter().all(|chosen| *chosen) {
            return self.inner.write(batch).await;
        }
        let events: Vec<UsageEvent> = batch
            .iter()
            .zip(&chosen)
            .filter(|(_, chosen)| **chosen)
            .map(|(event, _)| event.clone())
            .collect();
        if events.is_empty() {
            return Ok(Verdicts::AllAccepted);
        }
        let verdicts = match self.inner.write(&events).await? {
            Verdicts::AllAccepted => return Ok(Verdicts::AllAccepted),
            Verdicts::Each(verdicts) => verdicts,
        };
        let mut verdicts = verdicts.into_iter();
        let spread = chosen
            .into_iter()
            .map(|chosen| {
                if !chosen {
                    return Verdict::Accepted;
                }
                // An event without a verdict is offered again.
                verdicts.next().unwrap_or(Verdict::Retry {
                    after: std::time::Duration::ZERO,
                })
            })
            .collect();
        Ok(Verdicts::Each(spread))
    }

    fn order(&self) -> DeliveryOrder {
        self.inner.order()
    }
}

impl<S: fmt::Debug, P> fmt::Debug for Filter<S, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}
