//! What the stores in PostgreSQL share.

use std::{fmt, sync::Arc, time::Duration};

use sqlx::PgPool;

use super::{Fault, Hears, Postgres, Push, checked_deadline, within};
use crate::error::ConfigError;

const DEADLINE: Duration = Duration::from_secs(2);

/// A handle to the server, a deadline for each call, and the changes that are heard on a channel.
pub(crate) struct Store<C> {
    postgres: Postgres,
    deadline: Duration,
    pub(crate) changes: Arc<C>,
    push: Push,
}

impl<C: Hears + Default> Store<C> {
    pub(crate) fn new(postgres: &Postgres) -> Self {
        Self {
            postgres: postgres.clone(),
            deadline: DEADLINE,
            changes: Arc::default(),
            push: Push::default(),
        }
    }

    pub(crate) fn deadline(mut self, deadline: Duration) -> Result<Self, ConfigError> {
        self.deadline = checked_deadline(deadline)?;
        Ok(self)
    }

    pub(crate) const fn pool(&self) -> &PgPool {
        self.postgres.pool()
    }

    /// What a statement answers within the deadline.
    pub(crate) async fn done<T>(
        &self,
        statement: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, Fault> {
        within(self.deadline, async { Ok(statement.await?) }).await
    }

    /// Hears of the changes that are told on a channel, from the first time on.
    pub(crate) fn listen(&self, channel: &'static str) {
        let changes = Arc::downgrade(&self.changes);
        self.push.start(&self.postgres, channel, changes);
    }
}

impl<C> fmt::Debug for Store<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("postgres", &self.postgres)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
