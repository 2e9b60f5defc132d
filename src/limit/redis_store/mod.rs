//! Counts in Redis, shared by every process.

mod admin;
mod answer;
mod batch;
mod builder;
mod driver;
mod inner;
mod leases;
mod prepare;
mod slices;
mod totals;
mod wire;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use smallvec::SmallVec;

use self::{
    answer::applied,
    inner::Inner,
    wire::{Operation, PackedCall},
};
pub use self::{
    builder::RedisLimitsBuilder,
    slices::Lease,
    totals::{LostQuota, QuotaTotals},
};
use super::{
    cost::Cost,
    decision::{Decision, Receipt, RuleStates},
    set::{LimitSet, ScopeValues},
    store::{LimitCall, LimitStore, LimitStoreError, OwnedLimitCall, Settlement},
};
use crate::{
    error::ConfigError,
    redis_support::{RedisConnector, RedisStartError},
};

/// How often what is on its way is waited for when slices are given back.
const MAX_FLUSHES: u32 = 100;
const DECIDE: &str = include_str!("decide.lua");

/// Counts in Redis, shared by every process: one script call decides all rules of a request.
///
/// # What is guaranteed
///
/// In exact mode, which is the default; [`Lease`] says what [`leased`](Self::leased) mode promises instead.
///
/// - **Exact**: N calls at once, from any number of processes, for a limit of M admit min(N, M). All rules of a
///   call pass and are charged, or none is.
/// - **Time** is the server's own clock, read once for each script call. A clock that goes back gives nothing
///   and locks nobody out for longer than a full refill or a window; one that jumps ahead fills a bucket once.
/// - **A refused call, and one of cost zero, write nothing**, but for a count whose rule has new numbers or whose
///   period is over.
/// - **A change of plan** takes effect with the next call, as in [`MemoryLimits`](super::MemoryLimits).
/// - **Sent once**: a call whose answer does not come is never sent again, and fails with
///   [`LimitStoreError::Indeterminate`]; one that was not run fails with [`LimitStoreError::Unavailable`]. Only a
///   server that has lost the script is asked again, once.
/// - **A concurrency slot** is held by a lease, which is renewed while the process lives: a process that dies frees
///   its slots within [`Concurrency::lease`](super::Concurrency::lease).
///
/// # What it costs
///
/// One round trip for each decision. Calls that come in while a batch is on its way go with the next one, up to 128
/// at once. A count takes about 150 bytes of the server's memory, an exact log 14 bytes for each instant more, a
/// concurrency limit 30 bytes for each call in flight. Every key has a lifetime: until its counts are as good as
/// new, and ten seconds.
///
/// Settlements are queued and never waited for; one that cannot be sent is dropped and counted in
/// `tollgate_limit_settlements_dropped_total`.
///
/// Cloning gives another handle. When the last one is dropped, what is queued is still sent.
///
/// ```no_run
/// use tollgate::{limit::{LimitLayer, Quota, RedisLimits}};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let limits = RedisLimits::connect("redis://127.0.0.1:6379").await?;
/// let layer = LimitLayer::new(limits, [Quota::daily(100)])?;
/// # let _ = layer;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisLimits {
    inner: Arc<Inner>,
}

impl fmt::Debug for RedisLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLimits")
            .field("connector", &self.inner.connector)
            .finish_non_exhaustive()
    }
}

impl RedisLimits {
    /// Connects to one server with all defaults.
    ///
    /// # Errors
    ///
    /// [`RedisLimitsError`] when the URL cannot be read, or the server cannot be reached or used.
    pub async fn connect(url: impl AsRef<str>) -> Result<Self, RedisLimitsError> {
        Ok(Self::builder(RedisConnector::single(url)?)
            .connect()
            .await?)
    }

    /// Connects to one server in leased mode: most calls are served from slices that this process has taken in
    /// advance. [`Lease`] says what that promises.
    ///
    /// # Errors
    ///
    /// [`RedisLimitsError`] when the URL cannot be read, or the server cannot be reached or used.
    pub async fn leased(url: impl AsRef<str>, lease: Lease) -> Result<Self, RedisLimitsError> {
        let builder = Self::builder(RedisConnector::single(url)?);
        Ok(builder.leased(lease).connect().await?)
    }

    /// Sets a store up that is reached in any other way.
    pub fn builder(connector: RedisConnector) -> RedisLimitsBuilder {
        RedisLimitsBuilder::new(connector)
    }

    /// The states of the rules that apply, without charging anything.
    ///
    /// # Errors
    ///
    /// [`LimitStoreError`] as for a decision.
    pub async fn peek(
        &self,
        set: &Arc<LimitSet>,
        scopes: &ScopeValues,
    ) -> Result<RuleStates, LimitStoreError> {
        let cost = Cost::requests(0);
        let call = LimitCall::new(set, scopes, &cost, self.inner.clock.now());
        Ok(self.inner.decide(&call).await?.states)
    }

    /// Forgets the counts of a rule, as if nothing had been used; of every rule of the set where none is named.
    /// What this process has in hand of them is void, or on its way to it; other processes finish what they hold.
    /// Also mends a count that is corrupt. Answers how many rules were reset.
    ///
    /// # Errors
    ///
    /// [`LimitStoreError`] as for a decision.
    pub async fn reset(
        &self,
        set: &Arc<LimitSet>,
        scopes: &ScopeValues,
        rule: Option<&str>,
    ) -> Result<usize, LimitStoreError> {
        self.inner
            .administer(Operation::Reset, set, scopes, rule, 0)
            .await
    }

    /// Gives units back to a token bucket or a quota, as if they had not been used: a bucket at most to its
    /// capacity. Answers whether the set has such a rule.
    ///
    /// # Errors
    ///
    /// [`LimitStoreError`] as for a decision.
    pub async fn grant(
        &self,
        set: &Arc<LimitSet>,
        scopes: &ScopeValues,
        rule: &str,
        units: u64,
    ) -> Result<bool, LimitStoreError> {
        let units = units.min(Cost::MAX);
        let granted = self
            .inner
            .administer(Operation::Grant, set, scopes, Some(rule), units);
        Ok(granted.await? > 0)
    }

    /// Waits until everything that was queued before is sent and answered: settlements too.
    pub async fn flush(&self) {
        for shard in 0..self.inner.queues.len() {
            let nothing = PackedCall {
                operation: Operation::Look,
                time: None,
                rules: SmallVec::new(),
            };
            // A failure has been reported to whoever was concerned.
            let _ = self.inner.ask(shard, nothing, None).await;
        }
    }

    /// Gives the slices in hand back, for a process that ends, and waits until Redis has them. Without it they are
    /// given back when the last handle is dropped, if the runtime still runs then. Does nothing in exact mode.
    pub async fn return_slices(&self) {
        if let Some(slices) = &self.inner.slices {
            // A slice that is on its way lands first. Where calls go on there is always one.
            for _ in 0..MAX_FLUSHES {
                if !slices.is_fetching() {
                    break;
                }
                self.flush().await;
                tokio::task::yield_now().await;
            }
            slices.return_all(&self.inner);
        }
        self.flush().await;
    }

    /// How many admitted calls of this process hold slots of concurrency limits.
    #[must_use]
    pub fn n_open_holds(&self) -> usize {
        self.inner.leases.n_open()
    }
}

/// A store on Redis could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisLimitsError {
    /// A setting cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The server cannot be used.
    #[error(transparent)]
    Start(#[from] RedisStartError),
}

#[async_trait]
impl LimitStore for RedisLimits {
    /// Answers where no rule of the call has a count, as limits of zero and unlimited ones have none; in leased mode,
    /// too, where the units of every rule are in hand, or a rule is known to refuse.
    fn try_decide(&self, call: &LimitCall<'_>) -> Option<Result<Decision, LimitStoreError>> {
        let applied = applied(call);
        if !applied.iter().any(|rule| rule.has_count) {
            return Some(Ok(answer::without_trip(&applied)));
        }
        let slices = self.inner.slices.as_ref()?;
        slices.try_serve(&self.inner, call, &applied).map(Ok)
    }

    async fn decide(self: Arc<Self>, call: OwnedLimitCall) -> Result<Decision, LimitStoreError> {
        match &self.inner.slices {
            Some(slices) => slices.decide(&self.inner, &call.as_call()).await,
            None => self.inner.decide(&call.as_call()).await,
        }
    }

    fn settle(&self, call: &LimitCall<'_>, receipt: &Receipt, settlement: &Settlement) {
        self.inner.settle(call, receipt, settlement);
    }
}
