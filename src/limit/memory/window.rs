//! A sliding window's cell.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{
    super::{reading::Wait, sliding_window::WindowParameters},
    cell::{Adjustment, Charge, Look, Taken},
    gate::{Gate, Retired, countable},
    marks::Marks,
};

/// The word is the sum of the n + 1 counts.
///
/// A charge is added to the word first and to its count a moment later, so the word is never below the sum:
/// in between, and if the ring has turned by a whole window in between, a unit counts for too long, never
/// too short. For the same reason a word that comes back to the same value does no harm.
#[derive(Debug)]
pub(super) struct WindowCell {
    gate: Gate,
    /// The newest cell that the ring holds; changed only while the gate is closed.
    newest: AtomicU64,
    /// A ring of n + 1 counts, by cell number.
    counts: Box<[AtomicU64]>,
    cell_micros: u64,
    pub(super) marks: Marks,
}

impl WindowCell {
    pub(super) fn new(parameters: &WindowParameters, now: u64) -> Self {
        Self {
            gate: Gate::new(0),
            newest: AtomicU64::new(parameters.index(now)),
            counts: (0..=parameters.cells())
                .map(|_| AtomicU64::new(0))
                .collect(),
            cell_micros: parameters.cell_micros(),
            marks: Marks::default(),
        }
    }

    #[inline]
    fn count_of(&self, index: u64) -> &AtomicU64 {
        // Below the ring's length, which is at most 101.
        &self.counts[(index % self.counts.len() as u64) as usize]
    }

    /// The word and the current cell: never an older one than the ring holds.
    #[inline]
    fn current(&self, parameters: &WindowParameters, now: u64) -> Result<(u64, u64), Retired> {
        let index = parameters.index(now);
        loop {
            let total = self.gate.open()?;
            let newest = self.newest.load(Ordering::Relaxed);
            if index <= newest {
                return Ok((total, newest));
            }
            self.turn(index)?;
        }
    }

    /// Turns the ring to `index` and drops the counts that leave the window.
    #[cold]
    fn turn(&self, index: u64) -> Result<(), Retired> {
        self.gate.exclusive(|total| {
            let newest = self.newest.load(Ordering::Relaxed);
            let steps = index.saturating_sub(newest).min(self.counts.len() as u64);
            let mut left = total;
            for step in 0..steps {
                let gone = self.count_of(index - step).swap(0, Ordering::Relaxed);
                left = left.saturating_sub(gone);
            }
            self.newest.fetch_max(index, Ordering::Relaxed);
            (left, ())
        })
    }

    fn count(&self) -> impl Fn(u64) -> u64 + '_ {
        |index| self.count_of(index).load(Ordering::Relaxed)
    }

    pub(super) fn look(
        &self,
        parameters: &WindowParameters,
        now: u64,
        amount: u64,
    ) -> Result<Look, Retired> {
        loop {
            let (total, index) = self.current(parameters, now)?;
            let look = self.look_at(parameters, now, amount, total, index);
            if self.gate.is_still(total) {
                return Ok(look);
            }
        }
    }

    fn look_at(
        &self,
        parameters: &WindowParameters,
        now: u64,
        amount: u64,
        total: u64,
        index: u64,
    ) -> Look {
        Look {
            reading: parameters.read(index, now, total, self.count()),
            wait: parameters.wait(index, now, total, amount, self.count()),
        }
    }

    #[inline]
    pub(super) fn take(
        &self,
        parameters: &WindowParameters,
        now: u64,
        amount: u64,
        force: bool,
    ) -> Result<Taken, Retired> {
        loop {
            let (total, index) = self.current(parameters, now)?;
            let wait = parameters.wait(index, now, total, amount, self.count());
            if !force && wait != Wait::Zero {
                let look = self.look_at(parameters, now, amount, total, index);
                if !self.gate.is_still(total) {
                    continue;
                }
                return Ok(Taken::Refused(look));
            }
            let oldest = self
                .count_of(parameters.oldest(index))
                .load(Ordering::Relaxed);
            let before = parameters.used(index, now, total, oldest);
            let amount = countable(total, amount);
            if amount > 0 {
                if !self.gate.replace(total, total + amount) {
                    continue;
                }
                self.count_of(index).fetch_add(amount, Ordering::Relaxed);
            }
            return Ok(Taken::Charged(Charge {
                reading: parameters.read(index, now, total + amount, self.count()),
                wait,
                before,
                amount,
                period: index,
            }));
        }
    }

    /// Gives back to or charges the cell of the hold; a cell that has left the window is left alone.
    pub(super) fn adjust(&self, period: u64, adjustment: Adjustment) -> Result<(), Retired> {
        self.gate.exclusive(|total| {
            let newest = self.newest.load(Ordering::Relaxed);
            if period > newest || newest - period >= self.counts.len() as u64 {
                return (total, ());
            }
            let count = self.count_of(period);
            let held = count.load(Ordering::Relaxed);
            let total = match adjustment {
                Adjustment::GiveBack(amount) => {
                    let amount = amount.min(held);
                    count.fetch_sub(amount, Ordering::Relaxed);
                    total.saturating_sub(amount)
                }
                Adjustment::Add(amount) => {
                    let amount = countable(total, amount);
                    count.fetch_add(amount, Ordering::Relaxed);
                    total + amount
                }
            };
            (total, ())
        })
    }

    pub(super) fn retire(&self, now: u64, remove: impl FnOnce() -> bool) -> bool {
        let is_empty = |total| {
            let newest = self.newest.load(Ordering::Relaxed);
            total == 0
                || (now / self.cell_micros.max(1)).saturating_sub(newest)
                    >= self.counts.len() as u64
        };
        self.gate.retire(is_empty, remove)
    }
}
