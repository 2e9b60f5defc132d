//! A token bucket's cell.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{
    super::{reading::Wait, token_bucket::BucketParameters},
    cell::{Adjustment, Charge, Look, Taken},
    gate::{Gate, Retired, not_closed},
    marks::Marks,
};

const MICROS_PER_SECOND: u64 = 1_000_000;

/// The word is the tick at which the bucket is full, modulo 2^64.
///
/// A word that comes back to the same value under other parameters would let one call be charged by the
/// wrong scale; ticks of two scales meet once in 2^64, and the error is one call's cost.
#[derive(Debug)]
pub(super) struct BucketCell {
    gate: Gate,
    /// The second of the last charge, or a little later: written before the word, so that it is never older
    /// than the word. Tells a bucket that was left alone from a tick that wrapped around.
    charged_second: AtomicU64,
    /// The parameters that the word was written under; changed only while the gate is closed.
    ticks_per_micro: AtomicU64,
    ticks_per_unit: AtomicU64,
    burst: AtomicU64,
    pub(super) marks: Marks,
}

impl BucketCell {
    pub(super) fn new(parameters: &BucketParameters, now: u64) -> Self {
        Self {
            gate: Gate::new(not_closed(parameters.full_at(0, now))),
            charged_second: AtomicU64::new(now / MICROS_PER_SECOND),
            ticks_per_micro: AtomicU64::new(parameters.ticks_per_micro()),
            ticks_per_unit: AtomicU64::new(parameters.ticks_per_unit()),
            burst: AtomicU64::new(parameters.burst()),
            marks: Marks::default(),
        }
    }

    fn parameters(&self) -> BucketParameters {
        BucketParameters::from_parts(
            self.ticks_per_micro.load(Ordering::Relaxed),
            self.ticks_per_unit.load(Ordering::Relaxed),
            self.burst.load(Ordering::Relaxed),
        )
    }

    /// Whether the word was written under these parameters.
    #[inline]
    fn is_of(&self, parameters: &BucketParameters) -> bool {
        self.ticks_per_micro.load(Ordering::Relaxed) == parameters.ticks_per_micro()
            && self.ticks_per_unit.load(Ordering::Relaxed) == parameters.ticks_per_unit()
            && self.burst.load(Ordering::Relaxed) == parameters.burst()
    }

    #[inline]
    fn was_left_alone(&self, parameters: &BucketParameters, now: u64) -> bool {
        let charged = self.charged_second.load(Ordering::Relaxed);
        (now / MICROS_PER_SECOND).saturating_sub(charged) >= parameters.horizon_seconds()
    }

    /// The word, written under these parameters and near enough to be compared with now.
    #[inline(always)]
    fn current(&self, parameters: &BucketParameters, now: u64) -> Result<u64, Retired> {
        loop {
            let word = self.gate.open()?;
            if self.is_of(parameters) && !self.was_left_alone(parameters, now) {
                return Ok(word);
            }
            self.renew(parameters, now)?;
        }
    }

    #[cold]
    fn renew(&self, parameters: &BucketParameters, now: u64) -> Result<(), Retired> {
        self.gate.exclusive(|word| {
            let old = self.parameters();
            let deficit = if self.was_left_alone(&old, now) {
                0
            } else {
                old.deficit(word, now)
            };
            let deficit = if old == *parameters {
                deficit
            } else {
                parameters.rescale(&old, deficit)
            };
            let second = now / MICROS_PER_SECOND;
            self.charged_second.fetch_max(second, Ordering::Relaxed);
            self.ticks_per_micro
                .store(parameters.ticks_per_micro(), Ordering::Relaxed);
            self.ticks_per_unit
                .store(parameters.ticks_per_unit(), Ordering::Relaxed);
            self.burst.store(parameters.burst(), Ordering::Relaxed);
            (not_closed(parameters.full_at(deficit, now)), ())
        })
    }

    #[inline(always)]
    pub(super) fn passes(&self, parameters: &BucketParameters, now: u64, amount: u64) -> bool {
        self.current(parameters, now).is_ok_and(|word| {
            let deficit = parameters.deficit(word, now);
            parameters.room(amount).is_some_and(|room| deficit <= room)
        })
    }

    #[inline]
    pub(super) fn look(
        &self,
        parameters: &BucketParameters,
        now: u64,
        amount: u64,
    ) -> Result<Look, Retired> {
        let deficit = parameters.deficit(self.current(parameters, now)?, now);
        Ok(Look {
            reading: parameters.read(deficit),
            wait: parameters.wait(deficit, amount),
        })
    }

    #[inline(always)]
    pub(super) fn take(
        &self,
        parameters: &BucketParameters,
        now: u64,
        amount: u64,
        force: bool,
    ) -> Result<Taken, Retired> {
        // What does not follow from the word is computed before it is read: the less lies between reading and
        // replacing it, the fewer calls at once have to read it again.
        let room = parameters.room(amount);
        loop {
            let word = self.current(parameters, now)?;
            let deficit = parameters.deficit(word, now);
            let (wait, after, charged) = match room {
                Some(room) if deficit <= room => {
                    let cost = amount * parameters.ticks_per_unit();
                    (Wait::Zero, deficit + cost, amount)
                }
                _ => {
                    let wait = parameters.wait(deficit, amount);
                    if !force {
                        let reading = parameters.read(deficit);
                        return Ok(Taken::Refused(Look { reading, wait }));
                    }
                    let (after, charged) = parameters.charge(deficit, amount);
                    (wait, after, charged)
                }
            };
            if amount > 0 && !self.write(word, parameters.full_at(after, now), now) {
                continue;
            }
            let reading = parameters.read(after);
            return Ok(Taken::Charged(Charge {
                reading,
                wait,
                // Exactly: what was charged is a whole number of units.
                before: reading.used - charged,
                amount: charged,
                period: now,
            }));
        }
    }

    #[inline]
    fn write(&self, current: u64, full_at: u64, now: u64) -> bool {
        let second = now / MICROS_PER_SECOND;
        if self.charged_second.load(Ordering::Relaxed) < second {
            self.charged_second.fetch_max(second, Ordering::Relaxed);
        }
        self.gate.replace(current, not_closed(full_at))
    }

    /// Gives back or charges more, by the parameters of the charge: after a change of plan, the bucket gets
    /// back the share of it that was taken.
    ///
    /// What was charged a whole refill ago has come back by itself: given back once more it would pass twice.
    pub(super) fn adjust(
        &self,
        parameters: &BucketParameters,
        now: u64,
        charged_at: u64,
        adjustment: Adjustment,
    ) -> Result<(), Retired> {
        loop {
            let word = self.current(parameters, now)?;
            let age = now.saturating_sub(charged_at);
            if matches!(adjustment, Adjustment::GiveBack(_)) && age >= parameters.refill_micros() {
                return Ok(());
            }
            let deficit = parameters.deficit(word, now);
            let after = match adjustment {
                Adjustment::GiveBack(amount) => parameters.give_back(deficit, amount),
                Adjustment::Add(amount) => parameters.charge(deficit, amount).0,
            };
            if after == deficit || self.write(word, parameters.full_at(after, now), now) {
                return Ok(());
            }
        }
    }

    pub(super) fn retire(&self, now: u64, remove: impl FnOnce() -> bool) -> bool {
        let is_full = |word| {
            let parameters = self.parameters();
            self.was_left_alone(&parameters, now) || parameters.deficit(word, now) == 0
        };
        self.gate.retire(is_full, remove)
    }
}
