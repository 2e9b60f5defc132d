use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// A token bucket in one number: the time at which the bucket would be full again, in microseconds of the
/// monotonic clock. Zero is a full bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Microseconds until one token is back.
    interval: u64,
    /// Microseconds until an empty bucket is full.
    full: u64,
}

impl Pace {
    /// `n` per `period`, at most `burst` at once; zeros count as one. The interval is rounded up, so the
    /// pace is never faster than asked for.
    pub(super) fn new(n: u32, period: Duration, burst: u32) -> Self {
        let interval = crate::clock::micros(period)
            .div_ceil(u64::from(n.max(1)))
            .max(1);
        Self {
            interval,
            full: interval.saturating_mul(u64::from(burst.max(1))),
        }
    }

    /// Whether a token is there; else how long until one is.
    pub(super) fn check(self, state: &AtomicU64, now: u64) -> Result<(), Duration> {
        self.room(state.load(Ordering::Relaxed), now)
    }

    fn room(self, full_at: u64, now: u64) -> Result<(), Duration> {
        let after = full_at.max(now).saturating_add(self.interval);
        match after.saturating_sub(now.saturating_add(self.full)) {
            0 => Ok(()),
            wait => Err(Duration::from_micros(wait)),
        }
    }

    /// Takes a token, also from an empty bucket, which stays empty: concurrent takers cannot lock anybody
    /// out for longer than one refill.
    pub(super) fn take(self, state: &AtomicU64, now: u64) {
        let limit = now.saturating_add(self.full);
        let taken = |full_at: u64| Some(full_at.max(now).saturating_add(self.interval).min(limit));
        // The closure never declines, so there is no failure to look at.
        let _ = state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
    }

    /// Takes a token if one is there.
    pub(super) fn try_take(self, state: &AtomicU64, now: u64) -> bool {
        let taken = |full_at: u64| {
            let room = self.room(full_at, now).is_ok();
            room.then(|| full_at.max(now).saturating_add(self.interval))
        };
        state
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admits_the_burst_and_then_the_rate() {
        let pace = Pace::new(2, Duration::from_secs(1), 3);
        let state = AtomicU64::new(0);
        let admitted = (0..10_000_000_u64)
            .step_by(100_000)
            .filter(|&now| pace.try_take(&state, now))
            .count();
        assert_eq!(admitted, 3 + 19);
    }

    #[test]
    fn waiting_as_told_is_enough_and_less_is_not() {
        let pace = Pace::new(7, Duration::from_secs(60), 1);
        let state = AtomicU64::new(0);
        pace.take(&state, 5);
        let wait = pace.check(&state, 5).unwrap_err();
        let wait = u64::try_from(wait.as_micros()).unwrap();
        assert!(pace.check(&state, 5 + wait - 1).is_err());
        assert!(pace.check(&state, 5 + wait).is_ok());
    }

    #[test]
    fn the_debt_is_bounded() {
        let pace = Pace::new(1, Duration::from_secs(1), 5);
        let state = AtomicU64::new(0);
        (0..1_000).for_each(|_| pace.take(&state, 0));
        assert_eq!(pace.check(&state, 0), Err(Duration::from_secs(1)));
    }
}
