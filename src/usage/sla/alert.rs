use std::{
    collections::HashSet,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;

use super::{ErrorBudget, Promise};
use crate::{clock::Timestamp, id::TenantId};

/// A cause of whatever kind.
pub type AlertError = Box<dyn std::error::Error + Send + Sync>;

/// An objective is not kept any more.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlaAlert {
    /// The objective's name.
    pub objective: Arc<str>,
    /// The tenant whose calls it counts; all tenants' when absent.
    pub tenant: Option<TenantId>,
    /// How the promise stands that is broken.
    pub budget: ErrorBudget,
    /// When this was found.
    pub at: Timestamp,
}

/// Hears of objectives that are broken.
///
/// # Contract
///
/// A breach is told once; again only when telling failed, or the process ended before it was noted as told: be
/// idempotent on objective, tenant and promise.
#[async_trait]
pub trait AlertSink: Debug + Send + Sync + 'static {
    /// An objective was broken.
    ///
    /// # Errors
    ///
    /// Any cause: the alert is told again at the next check.
    async fn breached(&self, alert: &SlaAlert) -> Result<(), AlertError>;
}

/// Writes alerts to the log, at target `tollgate::sla`.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct LogAlerts;

impl LogAlerts {
    /// A sink that logs.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

#[async_trait]
impl AlertSink for LogAlerts {
    async fn breached(&self, alert: &SlaAlert) -> Result<(), AlertError> {
        tracing::warn!(
            target: "tollgate::sla",
            objective = &*alert.objective,
            tenant = alert.tenant.as_ref().map(tracing::field::display),
            promise = %alert.budget.promise,
            calls = alert.budget.calls,
            bad = alert.budget.bad,
            allowed = alert.budget.allowed,
            "an objective is not kept"
        );
        Ok(())
    }
}

/// Remembers which breaches were told.
///
/// # Contract
///
/// Of several that [`claim`](Self::claim) one breach, one is told `true`, until the breach [ends](Self::end) or the
/// claim was neither [noted as told](Self::told) nor given up within a minute or so.
#[async_trait]
pub trait AlertMemory: Debug + Send + Sync + 'static {
    /// Whether the caller is the one to tell of a breach.
    ///
    /// # Errors
    ///
    /// The memory does not answer.
    async fn claim(&self, breach: &Breach<'_>, now: Timestamp) -> Result<bool, AlertError>;

    /// Notes that a claimed breach was told.
    ///
    /// # Errors
    ///
    /// The memory does not answer: the breach may be told again.
    async fn told(&self, breach: &Breach<'_>) -> Result<(), AlertError>;

    /// Forgets a breach, because it is over or could not be told.
    ///
    /// # Errors
    ///
    /// The memory does not answer.
    async fn end(&self, breach: &Breach<'_>) -> Result<(), AlertError>;
}

/// What a breach is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct Breach<'a> {
    /// The objective's name.
    pub objective: &'a str,
    /// The tenant, empty for all of them.
    pub tenant: &'a str,
    /// The promise that is broken.
    pub promise: Promise,
}

/// Remembers in this process: after a restart, what is still broken is told again.
#[derive(Debug, Default)]
pub struct MemoryAlertMemory(Mutex<HashSet<(String, String, Promise)>>);

impl MemoryAlertMemory {
    /// A memory of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashSet<(String, String, Promise)>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn owned(breach: &Breach<'_>) -> (String, String, Promise) {
    (
        breach.objective.to_owned(),
        breach.tenant.to_owned(),
        breach.promise,
    )
}

#[async_trait]
impl AlertMemory for MemoryAlertMemory {
    async fn claim(&self, breach: &Breach<'_>, _: Timestamp) -> Result<bool, AlertError> {
        Ok(self.with(|known| known.insert(owned(breach))))
    }

    async fn told(&self, _: &Breach<'_>) -> Result<(), AlertError> {
        Ok(())
    }

    async fn end(&self, breach: &Breach<'_>) -> Result<(), AlertError> {
        self.with(|known| known.remove(&owned(breach)));
        Ok(())
    }
}
