use std::time::Duration;

use super::{APPEND, RedisStreamError, RedisStreamSink};
use crate::{
    error::ConfigError,
    redis_support::{HeldLink, KeySpace, RedisConnector, Script},
};

const MAX_STREAMS: u16 = 256;
/// Less would be full before a consumer group has read once.
const LEAST_ENTRIES: u64 = 10_000;
const LEAST_LIFETIME: Duration = Duration::from_secs(60);
/// A batch is larger than a decision, and nobody waits for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sets up a [`RedisStreamSink`].
#[derive(Debug)]
#[must_use]
pub struct RedisStreamSinkBuilder {
    connector: RedisConnector,
    space: Result<KeySpace, ConfigError>,
    streams: u16,
    max_entries: u64,
    token_lifetime: Duration,
    response_timeout: Duration,
}

impl RedisStreamSinkBuilder {
    pub(super) fn new(connector: RedisConnector) -> Self {
        Self {
            connector,
            space: Ok(KeySpace::default()),
            streams: 1,
            max_entries: 1_000_000,
            token_lifetime: Duration::from_secs(86_400),
            response_timeout: PATIENCE,
        }
    }

    /// Keys begin with `tg:1:` and this name, for deployments that share a server; none unless set. 1 to 16 characters
    /// of a-z, 0-9 and `-`.
    pub fn namespace(mut self, name: &str) -> Self {
        self.space = KeySpace::named(name);
        self
    }

    /// How many streams the tenants are spread over, 1 to 256; one unless set. In a Cluster each may lie on another
    /// node. Whoever reads must know the number, and changing it puts a tenant's later events into another stream.
    pub const fn streams(mut self, n: u16) -> Self {
        self.streams = n;
        self
    }

    /// The most entries that each stream may have, 10,000 or more; 1,000,000 unless set, which is some 500 MB.
    pub const fn max_entries(mut self, n: u64) -> Self {
        self.max_entries = n;
        self
    }

    /// How long a batch is known after it was appended, a minute or more; one day unless set. A token takes some 120
    /// bytes of the server's memory.
    pub const fn token_lifetime(mut self, lifetime: Duration) -> Self {
        self.token_lifetime = lifetime;
        self
    }

    /// How long the answer to a batch may take; 5 seconds unless set, whatever the connector's own timeout is.
    pub const fn response_timeout(mut self, timeout: Duration) -> Self {
        self.response_timeout = timeout;
        self
    }

    /// Connects and checks the server.
    ///
    /// # Errors
    ///
    /// [`RedisStreamError`] when a setting cannot work, or the server cannot be reached or used.
    pub async fn connect(self) -> Result<RedisStreamSink, RedisStreamError> {
        let space = self.space?;
        if !(1..=MAX_STREAMS).contains(&self.streams) {
            return Err(ConfigError::new("streams", "write 1 to 256 streams").into());
        }
        if self.max_entries < LEAST_ENTRIES {
            return Err(ConfigError::new("max_entries", "write at least 10,000 entries").into());
        }
        if self.token_lifetime < LEAST_LIFETIME {
            let fix = "a batch that is offered again must still be known: write a minute or more";
            return Err(ConfigError::new("token_lifetime", fix).into());
        }
        if self.response_timeout.is_zero() {
            let fix = "nothing is answered in no time: write 5 seconds or so";
            return Err(ConfigError::new("response_timeout", fix).into());
        }
        let link = self.connector.start().await?;
        Ok(RedisStreamSink {
            link: HeldLink::new(self.connector, Some(link), self.response_timeout),
            space,
            script: Script::new(APPEND),
            n_streams: self.streams,
            max_entries: self.max_entries,
            token_lifetime: self.token_lifetime,
        })
    }
}
