//! Counters of usage in Redis, for dashboards.

mod batch;
mod read;

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::Duration,
};

use async_trait::async_trait;
use redis::Value;

use self::batch::{Batch, batches};
pub use self::read::{DayCounters, RedisCounters, RedisCountersError};
use super::{SinkError, UsageSink, Verdict, Verdicts};
use crate::{
    clock::micros,
    meter::UsageEvent,
    redis_support::{Redis, RedisConnectError, RedisFault, Script},
};

static COUNT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("count.lua")));

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const LIFETIME: Duration = Duration::from_secs(40 * 24 * 60 * 60);
/// Longer than a batch is offered again after it was written.
const WRITTEN_LIFETIME: Duration = Duration::from_secs(2 * 24 * 60 * 60);

/// Adds usage up in Redis while it happens: for each tenant, API and day (UTC, by the event's own time) how many calls
/// there were, how many failed or were refused, their bytes and quantities. [`RedisCounters`] reads them.
///
/// Written from the recorder's batches, one script for each tenant in a batch; no call waits for it, and Redis sees
/// some scripts a second however many calls there are.
///
/// # How exact they are
///
/// A batch that is offered again because its answer was lost is counted **once**: Redis knows the last 16 batches of
/// each process and tenant. What they cannot tell is an event that comes in **another** batch than before, as after a
/// process that died with a spool: it is counted again. So these counters are for people who watch. Invoices are
/// computed from events, each of which counts once.
///
/// A counter goes 40 days after it was written last, unless [`lifetime`](Self::lifetime) says otherwise. One takes about
/// 40 bytes of the server's memory for each of its fields. A sum ends at 2^63 - 1: what would exceed it, and what should
/// be added where something else stands, goes to the dead letters as `counter_unusable`.
#[derive(Clone)]
pub struct RedisCounterSink {
    redis: Redis,
    lifetime: Duration,
}

impl RedisCounterSink {
    /// A sink over a handle that is connected already.
    #[must_use]
    pub fn new(redis: &Redis) -> Self {
        Self {
            redis: redis.clone(),
            lifetime: LIFETIME,
        }
    }

    /// Connects to one server with all defaults.
    ///
    /// # Errors
    ///
    /// [`RedisConnectError`] when the URL cannot be read, or the server cannot be reached or used.
    pub async fn connect(url: impl AsRef<str>) -> Result<Self, RedisConnectError> {
        Ok(Self::new(&Redis::connect(url).await?))
    }

    /// How long a day's counters are kept after they were written last; 40 days unless set, at least one.
    #[must_use]
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime.max(DAY);
        self
    }

    /// Reads what this sink writes.
    #[must_use]
    pub fn counters(&self) -> RedisCounters {
        RedisCounters::new(&self.redis)
    }

    async fn count(&self, batch: &Batch<'_>) -> Result<Verdict, RedisFault> {
        let keys = batch.keys(&self.redis);
        let arguments = batch.arguments(millis(WRITTEN_LIFETIME), millis(self.lifetime));
        match self.redis.run(&COUNT, &keys, &arguments).await {
            Ok(Value::Int(0)) => Ok(Verdict::Accepted),
            Ok(Value::Int(-1)) => Ok(Verdict::Duplicate),
            Ok(Value::Int(_)) => Ok(UNUSABLE),
            Ok(_) => {
                self.redis.distrust();
                Err(RedisFault::unknown("the script answers something else"))
            }
            Err(fault) if fault.is_foreign_value() => Ok(UNUSABLE),
            Err(fault) => Err(fault),
        }
    }
}

/// Something else stands where a counter belongs. What could be added was.
const UNUSABLE: Verdict = Verdict::Rejected {
    reason: "counter_unusable",
};

fn millis(duration: Duration) -> u64 {
    micros(duration) / 1_000
}

#[async_trait]
impl UsageSink for RedisCounterSink {
    async fn write(&self, events: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        let again = Verdict::Retry {
            after: Duration::ZERO,
        };
        let mut verdicts = vec![again; events.len()];
        let (mut n_written, mut last_fault) = (0_usize, None);
        for batch in batches(events) {
            match self.count(&batch).await {
                Ok(verdict) => {
                    n_written += 1;
                    for place in &batch.places {
                        if let Some(own) = verdicts.get_mut(*place) {
                            *own = verdict;
                        }
                    }
                }
                Err(fault) => {
                    // What was not sent is not sent now: the server is away, and the rest would wait as long.
                    let is_away = last_fault.replace(fault).is_some();
                    if is_away {
                        break;
                    }
                }
            }
        }
        match last_fault {
            Some(fault) if n_written == 0 => Err(SinkError::unavailable(fault)),
            _ => Ok(Verdicts::Each(verdicts)),
        }
    }
}

impl fmt::Debug for RedisCounterSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCounterSink")
            .field("redis", &self.redis)
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

/// The day of an event, `20260115`.
fn day_of(event: &UsageEvent) -> Arc<str> {
    let time = event.time.to_jiff().to_zoned(jiff::tz::TimeZone::UTC);
    day_text(time.date()).into()
}

fn day_text(day: jiff::civil::Date) -> String {
    format!("{:04}{:02}{:02}", day.year(), day.month(), day.day())
}
