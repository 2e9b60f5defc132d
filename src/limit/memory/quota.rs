//! A calendar quota's cell.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{
    super::{quota::QuotaParameters, reading::Wait},
    cell::{Adjustment, Charge, Look, Taken},
    gate::{Gate, MAX_COUNT, Retired, countable},
    marks::Marks,
};
use crate::clock::Timestamp;

/// The word is the units used in the stored period.
///
/// A word that comes back to the same value in the next period charges that period: the call was compared
/// with the same use and the same limit.
#[derive(Debug)]
pub(super) struct QuotaCell {
    gate: Gate,
    /// The stored period, changed only while the gate is closed.
    start: AtomicU64,
    end: AtomicU64,
    /// The start of the period before the stored one. A wall clock that has gone back no further stays in the
    /// stored period; one that has gone back further takes it along.
    earliest: AtomicU64,
    pub(super) marks: Marks,
}

/// What is used of a quota's period; points of time in microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::limit) struct QuotaUse {
    pub(in crate::limit) units: u64,
    pub(in crate::limit) start: u64,
    /// The first instant after the period; [`u64::MAX`] when it has no end.
    pub(in crate::limit) end: u64,
    pub(in crate::limit) earliest: u64,
    /// Which thresholds have been told.
    pub(in crate::limit) told: [u64; 2],
}

struct Stored {
    start: u64,
    end: u64,
    earliest: u64,
}

impl Stored {
    fn at(parameters: &QuotaParameters, now: Timestamp, anchor: Option<Timestamp>) -> Self {
        let bounds = parameters.bounds(now, anchor);
        let start = bounds.start.as_unix_micros();
        let before = Timestamp::from_unix_micros(start.saturating_sub(1));
        Self {
            start,
            // The calendar's last period has no end.
            end: if bounds.end == Timestamp::MAX {
                u64::MAX
            } else {
                bounds.end.as_unix_micros()
            },
            earliest: parameters.bounds(before, anchor).start.as_unix_micros(),
        }
    }
}

impl QuotaCell {
    pub(super) fn new(
        parameters: &QuotaParameters,
        now: Timestamp,
        anchor: Option<Timestamp>,
    ) -> Self {
        let period = Stored::at(parameters, now, anchor);
        Self {
            gate: Gate::new(0),
            start: AtomicU64::new(period.start),
            end: AtomicU64::new(period.end),
            earliest: AtomicU64::new(period.earliest),
            marks: Marks::default(),
        }
    }

    /// A cell that goes on from what was used.
    pub(super) fn restored(used: &QuotaUse) -> Self {
        Self {
            gate: Gate::new(used.units.min(MAX_COUNT)),
            start: AtomicU64::new(used.start),
            end: AtomicU64::new(used.end),
            earliest: AtomicU64::new(used.earliest),
            marks: Marks::of_words(used.told),
        }
    }

    /// What is used of the stored period; `None` when nothing is.
    pub(super) fn used(&self) -> Option<QuotaUse> {
        // Most idle counts are passed by without a lock.
        if self.gate.load() == Some(0) {
            return None;
        }
        let read = |units| {
            let used = QuotaUse {
                units,
                start: self.start.load(Ordering::Relaxed),
                end: self.end.load(Ordering::Relaxed),
                earliest: self.earliest.load(Ordering::Relaxed),
                told: self.marks.words(),
            };
            (units, used)
        };
        let used = self.gate.exclusive(read).ok()?;
        (used.units > 0).then_some(used)
    }

    #[inline]
    fn covers(&self, now: Timestamp) -> bool {
        let now = now.as_unix_micros();
        self.earliest.load(Ordering::Relaxed) <= now && now < self.end.load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn current(
        &self,
        parameters: &QuotaParameters,
        now: Timestamp,
        anchor: Option<Timestamp>,
    ) -> Result<u64, Retired> {
        loop {
            let used = self.gate.open()?;
            if self.covers(now) {
                return Ok(used);
            }
            self.turn(parameters, now, anchor)?;
        }
    }

    #[cold]
    fn turn(
        &self,
        parameters: &QuotaParameters,
        now: Timestamp,
        anchor: Option<Timestamp>,
    ) -> Result<(), Retired> {
        // The calendar is asked before the gate is closed: it takes microseconds.
        let period = Stored::at(parameters, now, anchor);
        self.gate.exclusive(|used| {
            if self.covers(now) {
                return (used, ());
            }
            let is_over = now.as_unix_micros() >= self.end.load(Ordering::Relaxed);
            self.start.store(period.start, Ordering::Relaxed);
            self.end.store(period.end, Ordering::Relaxed);
            self.earliest.store(period.earliest, Ordering::Relaxed);
            if is_over {
                self.marks.clear();
                return (0, ());
            }
            // The clock had jumped ahead and is back: what was used stays used.
            (used, ())
        })
    }

    fn length(&self) -> u64 {
        let start = self.start.load(Ordering::Relaxed);
        self.end.load(Ordering::Relaxed).saturating_sub(start)
    }

    fn end(&self) -> Timestamp {
        Timestamp::from_unix_micros(self.end.load(Ordering::Relaxed))
    }

    /// What was used and the period need not belong together: only a charge decides.
    #[inline(always)]
    pub(super) fn passes(
        &self,
        parameters: &QuotaParameters,
        now: Timestamp,
        anchor: Option<Timestamp>,
        amount: u64,
    ) -> bool {
        self.current(parameters, now, anchor)
            .is_ok_and(|used| parameters.wait(used, amount, now, self.end()).is_zero())
    }

    #[inline]
    pub(super) fn look(
        &self,
        parameters: &QuotaParameters,
        now: Timestamp,
        anchor: Option<Timestamp>,
        amount: u64,
    ) -> Result<Look, Retired> {
        loop {
            let used = self.current(parameters, now, anchor)?;
            let end = self.end();
            let look = Look {
                reading: parameters.read(used, now, end).over(self.length()),
                wait: parameters.wait(used, amount, now, end),
            };
            if self.gate.is_still(used) {
                return Ok(look);
            }
        }
    }

    #[inline(always)]
    pub(super) fn take(
        &self,
        parameters: &QuotaParameters,
        now: Timestamp,
        anchor: Option<Timestamp>,
        amount: u64,
        force: bool,
    ) -> Result<Taken, Retired> {
        loop {
            let used = self.current(parameters, now, anchor)?;
            let (end, period) = (self.end(), self.start.load(Ordering::Relaxed));
            let wait = parameters.wait(used, amount, now, end);
            if !force && wait != Wait::Zero {
                if !self.gate.is_still(used) {
                    continue;
                }
                return Ok(Taken::Refused(Look {
                    reading: parameters.read(used, now, end).over(self.length()),
                    wait,
                }));
            }
            let amount = countable(used, amount);
            if amount > 0 && !self.gate.replace(used, used + amount) {
                continue;
            }
            return Ok(Taken::Charged(Charge {
                reading: parameters.read(used + amount, now, end).over(self.length()),
                wait,
                before: used,
                amount,
                period,
            }));
        }
    }

    /// Gives back to or charges the period of the hold; a period that is over is left alone.
    pub(super) fn adjust(&self, period: u64, adjustment: Adjustment) -> Result<(), Retired> {
        self.gate.exclusive(|used| {
            if self.start.load(Ordering::Relaxed) != period {
                return (used, ());
            }
            let used = match adjustment {
                Adjustment::GiveBack(amount) => used.saturating_sub(amount),
                Adjustment::Add(amount) => used + countable(used, amount),
            };
            (used, ())
        })
    }

    pub(super) fn retire(&self, now: Timestamp, remove: impl FnOnce() -> bool) -> bool {
        let is_idle = |used| used == 0 || now.as_unix_micros() >= self.end.load(Ordering::Relaxed);
        self.gate.retire(is_idle, remove)
    }
}
