use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;

use super::{
    AlertError, AlertMemory, AlertSink, Breach, ErrorBudget, LogAlerts, MemoryAlertMemory,
    Objective, SlaAlert,
};
use crate::{
    clock::Timestamp,
    usage::{UsageFilter, UsageTotals},
};

/// Where totals of usage are read from.
///
/// The reader of minutes in PostgreSQL is one; a service that keeps its minutes elsewhere writes its own.
#[async_trait]
pub trait UsageSource: Debug + Send + Sync + 'static {
    /// The totals of what the filter lets through. Named quantities may be left out.
    ///
    /// # Errors
    ///
    /// The source does not answer, or holds what cannot be read.
    async fn totals(&self, filter: &UsageFilter) -> Result<UsageTotals, AlertError>;
}

/// A check of objectives did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlaError {
    /// The totals of an objective could not be read.
    #[error("usage cannot be read for the objective `{objective}`")]
    Usage {
        /// The objective's name.
        objective: Arc<str>,
        /// Why not.
        #[source]
        source: AlertError,
    },
    /// What was told before is not known, so nothing was told now.
    #[error("it is not known which breaches were told")]
    Memory(#[source] AlertError),
    /// The sink did not take an alert; it is told again at the next check.
    #[error("the alert of the objective `{objective}` was not taken")]
    Sink {
        /// The objective's name.
        objective: Arc<str>,
        /// Why not.
        #[source]
        source: AlertError,
    },
}

/// How an objective stood when it was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Standing {
    /// The objective's name.
    pub objective: Arc<str>,
    /// How each of its promises stands.
    pub budgets: Vec<ErrorBudget>,
}

/// Checks objectives and tells of those that are broken.
///
/// It has no task of its own: call [`check`](Self::check) once a minute.
#[derive(Clone, Debug)]
#[must_use]
pub struct SlaMonitor {
    source: Arc<dyn UsageSource>,
    objectives: Vec<Objective>,
    sink: Arc<dyn AlertSink>,
    memory: Arc<dyn AlertMemory>,
}

impl SlaMonitor {
    /// Checks these objectives by the totals of a source.
    pub fn new(source: impl UsageSource, objectives: impl IntoIterator<Item = Objective>) -> Self {
        Self {
            source: Arc::new(source),
            objectives: objectives.into_iter().collect(),
            sink: Arc::new(LogAlerts::new()),
            memory: Arc::new(MemoryAlertMemory::new()),
        }
    }

    /// Whom to tell; the log unless set.
    pub fn alerts(mut self, sink: Arc<dyn AlertSink>) -> Self {
        self.sink = sink;
        self
    }

    /// Where it is kept which breaches were told; in this process unless set.
    pub fn memory(mut self, memory: Arc<dyn AlertMemory>) -> Self {
        self.memory = memory;
        self
    }

    /// Checks all objectives, and tells of those that have come to be broken since the last check.
    ///
    /// # Errors
    ///
    /// The first [`SlaError`], after all objectives were checked.
    ///
    /// # Cancel safety
    ///
    /// A check that is given up may have told of some; the others are told by the next one.
    pub async fn check(&self, now: Timestamp) -> Result<Vec<Standing>, SlaError> {
        let mut standings = Vec::with_capacity(self.objectives.len());
        let mut first_error = None;
        for objective in &self.objectives {
            match self.check_one(objective, now).await {
                Ok(standing) => standings.push(standing),
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(standings), Err)
    }

    async fn check_one(&self, objective: &Objective, now: Timestamp) -> Result<Standing, SlaError> {
        let totals = self
            .source
            .totals(&objective.filter(now))
            .await
            .map_err(|source| SlaError::Usage {
                objective: Arc::clone(&objective.name),
                source,
            })?;
        let budgets = objective.budgets(&totals);
        for budget in &budgets {
            self.tell(objective, *budget, now).await?;
        }
        Ok(Standing {
            objective: Arc::clone(&objective.name),
            budgets,
        })
    }

    async fn tell(
        &self,
        objective: &Objective,
        budget: ErrorBudget,
        now: Timestamp,
    ) -> Result<(), SlaError> {
        let breach = Breach {
            objective: &objective.name,
            tenant: objective.of_tenant().map_or("", AsRef::as_ref),
            promise: budget.promise,
        };
        if !budget.is_breached() {
            return self.memory.end(&breach).await.map_err(SlaError::Memory);
        }
        if !self
            .memory
            .claim(&breach, now)
            .await
            .map_err(SlaError::Memory)?
        {
            return Ok(());
        }
        let alert = SlaAlert {
            objective: Arc::clone(&objective.name),
            tenant: objective.of_tenant().cloned(),
            budget,
            at: now,
        };
        if let Err(source) = self.sink.breached(&alert).await {
            // Also where this fails it is told again, when the claim has lapsed.
            let ended = self.memory.end(&breach).await;
            let objective = Arc::clone(&objective.name);
            ended.map_err(SlaError::Memory)?;
            return Err(SlaError::Sink { objective, source });
        }
        self.memory.told(&breach).await.map_err(SlaError::Memory)
    }
}
