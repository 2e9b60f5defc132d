use std::time::Duration;

use crate::{clock::micros, error::ConfigError};

/// How often a provider's keys are fetched, and how long they are used while it does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct JwksRefresh {
    pub(super) deadline: Duration,
    max_age: Duration,
    min_interval: Duration,
    stale_if_error: Duration,
}

impl JwksRefresh {
    /// The defaults of the setters below.
    pub const fn new() -> Self {
        Self {
            deadline: Duration::from_secs(5),
            max_age: Duration::from_secs(600),
            min_interval: Duration::from_secs(10),
            stale_if_error: Duration::from_secs(24 * 60 * 60),
        }
    }

    /// How long one fetch may take; 5 seconds unless set, more than zero.
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How long fetched keys are used; 10 minutes unless set. A key that the provider has withdrawn stops
    /// working after this time at the latest. After half of it they are fetched anew beside the traffic, so no
    /// call waits while there are calls.
    pub const fn max_age(mut self, max_age: Duration) -> Self {
        self.max_age = max_age;
        self
    }

    /// The least time between two fetches, whatever tokens come; 10 seconds unless set, at most half of
    /// [`max_age`](Self::max_age). Whoever invents key ids can have the provider asked so often and no more. A
    /// new key works after this time at the latest.
    pub const fn min_interval(mut self, min_interval: Duration) -> Self {
        self.min_interval = min_interval;
        self
    }

    /// How much longer than [`max_age`](Self::max_age) keys are used while fetches fail; 24 hours unless set.
    pub const fn stale_if_error(mut self, stale: Duration) -> Self {
        self.stale_if_error = stale;
        self
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let wrong = |field: &'static str, reason: &'static str| {
            Err(ConfigError::new(field, reason).under("refresh"))
        };
        if self.deadline.is_zero() {
            return wrong(
                "deadline",
                "no provider answers in no time: write 5 seconds or so",
            );
        }
        if self.min_interval.is_zero() {
            return wrong(
                "min_interval",
                "every invented key id would have the provider asked: write 10 seconds or so",
            );
        }
        if self.min_interval > self.max_age / 2 {
            return wrong("min_interval", "must be at most half of `max_age`");
        }
        Ok(())
    }

    pub(super) fn next_try(&self, now: u64) -> u64 {
        now.saturating_add(micros(self.min_interval))
    }

    /// How keys fetched so long ago stand.
    pub(super) fn age(&self, age: u64) -> Age {
        let max = micros(self.max_age);
        if age < max / 2 {
            Age::Young
        } else if age < max {
            Age::Good
        } else if age < max.saturating_add(micros(self.stale_if_error)) {
            Age::Stale
        } else {
            Age::Dead
        }
    }
}

impl Default for JwksRefresh {
    fn default() -> Self {
        Self::new()
    }
}

/// How fetched keys stand by their age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    /// Used, and nothing to do.
    Young,
    /// Used, and to be fetched anew.
    Good,
    /// Used only while fetches fail.
    Stale,
    /// Not used.
    Dead,
}
