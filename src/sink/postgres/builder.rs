use std::{fmt, sync::Arc};

use super::{Days, Inner, MIGRATION, PostgresSink, SeriesIds, Statements};
use crate::{
    clock::{Clock, SystemClock},
    postgres_support::{Postgres, PostgresStartError},
};

/// Sets up a [`PostgresSink`].
#[must_use]
pub struct PostgresSinkBuilder {
    postgres: Postgres,
    clock: Option<Arc<dyn Clock>>,
    keeps_events: bool,
}

impl fmt::Debug for PostgresSinkBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSinkBuilder")
            .field("keeps_events", &self.keeps_events)
            .finish_non_exhaustive()
    }
}

impl PostgresSinkBuilder {
    pub(super) const fn new(postgres: Postgres) -> Self {
        Self {
            postgres,
            clock: None,
            keeps_events: true,
        }
    }

    /// Keeps of each event its id, its tenant and its time, and not the event itself: totals are as exact, and take a
    /// sixth of the room.
    pub const fn totals_only(mut self) -> Self {
        self.keeps_events = false;
        self
    }

    /// The clock that says which events are of the future. The system's unless set.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Some(Arc::new(clock));
        self
    }

    /// Checks the schema.
    ///
    /// # Errors
    ///
    /// [`PostgresStartError`] when the schema is older or newer than this version of the crate, or cannot be asked.
    pub async fn connect(self) -> Result<PostgresSink, PostgresStartError> {
        let (number, table) = MIGRATION;
        self.postgres.require(number, table).await?;
        Ok(PostgresSink {
            inner: Arc::new(Inner {
                pool: self.postgres.pool().clone(),
                clock: self.clock.unwrap_or_else(|| Arc::new(SystemClock::new())),
                keeps_events: self.keeps_events,
                days: Days::default(),
                series: SeriesIds::default(),
                statements: Statements::new(),
            }),
        })
    }
}
