//! How the store is set up.

use std::{sync::Arc, time::Duration};

use super::{
    RedisLimits,
    driver::DriverMetrics,
    inner::Inner,
    leases::Leases,
    slices::{Lease, Slices},
    totals::QuotaTotals,
};
use crate::{
    clock::{Clock, SystemClock},
    error::ConfigError,
    redis_support::{KeySpace, RedisConnector, RedisStartError},
};

/// How many drivers share the slots of a Cluster unless set: a few for each of its masters.
const CLUSTER_DRIVERS: usize = 12;
const QUEUE: usize = 8_192;
const MARGIN: Duration = Duration::from_secs(10);

/// Sets up [`RedisLimits`]; made by [`RedisLimits::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct RedisLimitsBuilder {
    pub(super) connector: RedisConnector,
    pub(super) space: KeySpace,
    pub(super) queue: usize,
    pub(super) margin: Duration,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) time_of_calls: bool,
    pub(super) totals: Option<Arc<dyn QuotaTotals>>,
    pub(super) lease: Option<Lease>,
}

impl RedisLimitsBuilder {
    pub(super) fn new(connector: RedisConnector) -> Self {
        Self {
            connector,
            space: KeySpace::default(),
            queue: QUEUE,
            margin: MARGIN,
            clock: SystemClock::shared(),
            time_of_calls: false,
            totals: None,
            lease: None,
        }
    }

    /// Puts a name into every key, `tg:1:<name>:..`, for deployments that share a server. None unless set.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when the name is not 1 to 16 characters of `a-z`, `0-9` and `-`.
    pub fn namespace(mut self, name: impl AsRef<str>) -> Result<Self, ConfigError> {
        self.space = KeySpace::named(name.as_ref())?;
        Ok(self)
    }

    /// How many calls may wait for their batch, for each connection; more fail at once with `Unavailable`.
    /// 8,192 unless set, at least one.
    pub fn max_queued(mut self, n: usize) -> Self {
        self.queue = n.max(1);
        self
    }

    /// How long a count outlives the time at which it is as good as new, in the server's memory; ten seconds
    /// unless set. A server whose clock is stepped back by less forgets nothing too early.
    pub const fn margin(mut self, margin: Duration) -> Self {
        self.margin = margin;
        self
    }

    /// Where quotas are read from that the server has lost; none unless set: a lost quota begins at zero.
    ///
    /// It is asked for quotas of tenants and keys whose count is not there in a period that is older than the
    /// server's data, which the key `tg:1:epoch` tells. In a Cluster, where a part of the data can be lost, it is
    /// asked for the first call of every tenant in every period.
    pub fn totals(mut self, totals: impl QuotaTotals) -> Self {
        self.totals = Some(Arc::new(totals));
        self
    }

    /// Serves most calls from slices of their limits that this process has taken in advance, without a trip; none
    /// unless set: every call is decided exactly. [`Lease`] says what that promises.
    pub const fn leased(mut self, lease: Lease) -> Self {
        self.lease = Some(lease);
        self
    }

    /// The source of this process's time, by which slices lapse and from which the calendar of the first call is guessed; the operating
    /// system's unless set.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Decides at the time that each call brings instead of the server's, for tests that move the clock by hand.
    /// Leases of concurrency limits still run by the server's clock.
    ///
    /// Processes whose clocks differ would refill each other's buckets: never set it in production.
    pub const fn dangerous_time_of_calls(mut self) -> Self {
        self.time_of_calls = true;
        self
    }

    /// Connects, checks the server and starts the tasks that send the calls.
    ///
    /// # Errors
    ///
    /// [`RedisStartError`] when the server cannot be reached, is older than 6.2, is a replica, or is a node of a
    /// Cluster that was named as a single server.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn connect(self) -> Result<RedisLimits, RedisStartError> {
        let link = self.connector.start().await?;
        let n_drivers = if self.connector.is_cluster() {
            CLUSTER_DRIVERS
        } else {
            1
        };
        let metrics = DriverMetrics::new();
        let leases = Arc::new(Leases::default());
        let inner = Inner::start(self, &link, n_drivers, metrics, leases);
        inner
            .begin_epoch(link)
            .await
            .map_err(RedisStartError::Connect)?;
        let inner = Arc::new(inner);
        Slices::start(&inner);
        Ok(RedisLimits { inner })
    }
}
