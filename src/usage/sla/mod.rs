//! What was promised of a service, and whether it is kept.
//!
//! 1. An [`Objective`] is a promise over a rolling window: of so many calls the service fails at most a share, and
//!    answers at least a share within a time.
//! 2. Its [`ErrorBudget`]s say how many calls may be bad, how many were, and how fast the budget burns. Pure:
//!    [`Objective::budgets`] takes totals.
//! 3. An [`SlaMonitor`] reads the totals from a [`UsageSource`], and tells an [`AlertSink`] of a breach once, until
//!    the objective is met again. An [`AlertMemory`] remembers what was told, in this process or in PostgreSQL, so that
//!    of several monitors one tells.
//!
//! Refused calls count in no budget: a limit that holds is no failure.
//!
//! ```
//! use std::time::Duration;
//! use tollgate::usage::{UsageTotals, sla::Objective};
//!
//! let objective = Objective::new("chat", Duration::from_secs(30 * 86_400))?.availability(999_000)?;
//! let mut totals = UsageTotals::default();
//! (totals.calls, totals.failed) = (10_000, 4);
//! let budget = objective.budgets(&totals)[0];
//! assert_eq!((budget.allowed, budget.bad, budget.left()), (10, 4, 6));
//! assert!(!budget.is_breached());
//! // At 40 % of the rate that would use the budget up.
//! assert_eq!(budget.burn_percent(), Some(40));
//! # Ok::<(), tollgate::error::ConfigError>(())
//! ```

mod alert;
mod monitor;
mod objective;
#[cfg(feature = "postgres")]
mod postgres_memory;

#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use self::postgres_memory::PostgresAlertMemory;
pub use self::{
    alert::{AlertError, AlertMemory, AlertSink, Breach, LogAlerts, MemoryAlertMemory, SlaAlert},
    monitor::{SlaError, SlaMonitor, Standing, UsageSource},
    objective::{ErrorBudget, Objective, Promise},
};
