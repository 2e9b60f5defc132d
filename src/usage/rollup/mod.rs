//! From the stream of events to totals in PostgreSQL.

mod builder;
mod entry;
mod worker;

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::{Counter, counter};
use tokio::{sync::watch, task::JoinSet};

pub use self::builder::RollupBuilder;
use self::worker::Worker;
use crate::{
    clock::Clock,
    error::ConfigError,
    redis_support::{KeySpace, RedisConnector, RedisStartError},
    sink::PostgresSink,
};

/// Reads the streams that a [`RedisStreamSink`](crate::sink::RedisStreamSink) writes, as a consumer group, and counts
/// their events through a [`PostgresSink`].
///
/// # What is guaranteed
///
/// - **Read at least once, counted once**: an entry is acknowledged after the transaction that counts it is committed.
///   What is read again, because a process, a server or a connection died between the two, is known by its event's id.
/// - **Shared**: any number of processes run with the same group, each with a name of its own. What a dead one had read
///   is claimed by another after a minute, unless set.
/// - **One bad entry stops none**: what is no usage event, is of a newer schema, or cannot be stored goes to the table
///   `tollgate.usage_dead_letters` with its reason, and is counted in `tollgate_rollup_dead_letters_total`.
/// - **A server that is down** is waited for: what was read stays in the stream.
/// - **How far a stream was read** stands in `tollgate.usage_positions`, written in the same transactions.
///
/// A connection of its own is needed for each stream, as reading waits: a
/// [`ConnectionManager`](RedisConnector::manager) that a service shares is refused.
///
/// ```no_run
/// use tollgate::{postgres_support::Postgres, redis_support::RedisConnector, sink::PostgresSink, usage::Rollup};
///
/// # async fn example(stop: impl Future<Output = ()> + Send) -> Result<(), Box<dyn std::error::Error>> {
/// let postgres = Postgres::connect("postgres://api@db.internal/api").await?;
/// postgres.migrate().await?;
/// let sink = PostgresSink::connect(&postgres).await?;
/// let redis = RedisConnector::single("redis://usage.internal")?;
/// let counters = Rollup::builder(redis, sink).connect().await?.run_until(stop).await;
/// println!("{} events", counters.events);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a rollup that is not run counts nothing"]
pub struct Rollup {
    shared: Arc<Shared>,
    n_streams: u16,
}

/// What all streams' workers share.
pub(super) struct Shared {
    connector: RedisConnector,
    space: KeySpace,
    sink: PostgresSink,
    clock: Arc<dyn Clock>,
    group: String,
    consumer: String,
    batch: u32,
    wait: Duration,
    claim_after: Duration,
    tally: Tally,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("connector", &self.connector)
            .field("group", &self.group)
            .field("consumer", &self.consumer)
            .finish_non_exhaustive()
    }
}

/// A rollup cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RollupError {
    /// A setting cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The server with the streams cannot be reached or used.
    #[error(transparent)]
    Start(#[from] RedisStartError),
}

/// What a rollup has done since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RollupCounters {
    /// Events that were counted.
    pub events: u64,
    /// Events that had been counted before.
    pub duplicates: u64,
    /// Entries that went to the dead letters.
    pub dead_letters: u64,
    /// Entries that were taken over from a reader that did not acknowledge them.
    pub claimed: u64,
    /// Attempts to read or to count that failed and were made again.
    pub failures: u64,
}

#[derive(Default)]
struct Tally {
    events: AtomicU64,
    duplicates: AtomicU64,
    dead_letters: AtomicU64,
    claimed: AtomicU64,
    failures: AtomicU64,
    exported: Option<Exported>,
}

struct Exported {
    events: Counter,
    duplicates: Counter,
    dead_letters: Counter,
    claimed: Counter,
    failures: Counter,
}

#[derive(Clone, Copy, Debug)]
enum Count {
    Events,
    Duplicates,
    DeadLetters,
    Claimed,
    Failures,
}

impl Tally {
    fn exporting() -> Self {
        Self {
            exported: Some(Exported {
                events: counter!("tollgate_rollup_events_total"),
                duplicates: counter!("tollgate_rollup_duplicates_total"),
                dead_letters: counter!("tollgate_rollup_dead_letters_total"),
                claimed: counter!("tollgate_rollup_claimed_total"),
                failures: counter!("tollgate_rollup_failures_total"),
            }),
            ..Self::default()
        }
    }

    fn add(&self, count: Count, n: usize) {
        let n = n as u64;
        let own = match count {
            Count::Events => &self.events,
            Count::Duplicates => &self.duplicates,
            Count::DeadLetters => &self.dead_letters,
            Count::Claimed => &self.claimed,
            Count::Failures => &self.failures,
        };
        own.fetch_add(n, Ordering::Relaxed);
        if let Some(exported) = &self.exported {
            let exported = match count {
                Count::Events => &exported.events,
                Count::Duplicates => &exported.duplicates,
                Count::DeadLetters => &exported.dead_letters,
                Count::Claimed => &exported.claimed,
                Count::Failures => &exported.failures,
            };
            exported.increment(n);
        }
    }

    fn counters(&self) -> RollupCounters {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        RollupCounters {
            events: read(&self.events),
            duplicates: read(&self.duplicates),
            dead_letters: read(&self.dead_letters),
            claimed: read(&self.claimed),
            failures: read(&self.failures),
        }
    }
}

impl Rollup {
    /// Sets a rollup up, from the server with the streams to the sink that counts.
    pub fn builder(connector: RedisConnector, sink: PostgresSink) -> RollupBuilder {
        RollupBuilder::new(connector, sink)
    }

    /// What was done so far; of all handles.
    #[must_use]
    pub fn counters(&self) -> RollupCounters {
        self.shared.tally.counters()
    }

    /// Reads and counts until `stop` is ready; then finishes what it has read and leaves the group. That takes up to a
    /// second of waiting for new entries, and the time of one batch.
    ///
    /// # Cancel safety
    ///
    /// A dropped future ends at once. What it had read and not counted is claimed by another process, or read again by
    /// one with the same name.
    pub async fn run_until(self, stop: impl Future<Output = ()> + Send) -> RollupCounters {
        let (stopping, stopped) = watch::channel(false);
        let mut workers = JoinSet::new();
        for shard in 0..self.n_streams {
            let worker = Worker::new(Arc::clone(&self.shared), shard, stopped.clone());
            workers.spawn(worker.run());
        }
        stop.await;
        // Fails only where no worker is left.
        let _ = stopping.send(true);
        while workers.join_next().await.is_some() {}
        self.counters()
    }
}
