//! Usage events in Redis Streams.

mod builder;

use std::{fmt, time::Duration};

use async_trait::async_trait;
use redis::Value;

pub use self::builder::RedisStreamSinkBuilder;
use super::{SinkError, UsageSink, Verdict, Verdicts};
use crate::{
    error::ConfigError,
    meter::UsageEvent,
    redis_support::{HeldLink, KeySpace, RedisConnector, RedisStartError, Script},
};

const APPEND: &str = include_str!("append.lua");
/// A batch is appended in runs of the script of at most so many events and bytes, so that none holds the server up.
const MAX_RUN_EVENTS: usize = 1_000;
const MAX_RUN_BYTES: usize = 1 << 20;
/// A longer event is none that a gate makes.
const MAX_EVENT_BYTES: usize = 1 << 20;
/// When a full stream is tried again.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// Appends events to one or several Redis Streams, each entry with one field `event`: the event as JSON.
///
/// # What is guaranteed
///
/// - **Once, while the token lives**: a batch that is offered again is known by the ids of its events for a day (unless
///   set) and is not appended again; the verdict is then [`Verdict::Duplicate`]. A batch is appended whole or not at all
///   in runs of a script of at most 1,000 events. Events that come again in another batch, as after the death of a
///   process that had spooled them, are appended again: whoever reads the stream tells them by their id, as
///   [`Rollup`](crate::usage::Rollup) does.
/// - **Never lost unread**: with each batch the stream is cut before the oldest entry that a consumer group has not
///   acknowledged. Without a group nothing is cut. A stream that is full of what nobody has acknowledged takes no more:
///   the verdict is [`Verdict::Retry`], and the events wait in the recorder. A group that reads no longer holds up all:
///   end it with `XGROUP DESTROY`.
/// - **As durable as the server**: use `appendonly yes` with `appendfsync always` where no event may be lost with it; a
///   failover loses what was not replicated.
/// - **In order** for each tenant: all its events go to one stream.
///
/// A new group reads what is still there: create it before the first batch to have it all.
///
/// ```no_run
/// use tollgate::{Tollgate, sink::RedisStreamSink};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let sink = RedisStreamSink::connect("redis://usage.internal").await?;
/// let gate = Tollgate::builder().usage(sink).build()?;
/// # Ok(())
/// # }
/// ```
pub struct RedisStreamSink {
    link: HeldLink,
    space: KeySpace,
    script: Script,
    n_streams: u16,
    max_entries: u64,
    token_lifetime: Duration,
}

impl fmt::Debug for RedisStreamSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStreamSink")
            .field("link", &self.link)
            .field("streams", &self.n_streams)
            .field("max_entries", &self.max_entries)
            .finish_non_exhaustive()
    }
}

/// A stream of usage in Redis cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisStreamError {
    /// A setting cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The server cannot be reached or used.
    #[error(transparent)]
    Start(#[from] RedisStartError),
}

/// The server answered a run of the script with something else than a number that it knows.
#[derive(Debug, thiserror::Error)]
#[error("Redis answered in a way that the script does not")]
struct StrangeAnswer;

/// The events of one run of the script, by their places in the batch.
struct Run {
    shard: u16,
    places: Vec<usize>,
    events: Vec<Vec<u8>>,
    bytes: usize,
}

impl RedisStreamSink {
    /// Connects to one server with all defaults.
    ///
    /// # Errors
    ///
    /// [`RedisStreamError`] when the URL cannot be read, or the server cannot be reached or used.
    pub async fn connect(url: impl AsRef<str>) -> Result<Self, RedisStreamError> {
        Self::builder(RedisConnector::single(url)?).connect().await
    }

    /// Sets a sink up that is reached in any other way.
    pub fn builder(connector: RedisConnector) -> RedisStreamSinkBuilder {
        RedisStreamSinkBuilder::new(connector)
    }

    /// The keys of the streams, for consumers of your own.
    #[must_use]
    pub fn streams(&self) -> Vec<String> {
        (0..self.n_streams)
            .map(|shard| String::from_utf8_lossy(&self.space.usage_stream(shard)).into_owned())
            .collect()
    }

    fn shard_of(&self, event: &UsageEvent) -> u16 {
        let hash = crc32fast::hash(event.tenant.as_str().as_bytes());
        u16::try_from(hash % u32::from(self.n_streams)).unwrap_or(0)
    }

    /// The runs that a batch makes, the same for the same batch; events that cannot be written get their verdict.
    fn runs(&self, batch: &[UsageEvent], verdicts: &mut [Verdict]) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (place, (event, verdict)) in batch.iter().zip(verdicts).enumerate() {
            let Ok(json) = serde_json::to_vec(event) else {
                *verdict = Verdict::Rejected {
                    reason: "the event cannot be written as JSON",
                };
                continue;
            };
            if json.len() > MAX_EVENT_BYTES {
                *verdict = Verdict::Rejected {
                    reason: "the event is longer than 1 MiB",
                };
                continue;
            }
            let shard = self.shard_of(event);
            let open = runs.iter_mut().rev().find(|run| run.shard == shard);
            let run = match open.filter(|run| run.has_room_for(json.len())) {
                Some(run) => run,
                None => {
                    runs.push(Run {
                        shard,
                        places: Vec::new(),
                        events: Vec::new(),
                        bytes: 0,
                    });
                    let Some(run) = runs.last_mut() else { continue };
                    run
                }
            };
            run.bytes += json.len();
            run.places.push(place);
            run.events.push(json);
        }
        runs
    }

    async fn append(&self, batch: &[UsageEvent], run: &Run) -> Result<Verdict, SinkError> {
        let ids = run
            .places
            .iter()
            .filter_map(|place| Some(batch.get(*place)?.id.as_u128()));
        let keys = [
            self.space.usage_stream(run.shard),
            self.space.usage_batch(run.shard, ids),
        ];
        let mut arguments = Vec::with_capacity(run.events.len() + 2);
        arguments.push(self.token_lifetime.as_secs().to_string().into_bytes());
        arguments.push(self.max_entries.to_string().into_bytes());
        arguments.extend(run.events.iter().cloned());
        let answer = self.link.run(&self.script, &keys, &arguments).await;
        match answer.map_err(SinkError::unavailable)? {
            Value::Int(0) => Ok(Verdict::Duplicate),
            Value::Int(1) => Ok(Verdict::Accepted),
            Value::Int(2) => Ok(Verdict::Retry { after: FULL_RETRY }),
            _ => Err(SinkError::unavailable(StrangeAnswer)),
        }
    }
}

impl Run {
    const fn has_room_for(&self, bytes: usize) -> bool {
        self.places.len() < MAX_RUN_EVENTS && self.bytes + bytes <= MAX_RUN_BYTES
    }
}

#[async_trait]
impl UsageSink for RedisStreamSink {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        let mut verdicts = vec![
            Verdict::Retry {
                after: Duration::ZERO
            };
            batch.len()
        ];
        let mut full = Vec::new();
        let mut is_any_written = false;
        for run in self.runs(batch, &mut verdicts) {
            // What follows in a full stream waits too, so that its order is kept.
            let verdict = if full.contains(&run.shard) {
                Verdict::Retry { after: FULL_RETRY }
            } else {
                match self.append(batch, &run).await {
                    Ok(verdict) => verdict,
                    // What was written has its verdict; the rest is offered again.
                    Err(_) if is_any_written => break,
                    Err(error) => return Err(error),
                }
            };
            is_any_written = true;
            if matches!(verdict, Verdict::Retry { .. }) && !full.contains(&run.shard) {
                tracing::warn!(
                    target: "tollgate::redis",
                    stream = run.shard,
                    max_entries = self.max_entries,
                    "the stream of usage is full of entries that a consumer group has not acknowledged"
                );
                full.push(run.shard);
            }
            for place in run.places {
                if let Some(own) = verdicts.get_mut(place) {
                    *own = verdict;
                }
            }
        }
        Ok(Verdicts::Each(verdicts))
    }
}
