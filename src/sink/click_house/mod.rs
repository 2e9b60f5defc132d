//! Usage in ClickHouse.

mod fault;
mod row;
mod table;

use std::{
    error::Error,
    fmt,
    ops::Range,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use clickhouse::Client;

use self::{
    fault::{Fault, judge},
    row::{END_OF_DAYS, EventRow},
    table::{EVENTS, check},
};
use super::{
    SinkError, UsageSink, Verdict, Verdicts, address, batch_id,
    isolate::{Deliver, Sent, isolate, unsettled},
};
use crate::{error::ConfigError, meter::UsageEvent};

/// The schema, in its order. Each statement may run again.
const SCHEMA: &[&str] = &[
    include_str!("0001_usage_events.sql"),
    include_str!("0002_usage_aggregates.sql"),
];
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
const END_TIMEOUT: Duration = Duration::from_secs(20);
/// The waits while there are too many parts: from a second, doubled each time.
const MAX_DOUBLINGS: u32 = 6;

/// What every insert asks for: an answer after the rows are there, by one block, with its token known to the aggregates
/// too. Without the last, an insert that broke off between the table and an aggregate would never reach the aggregate.
const INSERT_SETTINGS: &[(&str, &str)] = &[
    ("async_insert", "0"),
    ("insert_deduplicate", "1"),
    ("deduplicate_blocks_in_dependent_materialized_views", "1"),
    ("wait_end_of_query", "1"),
];

/// Writes usage to the table `usage_events` of a ClickHouse database.
///
/// 1. The table is a `ReplacingMergeTree` whose sorting key ends in the event's id: an event that comes again replaces
///    itself. Read it by the view `usage_events_once` (which is `FINAL`) or count `uniqExact(id)`; `usage_billed_daily`
///    is made so.
/// 2. Every insert has a token, the digest of its events' ids: one that is repeated within the table's window of 1,000
///    inserts leaves no second row to be replaced. Other events never come under the same token, which ClickHouse would
///    drop without a word.
/// 3. The aggregates (`usage_requests_per_hour`, `usage_errors_by_endpoint`, `usage_latency_daily`) keep the ids that
///    they count, so that they do not double either, in the window or after it.
/// 4. "Too many parts" is a wait that grows from one second to a minute. An event that a constraint or a type of the
///    table refuses is found by halving the batch, and rejected alone. With everything else that goes wrong, the batch
///    is offered again.
///
/// [`connect`](ClickHouseSinkBuilder::connect) reads the table's engine, sorting key and window, and refuses one that
/// would count twice.
///
/// ```no_run
/// use tollgate::sink::ClickHouseSink;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let sink = ClickHouseSink::builder("http://127.0.0.1:8123")?
///     .database("metering")
///     .user("gate", "a password")
///     .migrate()
///     .connect()
///     .await?;
/// # let _ = sink;
/// # Ok(())
/// # }
/// ```
pub struct ClickHouseSink {
    client: Client,
    database: Box<str>,
    /// How often in a row there were too many parts.
    n_refusals: AtomicU32,
}

/// Settings of a [`ClickHouseSink`]; made by [`ClickHouseSink::builder`].
#[must_use]
pub struct ClickHouseSinkBuilder {
    client: Client,
    database: Box<str>,
    migrates: bool,
}

impl fmt::Debug for ClickHouseSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client holds a password.
        f.debug_struct("ClickHouseSink")
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ClickHouseSinkBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClickHouseSinkBuilder")
            .field("database", &self.database)
            .field("migrates", &self.migrates)
            .finish_non_exhaustive()
    }
}

/// ClickHouse cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClickHouseStartError {
    /// The table is not there.
    #[error("ClickHouse has no table `usage_events` in this database: connect with `migrate`")]
    Missing,
    /// The table would count an event twice, or lose one.
    #[error("the table `usage_events` does not keep each event once: {reason}")]
    NotIdempotent {
        /// What is wrong and how to mend it.
        reason: &'static str,
    },
    /// The server does not answer, or refused the user or the schema.
    #[error("ClickHouse cannot be used")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
}

impl ClickHouseStartError {
    fn unavailable(error: clickhouse::error::Error) -> Self {
        Self::Unavailable(error.into())
    }
}

impl ClickHouseSinkBuilder {
    /// The database; `default` unless set.
    pub fn database(mut self, database: impl Into<Box<str>>) -> Self {
        self.database = database.into();
        self
    }

    /// Who writes. Neither `Debug` nor an error shows the password.
    pub fn user(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.client = self.client.with_user(user).with_password(password);
        self
    }

    /// Creates the database, the table and the aggregates where they are missing, when it connects. What is there stays
    /// as it is, so that many processes may do so at once. The user needs the right to create.
    pub const fn migrate(mut self) -> Self {
        self.migrates = true;
        self
    }

    /// Asks the server for the table, and makes it first after [`migrate`](Self::migrate).
    ///
    /// # Errors
    ///
    /// [`ClickHouseStartError`] when the server does not answer, the table is missing, or it would count an event twice.
    pub async fn connect(self) -> Result<ClickHouseSink, ClickHouseStartError> {
        let client = self.client.clone().with_database(&*self.database);
        if self.migrates {
            let name = self.database.replace('\\', "\\\\").replace('`', "\\`");
            let create = format!("CREATE DATABASE IF NOT EXISTS `{name}`");
            // Not in the database, which may not be there.
            let mut statements = vec![(&self.client, create.as_str())];
            let schema = SCHEMA.iter().flat_map(|file| file.split(";\n"));
            statements.extend(schema.map(|statement| (&client, statement.trim())));
            for (client, statement) in statements.into_iter().filter(|(_, it)| !it.is_empty()) {
                let made = client.query_raw(statement).execute().await;
                made.map_err(ClickHouseStartError::unavailable)?;
            }
        }
        check(&client).await?;
        Ok(ClickHouseSink {
            client,
            database: self.database,
            n_refusals: AtomicU32::new(0),
        })
    }
}

impl ClickHouseSink {
    /// A sink for the server at an address, such as `https://host:8443`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when it is no `http` or `https` URL with a host, or has a user and a password in it.
    pub fn builder(url: &str) -> Result<ClickHouseSinkBuilder, ConfigError> {
        address::read("url", url)?;
        Ok(ClickHouseSinkBuilder {
            client: Client::default().with_url(url),
            database: Box::from("default"),
            migrates: false,
        })
    }

    /// Inserts events under the token of these events.
    async fn insert(&self, events: &[UsageEvent]) -> Result<(), clickhouse::error::Error> {
        let mut insert = self.client.insert::<EventRow<'_>>(EVENTS).await?;
        for (name, value) in INSERT_SETTINGS {
            insert = insert.with_setting(*name, *value);
        }
        let mut insert = insert
            .with_setting("insert_deduplication_token", batch_id(events).to_string())
            .with_timeouts(Some(SEND_TIMEOUT), Some(END_TIMEOUT));
        for event in events {
            insert.write(&EventRow::of(event)).await?;
        }
        insert.end().await
    }
}

/// A batch on its way.
struct Sending<'a> {
    sink: &'a ClickHouseSink,
    batch: &'a [UsageEvent],
}

#[async_trait]
impl Deliver for Sending<'_> {
    async fn deliver(&self, part: Range<usize>) -> Sent {
        let n_refusals = &self.sink.n_refusals;
        let events = self.batch.get(part).unwrap_or_default();
        let Err(error) = self.sink.insert(events).await else {
            n_refusals.store(0, Ordering::Relaxed);
            return Sent::Accepted;
        };
        match judge(&error) {
            Fault::TooManyParts => {
                let n = n_refusals.fetch_add(1, Ordering::Relaxed);
                let after =
                    Duration::from_secs(1 << n.min(MAX_DOUBLINGS)).min(Duration::from_secs(60));
                tracing::warn!(
                    n,
                    "ClickHouse has too many parts: give the recorder larger batches"
                );
                Sent::Later(after)
            }
            Fault::OfRows(reason) => Sent::Refused(reason),
            Fault::Other => Sent::Failed(error.into()),
        }
    }
}

#[async_trait]
impl UsageSink for ClickHouseSink {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        let mut verdicts = unsettled(batch.len());
        let mut parts: Vec<Range<usize>> = Vec::new();
        for (place, (event, verdict)) in batch.iter().zip(&mut verdicts).enumerate() {
            if event.time >= END_OF_DAYS {
                *verdict = Verdict::Rejected {
                    reason: "time_out_of_range",
                };
                continue;
            }
            match parts.last_mut() {
                Some(part) if part.end == place => part.end = place + 1,
                _ => parts.push(place..place + 1),
            }
        }
        let sending = Sending { sink: self, batch };
        isolate(&sending, parts, verdicts).await
    }
}
