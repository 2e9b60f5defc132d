//! What usage costs beside what it brings. Integers only: costs round up, margins down.

use std::{collections::BTreeMap, sync::Arc};

use super::{UsageKey, UsageTotals};
use crate::id::PlanName;

/// A route of an API as callers of one plan use it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct RouteOnPlan {
    /// The API.
    pub api: Arc<str>,
    /// The method.
    pub method: Arc<str>,
    /// The route template.
    pub route: Arc<str>,
    /// The plan.
    pub plan: PlanName,
}

impl From<&UsageKey> for RouteOnPlan {
    fn from(key: &UsageKey) -> Self {
        Self {
            api: Arc::clone(&key.api),
            method: Arc::clone(&key.method),
            route: Arc::clone(&key.route),
            plan: key.plan.clone(),
        }
    }
}

/// Costs and revenues by whatever they are to be compared for: a tenant, a plan, a [`RouteOnPlan`], a cost centre.
///
/// Costs come from usage ([`UsageTotals::cost_nanos`]), revenues from whatever priced it. Both are in billionths
/// (10^-9) of the currency's unit, of one currency.
///
/// ```
/// use tollgate::usage::{Margins, UsageTotals};
///
/// let mut usage = UsageTotals::default();
/// (usage.calls, usage.cost_nanos) = (1_000, 3_000_000_000);
/// let mut margins = Margins::new();
/// margins.add_usage("pro", &usage);
/// margins.add_revenue("pro", 4_000_000_000);
///
/// let line = margins.line(&"pro").expect("it was added");
/// assert_eq!(line.margin_nanos(), 1_000_000_000);
/// assert_eq!(line.margin_hundredths_of_percent(), Some(2_500));
/// assert_eq!(line.cost_per_call_nanos(), Some(3_000_000));
/// // A price that covers the cost and 40 % more.
/// assert_eq!(line.suggested_price_nanos(40), Some(4_200_000));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Margins<K> {
    lines: BTreeMap<K, MarginLine>,
}

/// What one thing costs and brings. Sums stay at their greatest number where they would overflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MarginLine {
    /// All calls, refused ones too.
    pub calls: u64,
    /// The calls that a price per call applies to.
    pub billable_calls: u64,
    /// What they cost, in billionths of the currency's unit.
    pub cost_nanos: u128,
    /// What they bring, in billionths of the currency's unit; below zero where more was credited than paid.
    pub revenue_nanos: i128,
}

impl<K: Ord> Margins<K> {
    /// No lines.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            lines: BTreeMap::new(),
        }
    }

    /// Adds what usage cost.
    pub fn add_usage(&mut self, of: K, totals: &UsageTotals) {
        let line = self.lines.entry(of).or_default();
        line.calls = line.calls.saturating_add(totals.calls);
        line.billable_calls = line.billable_calls.saturating_add(totals.billable_calls());
        line.cost_nanos = line.cost_nanos.saturating_add(totals.cost_nanos);
    }

    /// Adds a cost that no call tells, such as the rent of a machine.
    pub fn add_cost(&mut self, of: K, nanos: u128) {
        let line = self.lines.entry(of).or_default();
        line.cost_nanos = line.cost_nanos.saturating_add(nanos);
    }

    /// Adds a revenue; a credit is below zero.
    pub fn add_revenue(&mut self, of: K, nanos: i128) {
        let line = self.lines.entry(of).or_default();
        line.revenue_nanos = line.revenue_nanos.saturating_add(nanos);
    }

    /// One line.
    #[must_use]
    pub fn line(&self, of: &K) -> Option<&MarginLine> {
        self.lines.get(of)
    }

    /// All lines, ordered by what they are for.
    pub fn lines(&self) -> impl Iterator<Item = (&K, &MarginLine)> {
        self.lines.iter()
    }

    /// The lines put together by something else, such as tenants by the cost centre that they belong to.
    #[must_use]
    pub fn grouped<G: Ord>(&self, group: impl Fn(&K) -> G) -> Margins<G> {
        let mut groups = Margins::new();
        for (of, line) in &self.lines {
            groups.lines.entry(group(of)).or_default().merge(line);
        }
        groups
    }

    /// All lines together.
    #[must_use]
    pub fn total(&self) -> MarginLine {
        let mut total = MarginLine::default();
        for line in self.lines.values() {
            total.merge(line);
        }
        total
    }
}

impl<K: Ord> Default for Margins<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl MarginLine {
    fn merge(&mut self, other: &Self) {
        self.calls = self.calls.saturating_add(other.calls);
        self.billable_calls = self.billable_calls.saturating_add(other.billable_calls);
        self.cost_nanos = self.cost_nanos.saturating_add(other.cost_nanos);
        self.revenue_nanos = self.revenue_nanos.saturating_add(other.revenue_nanos);
    }

    /// Revenue less cost; below zero for a loss.
    #[must_use]
    pub fn margin_nanos(&self) -> i128 {
        let cost = i128::try_from(self.cost_nanos).unwrap_or(i128::MAX);
        self.revenue_nanos.saturating_sub(cost)
    }

    /// The margin as a share of the revenue, in hundredths of a percent, rounded down (a loss of a third is -3,334).
    /// `None` without a revenue.
    #[must_use]
    pub fn margin_hundredths_of_percent(&self) -> Option<i128> {
        if self.revenue_nanos <= 0 {
            return None;
        }
        // Where it overflows, whole percents of amounts beyond any currency are exact enough.
        self.margin_nanos().checked_mul(10_000).map_or_else(
            || {
                let hundredth = (self.revenue_nanos / 10_000).max(1);
                Some(self.margin_nanos().div_euclid(hundredth))
            },
            |scaled| Some(scaled.div_euclid(self.revenue_nanos)),
        )
    }

    /// What a call costs on average, refused and failed ones counted, rounded up. `None` without calls.
    #[must_use]
    pub fn cost_per_call_nanos(&self) -> Option<u128> {
        (self.calls > 0).then(|| self.cost_nanos.div_ceil(u128::from(self.calls)))
    }

    /// A price for each billable call that brings in all of the cost and a buffer above it in percent, rounded up.
    ///
    /// The cost of calls that nobody pays for is in it. `None` without a billable call, or beyond 128 bits.
    #[must_use]
    pub fn suggested_price_nanos(&self, buffer_percent: u32) -> Option<u128> {
        let percent = 100 + u128::from(buffer_percent);
        let calls = u128::from(self.billable_calls).checked_mul(100)?;
        let revenue = self.cost_nanos.checked_mul(percent)?;
        (calls > 0).then(|| revenue.div_ceil(calls))
    }
}
