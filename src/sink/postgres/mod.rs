//! Usage events and their totals in PostgreSQL.

mod batch;
mod builder;
mod corrections;
mod days;
mod fault;
mod series;
mod totals;
mod write;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use sqlx::PgPool;

pub use self::builder::PostgresSinkBuilder;
pub(crate) use self::fault::unavailable;
pub(crate) use self::totals::{COUNTS, SUMS};
#[cfg(feature = "redis")]
pub(crate) use self::write::Position;
use self::{days::Days, series::SeriesIds, totals::Statements};
use super::{SinkError, UsageSink, Verdicts};
use crate::{
    clock::{Clock, Timestamp},
    meter::UsageEvent,
    postgres_support::{Postgres, PostgresStartError},
};

/// The lock that whoever counts usage shares, and whoever closes a period has alone: so that what is counted for a
/// closed period is noted as a correction, and what is no correction is in the period's sums.
pub(crate) const CLOSING_LOCK: i64 = 0x746f_6c6c_636c_6f73;
/// The migration that the sink needs, and its last table.
const MIGRATION: (i64, &str) = (3, "tollgate.usage_dead_letters");

/// Writes events to PostgreSQL and counts them by the minute and the hour, in one transaction.
///
/// # What is guaranteed
///
/// - **Once**: an event is known by its id, and only what is new is counted. It does not matter how often it comes, in
///   which batch, through which process, or whether the answer to a commit was lost. Its id is kept with the partition of
///   its day: [`forget_days_before`](Self::forget_days_before) drops those, and from then on rejects what is older.
/// - **Durable**: the transaction waits for the disk even where the server's `synchronous_commit` is off. With `fsync`
///   off a power cut may still lose what was accepted.
/// - **One bad event stops none**: what PostgreSQL cannot store is found and rejected, and the rest is written.
/// - **Late is counted**: an event counts in the minute of its time, however late it comes. If that time was
///   [closed](crate::usage::UsagePeriods::close), it is noted as a correction too.
/// - **No deadlock**: rows are locked in one order. Should the server still end a transaction, the batch is offered
///   again.
///
/// Rejected are: an event whose time is more than a day ahead or before the first day that is kept, a text with NUL, and
/// a quantity whose name is longer than 255 bytes.
///
/// # What it costs
///
/// At most nine statements for a batch, whatever its size: batches of 1,000 and more are cheaper by the event. Each event takes
/// about 700 bytes, or 120 with [`totals_only`](PostgresSinkBuilder::totals_only); a minute of a route some 300.
///
/// ```no_run
/// use tollgate::{Tollgate, postgres_support::Postgres, sink::PostgresSink};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let postgres = Postgres::connect("postgres://api@db.internal/api").await?;
/// postgres.migrate().await?;
/// let gate = Tollgate::builder().usage(PostgresSink::connect(&postgres).await?).build()?;
/// # Ok(())
/// # }
/// ```
///
/// Cloning gives another handle.
#[derive(Clone)]
pub struct PostgresSink {
    inner: Arc<Inner>,
}

struct Inner {
    pool: PgPool,
    clock: Arc<dyn Clock>,
    keeps_events: bool,
    days: Days,
    series: SeriesIds,
    statements: Statements,
}

impl fmt::Debug for PostgresSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSink")
            .field("keeps_events", &self.inner.keeps_events)
            .finish_non_exhaustive()
    }
}

impl PostgresSink {
    /// A sink with all defaults. The schema must have been [migrated](Postgres::migrate).
    ///
    /// # Errors
    ///
    /// [`PostgresStartError`] when the schema is older or newer than this version of the crate, or cannot be asked.
    pub async fn connect(postgres: &Postgres) -> Result<Self, PostgresStartError> {
        Self::builder(postgres).connect().await
    }

    /// Sets a sink up.
    pub fn builder(postgres: &Postgres) -> PostgresSinkBuilder {
        PostgresSinkBuilder::new(postgres.clone())
    }

    /// Drops the events and ids of all days (in UTC) before that of `time`, and says how many days. Totals stay.
    ///
    /// From then on an event of such a day is rejected, as it may have been counted before: keep the days for longer
    /// than an event may be on its way. Needs the rights of the tables' owner.
    ///
    /// # Errors
    ///
    /// [`SinkError::Unavailable`] when the server cannot be asked or forbids it.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have dropped some of the days; the next call drops the rest.
    pub async fn forget_days_before(&self, time: Timestamp) -> Result<u64, SinkError> {
        self.inner
            .days
            .forget_before(&self.inner.pool, time)
            .await
            .map_err(unavailable)
    }

    #[cfg(feature = "redis")]
    pub(crate) fn pool(&self) -> &PgPool {
        &self.inner.pool
    }
}

#[async_trait]
impl UsageSink for PostgresSink {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        self.count(batch, None).await.map(Verdicts::Each)
    }
}
