//! The arithmetic of a concurrency limit: at most L units in flight at any instant.

use super::{
    reading::{Reading, Wait},
    sliding_window::check_limit,
};
use crate::error::ConfigError;

/// A concurrency limit's numbers, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConcurrencyParameters {
    limit: u64,
    lease_micros: u64,
}

impl ConcurrencyParameters {
    /// At most `limit` units in flight; a hold that is neither released nor renewed lapses after
    /// `lease_micros`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with the path `limit` or `lease` when the limit is above
    /// [`Cost::MAX`](super::Cost::MAX) or the lease is zero.
    pub fn new(limit: u64, lease_micros: u64) -> Result<Self, ConfigError> {
        check_limit(limit)?;
        if lease_micros == 0 {
            return Err(ConfigError::new(
                "lease",
                "a lease of 0 frees a slot at once: write the longest time that a call may take",
            ));
        }
        Ok(Self {
            limit,
            lease_micros,
        })
    }

    /// Units in flight.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// The time after which a hold lapses that is neither released nor renewed, in microseconds. A store in
    /// this process's memory needs none.
    #[must_use]
    pub const fn lease_micros(&self) -> u64 {
        self.lease_micros
    }

    /// How long a call of `amount` units waits while `used` are in flight.
    #[must_use]
    pub const fn wait(&self, used: u64, amount: u64) -> Wait {
        if amount > self.limit || self.limit == 0 {
            Wait::Forever
        } else if used <= self.limit - amount {
            Wait::Zero
        } else {
            Wait::Unknown
        }
    }

    /// The count while `used` units are in flight.
    #[must_use]
    pub const fn read(&self, used: u64) -> Reading {
        Reading::new(used, self.limit.saturating_sub(used), None)
    }
}
