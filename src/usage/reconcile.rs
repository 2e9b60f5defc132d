//! Real-time counters beside what the events say.

use std::{collections::BTreeMap, sync::Arc};

use super::UsageMinute;
use crate::{clock::Timestamp, id::TenantId};

const MICROS_PER_DAY: u64 = 86_400_000_000;

/// A tenant's use of an API on a day in UTC: what both sides count for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct TenantDay {
    /// Whose calls.
    pub tenant: TenantId,
    /// Of which API.
    pub api: Arc<str>,
    /// The start of the day in UTC.
    pub day: Timestamp,
}

impl TenantDay {
    /// The day in UTC that a time is in.
    #[must_use]
    pub fn new(tenant: TenantId, api: impl Into<Arc<str>>, time: Timestamp) -> Self {
        let micros = time.as_unix_micros();
        Self {
            tenant,
            api: api.into(),
            day: Timestamp::from_unix_micros(micros - micros % MICROS_PER_DAY),
        }
    }

    /// The day as a date, as the counters in Redis are asked by it.
    #[must_use]
    pub fn date(&self) -> jiff::civil::Date {
        self.day.to_jiff().to_zoned(jiff::tz::TimeZone::UTC).date()
    }
}

/// How many calls each day had, by one side.
pub type CallsByDay = BTreeMap<TenantDay, u64>;

/// How far two counts may be apart: by so many calls, or by a share of the larger one, whichever is more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Tolerance {
    calls: u64,
    per_million: u32,
}

impl Tolerance {
    /// None: each difference is a drift.
    pub const fn exact() -> Self {
        Self {
            calls: 0,
            per_million: 0,
        }
    }

    /// So many calls are no drift.
    pub const fn calls(mut self, n: u64) -> Self {
        self.calls = n;
        self
    }

    /// So many calls in a million of the larger count are no drift, rounded down; more than a million is a million.
    pub const fn per_million(mut self, n: u32) -> Self {
        self.per_million = if n > 1_000_000 { 1_000_000 } else { n };
        self
    }

    /// Whether the two counts agree.
    #[must_use]
    pub fn accepts(&self, counted: u64, told: u64) -> bool {
        let share = u128::from(counted.max(told)) * u128::from(self.per_million) / 1_000_000;
        u128::from(counted.abs_diff(told)) <= share.max(u128::from(self.calls))
    }
}

/// A day on which the two sides differ by more than is tolerated.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drift {
    /// Whose day.
    pub of: TenantDay,
    /// What the counters say; `None` where they have nothing of the day, because it expired or was lost.
    pub counted: Option<u64>,
    /// What the events say; `None` where there is no event.
    pub told: Option<u64>,
}

impl Drift {
    /// How many calls lie between the two.
    #[must_use]
    pub fn calls(&self) -> u64 {
        let (counted, told) = (self.counted.unwrap_or(0), self.told.unwrap_or(0));
        counted.abs_diff(told)
    }

    /// Whether the counters say more than the events: usage that may have been lost on its way, and would not be
    /// billed.
    #[must_use]
    pub fn is_unbilled(&self) -> bool {
        self.counted.unwrap_or(0) > self.told.unwrap_or(0)
    }
}

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DriftReport {
    /// The days that differ, the largest difference first.
    pub drifts: Vec<Drift>,
    /// How many days were compared.
    pub days: usize,
    /// All calls that the counters say.
    pub counted: u128,
    /// All calls that the events say.
    pub told: u128,
}

impl DriftReport {
    /// Whether all days agree.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.drifts.is_empty()
    }
}

/// Compares real-time counters with what the events say, day by day, before an invoice is made.
///
/// A day that one side does not know is compared as zero. Compare days that are over: on the current one, events are
/// still on their way.
///
/// ```
/// use tollgate::{clock::Timestamp, id::TenantId, usage::{CallsByDay, TenantDay, Tolerance, reconcile}};
///
/// let day = TenantDay::new(TenantId::new("acme")?, "default", Timestamp::from_unix_seconds(1_768_478_400));
/// let counters = CallsByDay::from([(day.clone(), 1_003)]);
/// let events = CallsByDay::from([(day, 1_000)]);
/// assert!(reconcile(&counters, &events, Tolerance::exact().calls(5)).is_clean());
/// let report = reconcile(&counters, &events, Tolerance::exact());
/// assert_eq!(report.drifts[0].calls(), 3);
/// assert!(report.drifts[0].is_unbilled());
/// # Ok::<(), tollgate::id::InvalidId>(())
/// ```
#[must_use]
pub fn reconcile(counters: &CallsByDay, events: &CallsByDay, tolerance: Tolerance) -> DriftReport {
    let sum = |side: &CallsByDay| side.values().map(|n| u128::from(*n)).sum();
    let mut report = DriftReport {
        drifts: Vec::new(),
        days: 0,
        counted: sum(counters),
        told: sum(events),
    };
    let only_told = events.keys().filter(|of| !counters.contains_key(*of));
    for of in counters.keys().chain(only_told) {
        report.days += 1;
        let (counted, told) = (counters.get(of).copied(), events.get(of).copied());
        if !tolerance.accepts(counted.unwrap_or(0), told.unwrap_or(0)) {
            report.drifts.push(Drift {
                of: of.clone(),
                counted,
                told,
            });
        }
    }
    report
        .drifts
        .sort_by(|a, b| b.calls().cmp(&a.calls()).then_with(|| a.of.cmp(&b.of)));
    report
}

/// The calls of minutes by day, as one side of [`reconcile`]. Minutes of all environments: leave out those that the
/// counters leave out.
#[must_use]
pub fn calls_by_day<'a>(minutes: impl IntoIterator<Item = &'a UsageMinute>) -> CallsByDay {
    let mut days = CallsByDay::new();
    for minute in minutes {
        let (tenant, api) = (minute.key.tenant.clone(), Arc::clone(&minute.key.api));
        let calls = days
            .entry(TenantDay::new(tenant, api, minute.minute))
            .or_default();
        *calls = calls.saturating_add(minute.totals.calls);
    }
    days
}
