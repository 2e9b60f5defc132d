//! Events that are offered together.

use std::sync::{Arc, OnceLock};

use super::{event::UsageEvent, spool::Secured};

/// A batch as it was made: its events never change, and none joins.
pub(super) struct Frozen {
    pub(super) events: Arc<Vec<UsageEvent>>,
    /// Set by the spool itself, so that a task that is cut off while a batch is written knows what became of it.
    secured: OnceLock<Secured>,
}

impl Frozen {
    pub(super) fn new(events: Vec<UsageEvent>) -> Self {
        Self::of(Arc::new(events))
    }

    pub(super) const fn of(events: Arc<Vec<UsageEvent>>) -> Self {
        Self {
            events,
            secured: OnceLock::new(),
        }
    }

    pub(super) fn secured(&self) -> Option<Secured> {
        self.secured.get().copied()
    }

    pub(super) fn secure(&self, place: Secured) {
        let _ = self.secured.set(place);
    }
}
