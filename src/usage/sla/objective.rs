use std::{fmt, sync::Arc, time::Duration};

use crate::{
    clock::{Timestamp, micros},
    error::ConfigError,
    id::TenantId,
    usage::{UsageFilter, UsageTotals},
};

const MILLION: u32 = 1_000_000;
const LEAST_WINDOW: Duration = Duration::from_secs(60);
const LONGEST_WINDOW: Duration = Duration::from_secs(366 * 86_400);

/// What is promised of a service over a rolling window.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Objective {
    pub(super) name: Arc<str>,
    window: Duration,
    tenant: Option<TenantId>,
    api: Option<Arc<str>>,
    availability: Option<u32>,
    latency: Option<(u64, u32)>,
}

/// Which of its promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Promise {
    /// That calls do not fail.
    Availability,
    /// That calls are answered in time.
    Latency,
}

impl Promise {
    /// The name that logs and tables show: `availability` or `latency`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Availability => "availability",
            Self::Latency => "latency",
        }
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How many calls may be bad over a window, and how many were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ErrorBudget {
    /// For which promise.
    pub promise: Promise,
    /// The share of calls that must be good, in millionths.
    pub target_per_million: u32,
    /// The calls that count.
    pub calls: u64,
    /// How many of them were bad.
    pub bad: u64,
    /// How many of them may be bad: their share of the calls, rounded down.
    pub allowed: u64,
}

impl Objective {
    /// An objective over a rolling window, which promises nothing yet. The name stands in alerts.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names `window` when it is shorter than a minute or longer than 366 days.
    pub fn new(name: impl Into<Arc<str>>, window: Duration) -> Result<Self, ConfigError> {
        if !(LEAST_WINDOW..=LONGEST_WINDOW).contains(&window) {
            return Err(ConfigError::new(
                "window",
                "must be a minute to 366 days: 30 days suits most",
            ));
        }
        Ok(Self {
            name: name.into(),
            window,
            tenant: None,
            api: None,
            availability: None,
            latency: None,
        })
    }

    /// Counts the calls of one tenant only; all unless set.
    pub fn tenant(mut self, tenant: TenantId) -> Self {
        self.tenant = Some(tenant);
        self
    }

    /// Counts the calls of one API only; all unless set.
    pub fn api(mut self, api: impl Into<Arc<str>>) -> Self {
        self.api = Some(api.into());
        self
    }

    /// Of a million calls at least so many are not failed by the service: 999,000 is 99.9 percent.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names `availability` when it is zero or above a million.
    pub fn availability(mut self, per_million: u32) -> Result<Self, ConfigError> {
        self.availability = Some(checked("availability", per_million)?);
        Ok(self)
    }

    /// Of a million calls at least so many are answered whole within `limit`. Latencies are known to one percent; one
    /// at the limit is within it. A failed call counts by its latency like any other.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names `latency` when the share is zero or above a million, or the limit is zero.
    pub fn latency(mut self, limit: Duration, per_million: u32) -> Result<Self, ConfigError> {
        if limit.is_zero() {
            return Err(ConfigError::new(
                "latency",
                "no call is answered in no time",
            ));
        }
        self.latency = Some((micros(limit), checked("latency", per_million)?));
        Ok(self)
    }

    /// The objective's name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The tenant whose calls it counts; all tenants' when absent.
    #[must_use]
    pub const fn of_tenant(&self) -> Option<&TenantId> {
        self.tenant.as_ref()
    }

    /// What usage it asks for at a time: that of the window before it, up to the last whole minute.
    pub fn filter(&self, now: Timestamp) -> UsageFilter {
        let mut filter = UsageFilter::new(now.saturating_sub(self.window), now);
        if let Some(tenant) = &self.tenant {
            filter = filter.tenant(tenant.clone());
        }
        if let Some(api) = &self.api {
            filter = filter.api(Arc::clone(api));
        }
        filter
    }

    /// How its promises stand with these totals, each that was made.
    #[must_use]
    pub fn budgets(&self, totals: &UsageTotals) -> Vec<ErrorBudget> {
        let availability = self.availability.map(|target| {
            let calls = totals.let_through();
            ErrorBudget::new(Promise::Availability, target, calls, totals.failed)
        });
        let latency = self.latency.map(|(limit, target)| {
            let calls = totals.latency.count();
            let late = calls.saturating_sub(totals.latency.count_at_most(limit));
            ErrorBudget::new(Promise::Latency, target, calls, late)
        });
        availability.into_iter().chain(latency).collect()
    }
}

fn checked(field: &'static str, per_million: u32) -> Result<u32, ConfigError> {
    if (1..=MILLION).contains(&per_million) {
        return Ok(per_million);
    }
    Err(ConfigError::new(
        field,
        "must be 1 to 1000000 calls of a million: 999000 is 99.9 percent",
    ))
}

impl ErrorBudget {
    fn new(promise: Promise, target: u32, calls: u64, bad: u64) -> Self {
        let may_fail = u128::from(MILLION.saturating_sub(target));
        let allowed = u128::from(calls) * may_fail / u128::from(MILLION);
        Self {
            promise,
            target_per_million: target,
            calls,
            bad,
            allowed: u64::try_from(allowed).unwrap_or(u64::MAX),
        }
    }

    /// Whether more calls were bad than may be.
    #[must_use]
    pub const fn is_breached(&self) -> bool {
        self.bad > self.allowed
    }

    /// How many more calls may be bad; zero when none may.
    #[must_use]
    pub const fn left(&self) -> u64 {
        self.allowed.saturating_sub(self.bad)
    }

    /// How fast the budget burns, as a percentage of the rate that uses it up exactly, rounded up: above 100 the
    /// objective is not kept at this rate. Over the last hour it tells what the window will tell later. `None` without
    /// calls, or where no call at all may be bad.
    #[must_use]
    pub fn burn_percent(&self) -> Option<u64> {
        let may_fail = u128::from(MILLION.saturating_sub(self.target_per_million));
        let at_rate = u128::from(self.calls) * may_fail;
        let burnt = u128::from(self.bad) * u128::from(MILLION) * 100;
        (at_rate > 0).then(|| u64::try_from(burnt.div_ceil(at_rate)).unwrap_or(u64::MAX))
    }
}
