//! A concurrency limit's cell.

use super::{
    super::{concurrency::ConcurrencyParameters, reading::Wait},
    cell::{Adjustment, Charge, Look, Taken},
    gate::{Gate, Retired, countable},
    marks::Marks,
};

/// The word is the units in flight, and nothing else belongs to it: a word that comes back to the same value
/// means the same.
#[derive(Debug)]
pub(super) struct GaugeCell {
    gate: Gate,
    pub(super) marks: Marks,
}

impl GaugeCell {
    pub(super) fn new() -> Self {
        Self {
            gate: Gate::new(0),
            marks: Marks::default(),
        }
    }

    #[inline]
    pub(super) fn look(
        &self,
        parameters: &ConcurrencyParameters,
        amount: u64,
    ) -> Result<Look, Retired> {
        let used = self.gate.open()?;
        Ok(Look {
            reading: parameters.read(used),
            wait: parameters.wait(used, amount),
        })
    }

    #[inline]
    pub(super) fn take(
        &self,
        parameters: &ConcurrencyParameters,
        amount: u64,
        force: bool,
    ) -> Result<Taken, Retired> {
        loop {
            let used = self.gate.open()?;
            let wait = parameters.wait(used, amount);
            if !force && wait != Wait::Zero {
                return Ok(Taken::Refused(Look {
                    reading: parameters.read(used),
                    wait,
                }));
            }
            let amount = countable(used, amount);
            if amount > 0 && !self.gate.replace(used, used + amount) {
                continue;
            }
            return Ok(Taken::Charged(Charge {
                reading: parameters.read(used + amount),
                wait,
                before: used,
                amount,
                period: 0,
            }));
        }
    }

    pub(super) fn adjust(&self, adjustment: Adjustment) -> Result<(), Retired> {
        loop {
            let used = self.gate.open()?;
            let after = match adjustment {
                Adjustment::GiveBack(amount) => used.saturating_sub(amount),
                Adjustment::Add(amount) => used + countable(used, amount),
            };
            if after == used || self.gate.replace(used, after) {
                return Ok(());
            }
        }
    }

    pub(super) fn retire(&self, remove: impl FnOnce() -> bool) -> bool {
        self.gate.retire(|used| used == 0, remove)
    }
}
