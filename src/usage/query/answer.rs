use std::sync::Arc;

use crate::{clock::Timestamp, id::TenantId, postgres_support::Fault, usage::UsageTotals};

/// A question to the minutes of usage was not answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UsageQueryError {
    /// PostgreSQL cannot be reached, or did not answer in time.
    #[error("usage is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The tables hold something that is no usage.
    #[error("usage holds a row that cannot be read")]
    Corrupt(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<Fault> for UsageQueryError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Corrupt(cause) => Self::Corrupt(cause),
            Fault::ReadOnly(cause) | Fault::Unavailable(cause) => Self::Unavailable(cause),
            // No question writes what could exist.
            Fault::Exists => Self::Unavailable("a row exists already".into()),
        }
    }
}

/// The use of one route.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouteUsage {
    /// The API.
    pub api: Arc<str>,
    /// The method.
    pub method: Arc<str>,
    /// The route template.
    pub route: Arc<str>,
    /// What was used; without named quantities.
    pub totals: UsageTotals,
}

/// The use from one country.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CountryUsage {
    /// ISO 3166-1 alpha-2; `None` for calls of which no country is known.
    pub country: Option<Arc<str>>,
    /// What was used; without named quantities.
    pub totals: UsageTotals,
}

/// A point of a curve.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsagePoint {
    /// The start of the step.
    pub start: Timestamp,
    /// What was used in it; without named quantities.
    pub totals: UsageTotals,
}

/// A tenant's calls beside those of the time of the same length before.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TenantTrend {
    /// Whose calls.
    pub tenant: TenantId,
    /// The calls in the time that was asked for.
    pub calls: u64,
    /// The calls in the time before.
    pub calls_before: u64,
}

impl TenantTrend {
    /// The change in percent of the calls before, rounded towards no change: -100 for a tenant that calls no more.
    /// `None` for one that did not call before.
    #[must_use]
    pub fn change_percent(&self) -> Option<i64> {
        let (now, before) = (i128::from(self.calls), i128::from(self.calls_before));
        let change = ((now - before) * 100).checked_div(before)?;
        Some(i64::try_from(change).unwrap_or(i64::MAX))
    }
}
