//! One key's count under one rule, of whichever algorithm.

use super::{
    super::{
        compile::{CompiledAlgorithm, CompiledRule, Threshold},
        reading::{Reading, Wait},
        store::LimitCall,
    },
    bucket::BucketCell,
    gate::Retired,
    gauge::GaugeCell,
    log::LogCell,
    marks::Again,
    quota::QuotaCell,
    window::WindowCell,
};
use crate::clock::{Now, Timestamp};

/// When a decision is made, and where the owner's billing periods start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) now: Now,
    pub(super) anchor: Option<Timestamp>,
}

impl Moment {
    pub(super) fn of(call: &LimitCall<'_>) -> Self {
        Self {
            now: call.now,
            anchor: call.set.owner().billing_anchor,
        }
    }

    const fn micros(&self) -> u64 {
        self.now.monotonic_micros()
    }
}

/// A rule's state without any charge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) reading: Reading,
    pub(super) wait: Wait,
}

/// A charge that was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Charge {
    /// The state after the charge.
    pub(super) reading: Reading,
    /// What a rule that refuses would have said.
    pub(super) wait: Wait,
    /// Units used before the charge.
    pub(super) before: u64,
    /// Units charged.
    pub(super) amount: u64,
    /// The window or period that was charged.
    pub(super) period: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Taken {
    Charged(Charge),
    Refused(Look),
}

/// A change of a charge after the fact.
#[derive(Clone, Copy, Debug)]
pub(super) enum Adjustment {
    GiveBack(u64),
    Add(u64),
}

/// Why a cell gave no answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum CellFault {
    /// The cell was evicted.
    Retired,
    /// The cell counts by another algorithm.
    OtherAlgorithm,
}

impl From<Retired> for CellFault {
    fn from(_: Retired) -> Self {
        Self::Retired
    }
}

#[derive(Debug)]
pub(super) enum Cell {
    Bucket(BucketCell),
    Window(WindowCell),
    Log(LogCell),
    Quota(QuotaCell),
    Gauge(GaugeCell),
}

impl Cell {
    /// A cell that has counted nothing yet; `None` for a rule that counts nothing.
    pub(super) fn new(rule: &CompiledRule, moment: &Moment) -> Option<Self> {
        Some(match rule.compiled() {
            CompiledAlgorithm::TokenBucket(bucket) => {
                Self::Bucket(BucketCell::new(bucket, moment.micros()))
            }
            CompiledAlgorithm::SlidingWindow(window) => {
                Self::Window(WindowCell::new(window, moment.micros()))
            }
            CompiledAlgorithm::SlidingLog(log) => Self::Log(LogCell::new(log)),
            CompiledAlgorithm::Quota(quota) => {
                Self::Quota(QuotaCell::new(quota, moment.now.wall(), moment.anchor))
            }
            CompiledAlgorithm::Concurrency(_) => Self::Gauge(GaugeCell::new()),
            CompiledAlgorithm::Unlimited => return None,
        })
    }

    /// What a call of `amount` units would meet.
    pub(super) fn look(
        &self,
        rule: &CompiledRule,
        moment: &Moment,
        amount: u64,
    ) -> Result<Look, CellFault> {
        Ok(match (self, rule.compiled()) {
            (Self::Bucket(cell), CompiledAlgorithm::TokenBucket(bucket)) => {
                cell.look(bucket, moment.micros(), amount)?
            }
            (Self::Window(cell), CompiledAlgorithm::SlidingWindow(window)) => {
                cell.look(window, moment.micros(), amount)?
            }
            (Self::Log(cell), CompiledAlgorithm::SlidingLog(log)) => {
                cell.look(log, moment.micros(), amount)?
            }
            (Self::Quota(cell), CompiledAlgorithm::Quota(quota)) => {
                cell.look(quota, moment.now.wall(), moment.anchor, amount)?
            }
            (Self::Gauge(cell), CompiledAlgorithm::Concurrency(gauge)) => {
                cell.look(gauge, amount)?
            }
            _ => return Err(CellFault::OtherAlgorithm),
        })
    }

    /// Whether a call of `amount` units would pass. A cell that gives no answer lets nothing pass.
    #[inline(always)]
    pub(super) fn passes(&self, rule: &CompiledRule, moment: &Moment, amount: u64) -> bool {
        match (self, rule.compiled()) {
            (Self::Bucket(cell), CompiledAlgorithm::TokenBucket(bucket)) => {
                cell.passes(bucket, moment.micros(), amount)
            }
            (Self::Quota(cell), CompiledAlgorithm::Quota(quota)) => {
                cell.passes(quota, moment.now.wall(), moment.anchor, amount)
            }
            _ => matches!(self.look(rule, moment, amount), Ok(look) if look.wait.is_zero()),
        }
    }

    /// Charges `amount` units if they pass, or in any case when `force` is set. Nothing changes for an amount
    /// of zero.
    #[inline(always)]
    pub(super) fn take(
        &self,
        rule: &CompiledRule,
        moment: &Moment,
        amount: u64,
        force: bool,
    ) -> Result<Taken, CellFault> {
        Ok(match (self, rule.compiled()) {
            (Self::Bucket(cell), CompiledAlgorithm::TokenBucket(bucket)) => {
                cell.take(bucket, moment.micros(), amount, force)?
            }
            (Self::Window(cell), CompiledAlgorithm::SlidingWindow(window)) => {
                cell.take(window, moment.micros(), amount, force)?
            }
            (Self::Log(cell), CompiledAlgorithm::SlidingLog(log)) => {
                cell.take(log, moment.micros(), amount, force)?
            }
            (Self::Quota(cell), CompiledAlgorithm::Quota(quota)) => {
                cell.take(quota, moment.now.wall(), moment.anchor, amount, force)?
            }
            (Self::Gauge(cell), CompiledAlgorithm::Concurrency(gauge)) => {
                cell.take(gauge, amount, force)?
            }
            _ => return Err(CellFault::OtherAlgorithm),
        })
    }

    /// Changes the charge of `period` after the fact.
    pub(super) fn adjust(
        &self,
        rule: &CompiledRule,
        moment: &Moment,
        period: u64,
        adjustment: Adjustment,
    ) -> Result<(), Retired> {
        match (self, rule.compiled()) {
            (Self::Bucket(cell), CompiledAlgorithm::TokenBucket(bucket)) => {
                cell.adjust(bucket, moment.micros(), period, adjustment)
            }
            // A bucket's shape is that of buckets alone.
            (Self::Bucket(_), _) => Ok(()),
            (Self::Window(cell), _) => cell.adjust(period, adjustment),
            (Self::Log(cell), _) => cell.adjust(moment.micros(), period, adjustment),
            (Self::Quota(cell), _) => cell.adjust(period, adjustment),
            (Self::Gauge(cell), _) => cell.adjust(adjustment),
        }
    }

    /// Calls `tell` for each threshold that the charge is the first to reach in its period.
    pub(super) fn reach(&self, rule: &CompiledRule, charge: &Charge, tell: impl FnMut(Threshold)) {
        let (marks, again) = match self {
            Self::Bucket(cell) => (&cell.marks, Again::BelowLowest),
            Self::Window(cell) => (&cell.marks, Again::BelowLowest),
            Self::Log(cell) => (&cell.marks, Again::BelowLowest),
            Self::Quota(cell) => (&cell.marks, Again::NextPeriod),
            Self::Gauge(cell) => (&cell.marks, Again::BelowLowest),
        };
        marks.reach(
            rule.thresholds(),
            again,
            charge.before,
            charge.reading.used,
            tell,
        );
    }

    /// Retires the cell if it is as good as new and `remove` has taken it out of the map.
    pub(super) fn retire(&self, now: Now, remove: impl FnOnce() -> bool) -> bool {
        match self {
            Self::Bucket(cell) => cell.retire(now.monotonic_micros(), remove),
            Self::Window(cell) => cell.retire(now.monotonic_micros(), remove),
            Self::Log(cell) => cell.retire(now.monotonic_micros(), remove),
            Self::Quota(cell) => cell.retire(now.wall(), remove),
            Self::Gauge(cell) => cell.retire(remove),
        }
    }
}
