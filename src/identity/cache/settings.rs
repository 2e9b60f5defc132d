use std::time::Duration;

use crate::{clock::micros, error::ConfigError};

/// How long and how many identities are kept, and what happens while a store does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct CacheSettings {
    pub(in crate::identity) capacity: usize,
    pub(in crate::identity) max_waiting: usize,
    pub(in crate::identity) negative_capacity: usize,
    pub(in crate::identity) negative_ttl: Duration,
    pub(in crate::identity) stale_if_error: Duration,
    pub(in crate::identity) store_deadline: Duration,
    pub(in crate::identity) ttl: Duration,
}

/// After a store failed, how long what is stale is served before the store is asked again.
const RETRY_AFTER_ERROR_MICROS: u64 = 1_000_000;

impl CacheSettings {
    /// The defaults of the setters below.
    pub const fn new() -> Self {
        Self {
            capacity: 100_000,
            max_waiting: 10_000,
            negative_capacity: 10_000,
            negative_ttl: Duration::from_secs(5),
            stale_if_error: Duration::from_secs(60),
            store_deadline: Duration::from_secs(1),
            ttl: Duration::from_secs(10),
        }
    }

    /// How many working keys are kept; 100,000 unless set, at least 1.
    pub const fn capacity(mut self, n_keys: usize) -> Self {
        self.capacity = n_keys;
        self
    }

    /// How many requests may wait for a store at once; 10,000 unless set. The next ones are answered 503.
    pub const fn max_waiting(mut self, n_requests: usize) -> Self {
        self.max_waiting = n_requests;
        self
    }

    /// How many keys that do not work are kept, apart from the working ones, so that a flood of invented keys
    /// displaces none of those; 10,000 unless set, at least 1.
    pub const fn negative_capacity(mut self, n_keys: usize) -> Self {
        self.negative_capacity = n_keys;
        self
    }

    /// How long a key that does not work is refused without asking the store again; 5 seconds unless set.
    pub const fn negative_ttl(mut self, ttl: Duration) -> Self {
        self.negative_ttl = ttl;
        self
    }

    /// How much longer than [`ttl`](Self::ttl) a key that was seen to work is served while its store fails;
    /// 60 seconds unless set. Never for a key that was revoked, or that is known to have changed.
    pub const fn stale_if_error(mut self, stale: Duration) -> Self {
        self.stale_if_error = stale;
        self
    }

    /// How long the stores may take to answer before they count as failed; 1 second unless set, more than
    /// zero.
    pub const fn store_deadline(mut self, deadline: Duration) -> Self {
        self.store_deadline = deadline;
        self
    }

    /// How long an answer of the stores is used; 10 seconds unless set. A change that a store does not
    /// announce is seen after this time at the latest. Zero asks the stores each time.
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    pub(in crate::identity) fn check(&self) -> Result<(), ConfigError> {
        let zero = |field| Err(ConfigError::new(field, "must be at least 1").under("cache"));
        if self.capacity == 0 {
            return zero("capacity");
        }
        if self.negative_capacity == 0 {
            return zero("negative_capacity");
        }
        if self.max_waiting == 0 {
            return zero("max_waiting");
        }
        if self.store_deadline.is_zero() {
            return Err(ConfigError::new(
                "cache.store_deadline",
                "no store answers in no time: write a second or so",
            ));
        }
        Ok(())
    }

    /// When something fetched at `now` must be fetched again.
    pub(super) fn due_after(&self, now: u64) -> u64 {
        now.saturating_add(micros(self.ttl)).max(1)
    }

    /// When the store is to be asked again after it failed at `now`; `None` when what was fetched at
    /// `fetched_at` is too old to be served.
    pub(super) fn due_after_error(&self, fetched_at: u64, now: u64) -> Option<u64> {
        let end = self.end_of_life(fetched_at);
        (now < end).then(|| now.saturating_add(RETRY_AFTER_ERROR_MICROS).min(end).max(1))
    }

    pub(super) fn negative_until(&self, now: u64) -> u64 {
        now.saturating_add(micros(self.negative_ttl))
    }

    /// Until when something fetched at `fetched_at` may be served at all.
    pub(super) fn end_of_life(&self, fetched_at: u64) -> u64 {
        fetched_at
            .saturating_add(micros(self.ttl))
            .saturating_add(micros(self.stale_if_error))
    }
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self::new()
    }
}
