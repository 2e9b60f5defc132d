//! What the events say together.
//!
//! 1. [`UsageTotals`] are numbers that add up, whatever the order of the events: calls by how they ended, bytes,
//!    quantities, cost, and a [`LatencySketch`].
//! 2. [`UsageMinute`] holds those of one [`UsageKey`] in one minute. A part of a call that goes on adds to the minute of
//!    its own time.
//! 3. `PostgresUsage` (feature `postgres`) answers questions to the minutes that a rollup has written: curves, error
//!    rates and latencies, top routes, countries, trends.
//! 4. [`sla`] says whether objectives are kept, [`DeprecationReport`] who still calls a deprecated version,
//!    [`reconcile()`] whether real-time counters agree with the events, and [`Margins`] what usage costs beside what it
//!    brings. [`Replay`] makes minutes of a log.
//!
//! ```
//! use std::sync::Arc;
//! use tollgate::{
//!     clock::Timestamp,
//!     id::{PlanName, TenantId},
//!     meter::{CallOutcome, EventId, UsageEvent},
//!     usage::UsageMinute,
//! };
//!
//! let time = Timestamp::from_unix_seconds(1_768_478_475);
//! let mut event = UsageEvent::new(EventId::new(1, 1), time, TenantId::new("acme")?, PlanName::new("pro")?);
//! event.latency_micros = 20_000;
//! event.quantities.insert(Arc::from("tokens"), 812);
//! let mut minute = UsageMinute::of(&event);
//!
//! // The same call, refused: counted, and not to be paid for.
//! event.id = EventId::new(1, 2);
//! event.outcome = CallOutcome::Refused;
//! event.quantities.clear();
//! minute.add(&event)?;
//!
//! assert_eq!((minute.totals.calls, minute.totals.billable_calls()), (2, 1));
//! assert_eq!(minute.totals.quantities["tokens"].amount, 812);
//! assert_eq!(minute.totals.latency.count(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod deprecation;
mod filter;
mod margin;
mod minute;
#[cfg(feature = "postgres")]
mod periods;
#[cfg(feature = "postgres")]
mod query;
mod rates;
mod reconcile;
mod replay;
#[cfg(all(feature = "postgres", feature = "redis"))]
mod rollup;
mod sketch;
pub mod sla;

#[cfg(all(feature = "postgres", feature = "redis"))]
#[cfg_attr(docsrs, doc(cfg(all(feature = "postgres", feature = "redis"))))]
pub use self::rollup::{Rollup, RollupBuilder, RollupCounters, RollupError};
pub use self::{
    deprecation::{DeprecatedUse, DeprecationReport},
    filter::UsageFilter,
    margin::{MarginLine, Margins, RouteOnPlan},
    minute::{OtherMinute, QuantityTotal, UsageKey, UsageMinute, UsageTotals},
    reconcile::{CallsByDay, Drift, DriftReport, TenantDay, Tolerance, calls_by_day, reconcile},
    replay::{Replay, UnreadableLine},
    sketch::{CorruptSketch, LatencySketch},
};
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use self::{
    periods::{Correction, UsagePeriods},
    query::{
        CountryUsage, MadeDays, PostgresUsage, RouteUsage, Step, TenantTrend, UsagePoint,
        UsageQueryError,
    },
};
