//! The arithmetic of a token bucket: integers only, no clock, no state of its own.
//!
//! n units come back in each period P, continuously, up to a burst b. Over any window of length W the bucket
//! admits at most **b + n/P · W** units.
//!
//! Nothing is ever rounded while time passes, so that 7 per 60 s does not drift: n/P is reduced to n' units in
//! P' microseconds, and time is counted in *ticks* of 1/n' microsecond. Then one microsecond is n' ticks, one
//! unit is P' ticks and the whole bucket is b·P' ticks, all of them integers. The only state is the tick at
//! which the bucket will be full again; the difference to now is the bucket's *deficit*. The tick is kept
//! modulo 2^64: differences stay exact as long as they are below 2^63, see
//! [`horizon_seconds`](BucketParameters::horizon_seconds).

use super::reading::{Reading, Wait};
use crate::error::ConfigError;

const MICROS_PER_SECOND: u64 = 1_000_000;
/// Every store must hold a full bucket exactly, and Redis scripts compute in doubles.
const MAX_CAPACITY: u64 = 1 << 53;
/// Keeps [`BucketParameters::horizon_seconds`] at one or more: (1 + 1) s · n' must stay below 2^63.
const MAX_TICKS_PER_MICRO: u64 = 1 << 42;

/// A token bucket's numbers, reduced and checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BucketParameters {
    ticks_per_micro: u64,
    ticks_per_unit: u64,
    burst: u64,
    /// Follows from the others; kept because a division is what a decision has most of.
    horizon_seconds: u64,
}

impl BucketParameters {
    /// Reduces `n` units per `period_micros` with bursts of `burst`.
    ///
    /// A bucket of `n` = 0 and `burst` = 0 is legal and holds nothing.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with the path `period`, `burst` or `limit` when the period is zero, one of `n` and
    /// `burst` alone is zero, `burst` x the reduced period is above 2^53, or the reduced `n` is 2^42 or more.
    pub fn new(n: u64, period_micros: u64, burst: u64) -> Result<Self, ConfigError> {
        if period_micros == 0 {
            return Err(ConfigError::new(
                "period",
                "a rate needs a period of at least one microsecond",
            ));
        }
        if n == 0 && burst > 0 {
            return Err(ConfigError::new(
                "limit",
                "a rate of 0 never refills its burst: write a rate of at least 1, or a burst of 0 to refuse every call",
            ));
        }
        if burst == 0 && n > 0 {
            return Err(ConfigError::new(
                "burst",
                "a burst of 0 refuses every call: write a burst of at least 1, or a rate of 0 if that is meant",
            ));
        }
        let divisor = greatest_common_divisor(n, period_micros);
        let (ticks_per_micro, ticks_per_unit) = (n / divisor, period_micros / divisor);
        if ticks_per_micro >= MAX_TICKS_PER_MICRO {
            return Err(ConfigError::new(
                "limit",
                format!(
                    "{n} units per {period_micros} microseconds is too high a rate to count exactly: lower it, or use `Rule::unlimited()`"
                ),
            ));
        }
        match burst.checked_mul(ticks_per_unit) {
            Some(capacity) if capacity <= MAX_CAPACITY => {
                Ok(Self::from_parts(ticks_per_micro, ticks_per_unit, burst))
            }
            _ => Err(ConfigError::new(
                "burst",
                format!(
                    "a burst of {burst} over {ticks_per_unit} microseconds is above 2^53 and cannot be counted exactly: write a burst of at most {}",
                    MAX_CAPACITY / ticks_per_unit
                ),
            )),
        }
    }

    /// Parameters that were checked before, from their parts.
    pub(super) const fn from_parts(ticks_per_micro: u64, ticks_per_unit: u64, burst: u64) -> Self {
        Self {
            ticks_per_micro,
            ticks_per_unit,
            burst,
            horizon_seconds: (1 << 62) / at_least_one(ticks_per_micro) / MICROS_PER_SECOND,
        }
    }

    /// n', the ticks in a microsecond: the numerator of the reduced rate in units per microsecond.
    #[must_use]
    pub const fn ticks_per_micro(&self) -> u64 {
        self.ticks_per_micro
    }

    /// P', the ticks in a unit: the denominator of the reduced rate in units per microsecond.
    #[must_use]
    pub const fn ticks_per_unit(&self) -> u64 {
        self.ticks_per_unit
    }

    /// The units of a full bucket.
    #[must_use]
    pub const fn burst(&self) -> u64 {
        self.burst
    }

    /// The ticks of a full bucket, at most 2^53.
    #[must_use]
    pub const fn capacity(&self) -> u64 {
        self.burst.saturating_mul(self.ticks_per_unit)
    }

    /// The ticks that a bucket can lack at most: one burst of debt below empty, so that nobody is locked out
    /// for longer than two full refills.
    #[must_use]
    pub const fn max_deficit(&self) -> u64 {
        self.capacity().saturating_mul(2)
    }

    /// The time of a full refill in microseconds, rounded up.
    #[must_use]
    pub const fn refill_micros(&self) -> u64 {
        self.capacity().div_ceil(at_least_one(self.ticks_per_micro))
    }

    /// `now` as a tick, modulo 2^64.
    #[must_use]
    pub const fn tick(&self, now_micros: u64) -> u64 {
        now_micros.wrapping_mul(self.ticks_per_micro)
    }

    /// The whole seconds for which a stored tick can be compared with now. A bucket that was left alone for
    /// longer is full. At least one.
    #[must_use]
    pub const fn horizon_seconds(&self) -> u64 {
        self.horizon_seconds
    }

    /// The ticks that the bucket lacks now, when it will be full at `full_at`: 0 for a full bucket.
    #[must_use]
    pub const fn deficit(&self, full_at: u64, now_micros: u64) -> u64 {
        let difference = full_at.wrapping_sub(self.tick(now_micros)).cast_signed();
        if difference < 0 {
            0
        } else {
            difference.cast_unsigned()
        }
    }

    /// The tick at which a bucket that lacks `deficit` now will be full.
    #[must_use]
    pub const fn full_at(&self, deficit: u64, now_micros: u64) -> u64 {
        self.tick(now_micros).wrapping_add(deficit)
    }

    /// The deficit after taking `amount` units, and how many of them were taken: all, unless the debt would
    /// pass [`max_deficit`](Self::max_deficit).
    #[must_use]
    pub const fn charge(&self, deficit: u64, amount: u64) -> (u64, u64) {
        let asked = deficit.saturating_add(amount.saturating_mul(self.ticks_per_unit));
        if asked <= self.max_deficit() {
            return (asked, amount);
        }
        let taken = self.max_deficit().saturating_sub(deficit) / at_least_one(self.ticks_per_unit);
        let reached = if deficit > self.max_deficit() {
            deficit
        } else {
            self.max_deficit()
        };
        (reached, taken)
    }

    /// The deficit after giving `amount` units back.
    #[must_use]
    pub const fn give_back(&self, deficit: u64, amount: u64) -> u64 {
        deficit.saturating_sub(amount.saturating_mul(self.ticks_per_unit))
    }

    /// How long a call of `amount` units waits. No units pass unless the bucket is in debt.
    #[must_use]
    pub const fn wait(&self, deficit: u64, amount: u64) -> Wait {
        if amount > self.burst || self.burst == 0 {
            return Wait::Forever;
        }
        let available_from = self.capacity() - amount * self.ticks_per_unit;
        if deficit <= available_from {
            return Wait::Zero;
        }
        Wait::micros((deficit - available_from).div_ceil(at_least_one(self.ticks_per_micro)))
    }

    /// The count in units: what is left is rounded down, what is used rounded up.
    #[must_use]
    pub const fn read(&self, deficit: u64) -> Reading {
        let used = ceil(deficit, self.ticks_per_unit);
        let remaining = self.burst.saturating_sub(used);
        // One unit more comes back when the deficit has fallen to this.
        let next = if used < self.burst { used } else { self.burst };
        let deficit_then = next.saturating_sub(1).saturating_mul(self.ticks_per_unit);
        let reset_micros = if deficit == 0 || self.burst == 0 {
            None
        } else {
            Some(ceil(deficit - deficit_then, self.ticks_per_micro))
        };
        Reading::new(used, remaining, reset_micros)
    }

    /// The deficit that keeps a bucket's level in proportion when its numbers change from `old` to these:
    /// 40 left of 100 become 80 of 200. Rounded against the caller by at most one tick, so that changing back
    /// and forth never refills.
    #[must_use]
    pub const fn rescale(&self, old: &Self, deficit: u64) -> u64 {
        if old.capacity() == 0 {
            return 0;
        }
        // Below 2^117: a deficit is below 2^64 and a capacity at most 2^53.
        let scaled = (deficit as u128 * self.capacity() as u128).div_ceil(old.capacity() as u128);
        if scaled > self.max_deficit() as u128 {
            self.max_deficit()
        } else {
            scaled as u64
        }
    }
}

/// The quotient rounded up. Most rates are a whole number of units in a microsecond or of microseconds for a unit,
/// so one of the two divisors is mostly 1, and a division is dearer than to look.
const fn ceil(n: u64, divisor: u64) -> u64 {
    if divisor <= 1 { n } else { n.div_ceil(divisor) }
}

/// Only a bucket that holds nothing has a zero here, and nothing is asked of it; a division must still be safe.
const fn at_least_one(n: u64) -> u64 {
    if n == 0 { 1 } else { n }
}

const fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(n: u64, period_micros: u64, burst: u64) -> BucketParameters {
        BucketParameters::new(n, period_micros, burst).unwrap()
    }

    #[test]
    fn a_rate_is_reduced_to_its_lowest_terms() {
        let seven_a_minute = bucket(7, 60_000_000, 7);
        assert_eq!(seven_a_minute.ticks_per_micro(), 7);
        assert_eq!(seven_a_minute.ticks_per_unit(), 60_000_000);
        let five_a_second = bucket(5, 1_000_000, 10);
        assert_eq!(five_a_second.ticks_per_micro(), 1);
        assert_eq!(five_a_second.ticks_per_unit(), 200_000);
        assert_eq!(five_a_second.refill_micros(), 2_000_000);
    }

    #[test]
    fn ticks_compare_across_the_wrap() {
        // n' is 1,000,000,007, so the tick wraps every five hours: stand just before a wrap.
        let bucket = bucket(1_000_000_007, 1_000_000, 10_000);
        let now = u64::MAX / bucket.ticks_per_micro();
        let (deficit, _) = bucket.charge(0, 10_000);
        let full_at = bucket.full_at(deficit, now);
        assert!(full_at < bucket.tick(now), "the sum wrapped");
        assert_eq!(bucket.deficit(full_at, now), deficit);
        assert_eq!(bucket.wait(deficit, 1), Wait::Micros(1));
        let a_microsecond_later = bucket.deficit(full_at, now + 1);
        assert_eq!(a_microsecond_later, deficit - bucket.ticks_per_micro());
        assert_eq!(bucket.refill_micros(), 10);
        assert_eq!(bucket.deficit(full_at, now + 10), 0);
    }

    #[test]
    fn a_debt_ends_at_one_burst() {
        let bucket = bucket(1, 1_000_000, 10);
        assert_eq!(bucket.charge(0, 25), (bucket.max_deficit(), 20));
        assert_eq!(bucket.charge(0, u64::MAX), (bucket.max_deficit(), 20));
        assert_eq!(
            bucket.wait(bucket.max_deficit(), 1),
            Wait::Micros(11_000_000)
        );
        assert_eq!(
            bucket.wait(bucket.max_deficit(), 0),
            Wait::Micros(10_000_000)
        );
    }

    #[test]
    fn the_level_is_rescaled_in_proportion_and_never_up() {
        let (hundred, two_hundred, twenty) = (
            bucket(100, 1_000_000, 100),
            bucket(200, 1_000_000, 200),
            bucket(20, 1_000_000, 20),
        );
        let (deficit, _) = hundred.charge(0, 60);
        assert_eq!(
            two_hundred
                .read(two_hundred.rescale(&hundred, deficit))
                .remaining,
            80
        );
        assert_eq!(twenty.read(twenty.rescale(&hundred, deficit)).remaining, 8);
        let odd = bucket(7, 60_000_000, 3);
        let mut toggled = deficit;
        for _ in 0..1_000 {
            let there = odd.rescale(&hundred, toggled);
            let back = hundred.rescale(&odd, there);
            assert!(back >= toggled);
            toggled = back;
        }
        assert!(toggled - deficit <= 1_000, "a tick for each toggle at most");
    }

    #[test]
    fn numbers_that_cannot_be_exact_are_refused() {
        let path = |n, period, burst| {
            BucketParameters::new(n, period, burst)
                .unwrap_err()
                .path()
                .to_owned()
        };
        assert_eq!(path(1, 0, 1), "period");
        assert_eq!(path(0, 1, 1), "limit");
        assert_eq!(path(1, 1, 0), "burst");
        assert_eq!(path((1 << 42) + 3, 1_000_000, 1), "limit");
        assert_eq!(path(u64::MAX, 1_000_000, u64::MAX), "limit");
        assert_eq!(path(1, 1_000_000, (1 << 53) / 1_000_000 + 1), "burst");
        assert!(BucketParameters::new(1, 1_000_000, (1 << 53) / 1_000_000).is_ok());
        assert!(BucketParameters::new(1_000_000_000, 1_000_000, 1 << 53).is_ok());
    }
}
