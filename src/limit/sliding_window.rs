//! The arithmetic of sliding windows: integers only, no clock, no state of its own.
//!
//! Time is cut into cells of W/n, rounded up to whole microseconds; a count keeps n + 1 of them.
//!
//! - [`Edge::Strict`] counts the oldest cell whole. **No window of length W ever admits more than the limit
//!   L**; a unit comes back up to one cell (W/n) late.
//! - [`Edge::Smooth`] counts the oldest cell by the part of it that the window still covers. Units come back
//!   steadily, but **the worst window admits close to 2L**, whatever n is: L units at the end of a cell seem
//!   spread over it.
//! - The exact log keeps the time of each call: **no window of length W ever admits more than L**, and a unit
//!   comes back after exactly W.
//!
//! A unit taken at t is out of the window at t + W itself: an instant at an edge belongs to the new window.

use super::{
    cost::Cost,
    reading::{Reading, Wait},
    rule::Edge,
};
use crate::error::ConfigError;

const MAX_CELLS: u32 = 100;
/// The largest limit of an exact log, which keeps an entry for each call.
pub(crate) const MAX_LOG_LIMIT: u64 = 10_000;

/// A sliding window's numbers, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowParameters {
    limit: u64,
    cell_micros: u64,
    cells: u64,
    edge: Edge,
}

impl WindowParameters {
    /// Cuts a window of `window_micros` into `cells`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with the path `limit`, `window` or `cells` when the limit is above [`Cost::MAX`], the
    /// number of cells is not 1 to 100, or the window is shorter than one microsecond for each cell.
    pub fn new(
        limit: u64,
        window_micros: u64,
        cells: u32,
        edge: Edge,
    ) -> Result<Self, ConfigError> {
        check_limit(limit)?;
        check_window(window_micros)?;
        if !(1..=MAX_CELLS).contains(&cells) {
            return Err(ConfigError::new(
                "cells",
                format!("{cells} cells: write 1 to {MAX_CELLS}"),
            ));
        }
        let cells = u64::from(cells);
        if window_micros < cells {
            return Err(ConfigError::new(
                "window",
                format!(
                    "a window of {window_micros} microseconds cannot be cut into {cells} cells: write a longer window or fewer cells"
                ),
            ));
        }
        Ok(Self {
            limit,
            cell_micros: window_micros.div_ceil(cells),
            cells,
            edge,
        })
    }

    /// Units in the window.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// n, the cells in a window. A count keeps one more: the one that the window is leaving.
    #[must_use]
    pub const fn cells(&self) -> u64 {
        self.cells
    }

    /// The length of a cell in microseconds.
    #[must_use]
    pub const fn cell_micros(&self) -> u64 {
        self.cell_micros
    }

    /// How the oldest cell is weighed.
    #[must_use]
    pub const fn edge(&self) -> Edge {
        self.edge
    }

    /// The number of the cell that an instant lies in.
    #[must_use]
    pub const fn index(&self, now_micros: u64) -> u64 {
        now_micros / self.cell_micros
    }

    /// The number of the oldest cell that counts when `index` is the current one.
    #[must_use]
    pub const fn oldest(&self, index: u64) -> u64 {
        index.saturating_sub(self.cells)
    }

    /// Units used: `total` is the sum over the n + 1 cells up to `index`, `oldest` the first of them.
    #[must_use]
    pub const fn used(&self, index: u64, now_micros: u64, total: u64, oldest: u64) -> u64 {
        match self.edge {
            Edge::Strict => total,
            // While the first n cells fill, the oldest one is still inside the window.
            Edge::Smooth if index < self.cells => total,
            Edge::Smooth => {
                let left = self.cell_micros - self.elapsed(index, now_micros);
                let weighed = (oldest as u128 * left as u128).div_ceil(self.cell_micros as u128);
                total.saturating_sub(oldest).saturating_add(weighed as u64)
            }
        }
    }

    /// The instant from which the units of a cell no longer count.
    const fn leaves_at(&self, cell: u64) -> u64 {
        (cell + self.cells + 1).saturating_mul(self.cell_micros)
    }

    /// The time since the cell `index` began, at most its length; zero for a clock that is behind it.
    const fn elapsed(&self, index: u64, now_micros: u64) -> u64 {
        let elapsed = now_micros.saturating_sub(index * self.cell_micros);
        if elapsed > self.cell_micros {
            self.cell_micros
        } else {
            elapsed
        }
    }

    /// How long a call of `amount` units waits. `count` tells the units of a cell by its number; it is asked
    /// for the n + 1 cells up to `index`, oldest first, whose sum is `total`.
    ///
    /// No units pass unless the limit is overdrawn.
    pub fn wait(
        &self,
        index: u64,
        now_micros: u64,
        total: u64,
        amount: u64,
        count: impl Fn(u64) -> u64,
    ) -> Wait {
        if amount > self.limit || self.limit == 0 {
            return Wait::Forever;
        }
        let allowed = self.limit - amount;
        let oldest = self.oldest(index);
        if self.used(index, now_micros, total, count(oldest)) <= allowed {
            return Wait::Zero;
        }
        // The newer cells' sum once `cell` is the oldest: the call passes when it and what still counts of
        // `cell` fit under `allowed`.
        let mut newer = total;
        for cell in oldest..=index {
            let units = count(cell);
            newer = newer.saturating_sub(units);
            if newer > allowed {
                continue;
            }
            let passes_at = match self.edge {
                Edge::Strict => self.leaves_at(cell),
                Edge::Smooth => {
                    let tolerated = if units == 0 {
                        self.cell_micros
                    } else {
                        let part = u128::from(allowed - newer) * u128::from(self.cell_micros)
                            / u128::from(units);
                        u64::try_from(part)
                            .map_or(self.cell_micros, |part| part.min(self.cell_micros))
                    };
                    self.leaves_at(cell) - tolerated
                }
            };
            return Wait::micros(passes_at.saturating_sub(now_micros).max(1));
        }
        // The cells do not yet show what another thread has added to the total: at the latest it leaves with
        // the newest cell.
        Wait::micros(self.leaves_at(index).saturating_sub(now_micros).max(1))
    }

    /// The count. The arguments are those of [`wait`](Self::wait).
    pub fn read(
        &self,
        index: u64,
        now_micros: u64,
        total: u64,
        count: impl Fn(u64) -> u64,
    ) -> Reading {
        let used = self.used(index, now_micros, total, count(self.oldest(index)));
        let remaining = self.limit.saturating_sub(used);
        let reset_micros = match self.wait(index, now_micros, total, remaining + 1, count) {
            Wait::Micros(micros) => Some(micros),
            Wait::Zero | Wait::Unknown | Wait::Forever => None,
        };
        Reading::new(used, remaining, reset_micros)
    }
}

/// An exact log's numbers, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogParameters {
    limit: u64,
    window_micros: u64,
}

impl LogParameters {
    /// A log of at most `limit` units over `window_micros`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with the path `limit` or `window` when the limit is above 10,000 or the window is
    /// empty.
    pub fn new(limit: u64, window_micros: u64) -> Result<Self, ConfigError> {
        if limit > MAX_LOG_LIMIT {
            return Err(ConfigError::new(
                "limit",
                format!(
                    "an exact log keeps every call, {limit} is too many: write at most {MAX_LOG_LIMIT}, or leave out `exact_log`"
                ),
            ));
        }
        check_window(window_micros)?;
        Ok(Self {
            limit,
            window_micros,
        })
    }

    /// Units in the window.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// The window's length in microseconds.
    #[must_use]
    pub const fn window_micros(&self) -> u64 {
        self.window_micros
    }

    /// Whether units taken at `at` still count.
    #[must_use]
    pub const fn is_live(&self, at: u64, now_micros: u64) -> bool {
        at.saturating_add(self.window_micros) > now_micros
    }

    /// How long a call of `amount` units waits; `entries` are the live (time, units), oldest first, and
    /// `used` their sum.
    pub fn wait(
        &self,
        now_micros: u64,
        used: u64,
        amount: u64,
        entries: impl Iterator<Item = (u64, u64)>,
    ) -> Wait {
        if amount > self.limit || self.limit == 0 {
            return Wait::Forever;
        }
        let mut excess = used.saturating_add(amount).saturating_sub(self.limit);
        if excess == 0 {
            return Wait::Zero;
        }
        let mut passes_at = now_micros;
        for (at, units) in entries {
            passes_at = at.saturating_add(self.window_micros);
            excess = excess.saturating_sub(units);
            if excess == 0 {
                break;
            }
        }
        Wait::micros(passes_at.saturating_sub(now_micros).max(1))
    }

    /// The count. The arguments are those of [`wait`](Self::wait).
    pub fn read(
        &self,
        now_micros: u64,
        used: u64,
        entries: impl Iterator<Item = (u64, u64)>,
    ) -> Reading {
        let remaining = self.limit.saturating_sub(used);
        let reset_micros = match self.wait(now_micros, used, remaining + 1, entries) {
            Wait::Micros(micros) => Some(micros),
            Wait::Zero | Wait::Unknown | Wait::Forever => None,
        };
        Reading::new(used, remaining, reset_micros)
    }
}

/// About 285 years, so that no sum of times overflows.
const MAX_WINDOW_MICROS: u64 = 1 << 53;

fn check_window(window_micros: u64) -> Result<(), ConfigError> {
    if !(1..=MAX_WINDOW_MICROS).contains(&window_micros) {
        return Err(ConfigError::new(
            "window",
            "a window is at least one microsecond and at most 2^53 microseconds long",
        ));
    }
    Ok(())
}

/// Refuses a limit that some store could not count exactly.
pub(crate) fn check_limit(limit: u64) -> Result<(), ConfigError> {
    if limit > Cost::MAX {
        return Err(ConfigError::new(
            "limit",
            format!(
                "{limit} cannot be counted exactly: write at most {}, or use `Rule::unlimited()`",
                Cost::MAX
            ),
        ));
    }
    Ok(())
}
