use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use super::{SinkError, UsageSink, Verdict, Verdicts};
use crate::{
    id::TenantId,
    meter::{EventId, UsageEvent},
};

/// Keeps events in memory, each once: for tests and for a look at the traffic of the last minutes.
///
/// Cloning gives a second handle to the same events. Unbounded unless made by [`MemorySink::keeping`].
#[derive(Clone, Debug, Default)]
pub struct MemorySink {
    kept: Arc<Mutex<Kept>>,
    max_events: Option<usize>,
}

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<UsageEvent>,
    ids: HashSet<EventId>,
    duplicates: u64,
}

impl MemorySink {
    /// A sink that keeps everything.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A sink that keeps the latest `max_events`. An event that has left counts as new when it is written
    /// again.
    #[must_use]
    pub fn keeping(max_events: usize) -> Self {
        Self {
            max_events: Some(max_events),
            ..Self::default()
        }
    }

    /// The events, in the order in which they were first written.
    #[must_use]
    pub fn events(&self) -> Vec<UsageEvent> {
        self.kept().events.iter().cloned().collect()
    }

    /// The events of one tenant.
    #[must_use]
    pub fn of_tenant(&self, tenant: &TenantId) -> Vec<UsageEvent> {
        let kept = self.kept();
        let own = kept.events.iter().filter(|event| event.tenant == *tenant);
        own.cloned().collect()
    }

    /// The sum of a named quantity over the events of one tenant; stays at `u64::MAX` when it would overflow.
    #[must_use]
    pub fn total(&self, tenant: &TenantId, quantity: &str) -> u64 {
        let kept = self.kept();
        let own = kept.events.iter().filter(|event| event.tenant == *tenant);
        own.filter_map(|event| event.quantities.get(quantity))
            .fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// How many events there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept().events.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many events were written again.
    #[must_use]
    pub fn duplicates(&self) -> u64 {
        self.kept().duplicates
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl UsageSink for MemorySink {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        let mut guard = self.kept();
        let kept = &mut *guard;
        let verdicts = batch
            .iter()
            .map(|event| {
                if !kept.ids.insert(event.id) {
                    kept.duplicates += 1;
                    return Verdict::Duplicate;
                }
                kept.events.push_back(event.clone());
                if self.max_events.is_some_and(|max| kept.events.len() > max)
                    && let Some(oldest) = kept.events.pop_front()
                {
                    kept.ids.remove(&oldest.id);
                }
                Verdict::Accepted
            })
            .collect();
        Ok(Verdicts::Each(verdicts))
    }
}
