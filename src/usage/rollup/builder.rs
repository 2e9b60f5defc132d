use std::{sync::Arc, time::Duration};

use super::{Rollup, RollupError, Shared, Tally};
use crate::{
    clock::{Clock, SystemClock},
    error::ConfigError,
    redis_support::{KeySpace, RedisConnector},
    sink::PostgresSink,
};

const MAX_STREAMS: u16 = 256;
const MAX_BATCH: u32 = 10_000;
const MAX_NAME_BYTES: usize = 64;

/// Sets up a [`Rollup`].
#[derive(Debug)]
#[must_use]
pub struct RollupBuilder {
    connector: RedisConnector,
    sink: PostgresSink,
    space: Result<KeySpace, ConfigError>,
    streams: u16,
    group: String,
    consumer: Option<String>,
    batch: u32,
    claim_after: Duration,
    clock: Option<Arc<dyn Clock>>,
}

impl RollupBuilder {
    pub(super) fn new(connector: RedisConnector, sink: PostgresSink) -> Self {
        Self {
            connector,
            sink,
            space: Ok(KeySpace::default()),
            streams: 1,
            group: "rollup".to_owned(),
            consumer: None,
            batch: 1_000,
            claim_after: Duration::from_secs(60),
            clock: None,
        }
    }

    /// The sink's [namespace](crate::sink::RedisStreamSinkBuilder::namespace).
    pub fn namespace(mut self, name: &str) -> Self {
        self.space = KeySpace::named(name);
        self
    }

    /// The sink's number of [streams](crate::sink::RedisStreamSinkBuilder::streams), 1 to 256; one unless set.
    pub const fn streams(mut self, n: u16) -> Self {
        self.streams = n;
        self
    }

    /// The consumer group, 1 to 64 bytes; `rollup` unless set.
    pub fn group(mut self, name: impl Into<String>) -> Self {
        self.group = name.into();
        self
    }

    /// This process's name in the group, 1 to 64 bytes; made up unless set. No other process that runs may have it. One
    /// that begins again under its name reads first what it had not acknowledged.
    pub fn consumer(mut self, name: impl Into<String>) -> Self {
        self.consumer = Some(name.into());
        self
    }

    /// How many entries are read and counted at once, 1 to 10,000; 1,000 unless set.
    pub const fn batch(mut self, n_entries: u32) -> Self {
        self.batch = n_entries;
        self
    }

    /// How long an entry may be unacknowledged before it is taken over from its reader; a minute unless set. Below the
    /// time that a batch takes, work is done twice, and still counted once.
    pub const fn claim_after(mut self, time: Duration) -> Self {
        self.claim_after = time;
        self
    }

    /// The clock that says when to look for readers that died. The system's unless set.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Some(Arc::new(clock));
        self
    }

    /// Connects to the server with the streams and checks it.
    ///
    /// # Errors
    ///
    /// [`RollupError`] when a setting cannot work, or the server cannot be reached or used.
    pub async fn connect(self) -> Result<Rollup, RollupError> {
        let space = self.space?;
        if self.connector.is_shared() {
            let fix = "reading waits, and would hold up all who share the connection: name the server instead";
            return Err(ConfigError::new("connector", fix).into());
        }
        if !(1..=MAX_STREAMS).contains(&self.streams) {
            return Err(ConfigError::new("streams", "write 1 to 256 streams").into());
        }
        if !(1..=MAX_BATCH).contains(&self.batch) {
            return Err(ConfigError::new("batch", "write 1 to 10,000 entries").into());
        }
        if self.claim_after.is_zero() {
            let fix = "what another reads now must not be taken from it: write a minute or so";
            return Err(ConfigError::new("claim_after", fix).into());
        }
        let consumer = self.consumer.unwrap_or_else(a_name);
        for (field, name) in [("group", &self.group), ("consumer", &consumer)] {
            if name.is_empty() || name.len() > MAX_NAME_BYTES {
                return Err(ConfigError::new(field, "write a name of 1 to 64 bytes").into());
            }
        }
        self.connector.start().await?;
        Ok(Rollup {
            shared: Arc::new(Shared {
                connector: self.connector,
                space,
                sink: self.sink,
                clock: self.clock.unwrap_or_else(|| Arc::new(SystemClock::new())),
                group: self.group,
                consumer,
                batch: self.batch,
                wait: Duration::from_secs(1),
                claim_after: self.claim_after,
                tally: Tally::exporting(),
            }),
            n_streams: self.streams,
        })
    }
}

/// A name that no other process has.
fn a_name() -> String {
    let random = getrandom::u64().unwrap_or(0);
    format!("{}-{random:016x}", std::process::id())
}
