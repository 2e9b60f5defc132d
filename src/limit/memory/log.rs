//! An exact log's cell.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    super::{
        reading::Wait,
        sliding_window::{LogParameters, MAX_LOG_LIMIT},
    },
    cell::{Adjustment, Charge, Look, Taken},
    gate::{Retired, countable},
    marks::Marks,
};

/// A log behind a lock that is held for a walk over the entries that have left the window.
#[derive(Debug)]
pub(super) struct LogCell {
    log: Mutex<Log>,
    /// The parameters at the cell's making: its window is that of every rule that finds the cell.
    made_for: LogParameters,
    pub(super) marks: Marks,
}

#[derive(Debug, Default)]
struct Log {
    /// Times and units, oldest first, one entry for each time.
    entries: VecDeque<(u64, u64)>,
    used: u64,
    retired: bool,
}

impl Log {
    /// Drops what has left the window and says what the time is: never earlier than the newest entry.
    fn at(&mut self, parameters: &LogParameters, now: u64) -> u64 {
        let now = self
            .entries
            .back()
            .map_or(now, |(newest, _)| now.max(*newest));
        while let Some((at, units)) = self.entries.front().copied() {
            if parameters.is_live(at, now) {
                break;
            }
            self.entries.pop_front();
            self.used = self.used.saturating_sub(units);
        }
        now
    }

    fn look(&self, parameters: &LogParameters, now: u64, amount: u64) -> Look {
        let entries = || self.entries.iter().copied();
        Look {
            reading: parameters.read(now, self.used, entries()),
            wait: parameters.wait(now, self.used, amount, entries()),
        }
    }

    fn push(&mut self, at: u64, amount: u64) {
        self.used += amount;
        let is_long = self.entries.len() >= MAX_LOG_LIMIT as usize;
        match self.entries.back_mut() {
            Some((newest, units)) if *newest == at => *units += amount,
            // Rules that never refuse could grow without end: the newest entry then takes the units, and
            // the earlier ones of it stay a little longer.
            Some((newest, units)) if is_long => {
                *newest = at;
                *units += amount;
            }
            _ => self.entries.push_back((at, amount)),
        }
    }
}

impl LogCell {
    pub(super) fn new(parameters: &LogParameters) -> Self {
        Self {
            log: Mutex::default(),
            made_for: *parameters,
            marks: Marks::default(),
        }
    }

    fn lock(&self) -> Result<MutexGuard<'_, Log>, Retired> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.retired { Err(Retired) } else { Ok(log) }
    }

    pub(super) fn look(
        &self,
        parameters: &LogParameters,
        now: u64,
        amount: u64,
    ) -> Result<Look, Retired> {
        let mut log = self.lock()?;
        log.at(parameters, now);
        Ok(log.look(parameters, now, amount))
    }

    pub(super) fn take(
        &self,
        parameters: &LogParameters,
        now: u64,
        amount: u64,
        force: bool,
    ) -> Result<Taken, Retired> {
        let mut log = self.lock()?;
        let at = log.at(parameters, now);
        let look = log.look(parameters, now, amount);
        if !force && look.wait != Wait::Zero {
            return Ok(Taken::Refused(look));
        }
        let before = log.used;
        let amount = countable(before, amount);
        if amount > 0 {
            log.push(at, amount);
        }
        Ok(Taken::Charged(Charge {
            reading: log.look(parameters, now, amount).reading,
            wait: look.wait,
            before,
            amount,
            period: at,
        }))
    }

    /// Gives back to or charges the entry of the hold; one that has left the window is left alone.
    pub(super) fn adjust(
        &self,
        now: u64,
        period: u64,
        adjustment: Adjustment,
    ) -> Result<(), Retired> {
        let mut log = self.lock()?;
        let now = log.at(&self.made_for, now);
        if !self.made_for.is_live(period, now) {
            return Ok(());
        }
        let place = log.entries.binary_search_by_key(&period, |(at, _)| *at);
        match (place, adjustment) {
            (Ok(place), Adjustment::GiveBack(amount)) => {
                let Some((_, units)) = log.entries.get_mut(place) else {
                    return Ok(());
                };
                let amount = amount.min(*units);
                *units -= amount;
                if *units == 0 {
                    log.entries.remove(place);
                }
                log.used = log.used.saturating_sub(amount);
            }
            (Ok(place), Adjustment::Add(amount)) => {
                let amount = countable(log.used, amount);
                if let Some((_, units)) = log.entries.get_mut(place) {
                    *units += amount;
                    log.used += amount;
                }
            }
            // The call held nothing and is charged now, at the time of the hold.
            (Err(place), Adjustment::Add(amount)) => {
                let amount = countable(log.used, amount);
                if amount > 0 {
                    log.entries.insert(place, (period, amount));
                    log.used += amount;
                }
            }
            (Err(_), Adjustment::GiveBack(_)) => {}
        }
        Ok(())
    }

    pub(super) fn retire(&self, now: u64, remove: impl FnOnce() -> bool) -> bool {
        let Ok(mut log) = self.lock() else {
            return false;
        };
        log.at(&self.made_for, now);
        log.retired = log.entries.is_empty() && remove();
        log.retired
    }
}
