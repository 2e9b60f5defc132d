//! Counts in Redis, shared by every process.

mod answer;
mod builder;
mod driver;
mod leases;
mod prepare;
mod totals;
mod wire;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use redis::RedisError;
use smallvec::SmallVec;
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
};

use self::{
    answer::{Applied, NoDecision, applied},
    driver::{Driver, DriverMetrics, Queued, Release},
    leases::Leases,
    prepare::{Prepared, PreparedRule},
    totals::Reading,
    wire::{Answer, Operation, PackedCall, status},
};
pub use self::{
    builder::RedisLimitsBuilder,
    totals::{LostQuota, QuotaTotals},
};
use super::{
    compile::CompiledAlgorithm,
    cost::Cost,
    decision::{Decision, Receipt, RuleStates},
    set::{LimitSet, ScopeValues},
    store::{LimitCall, LimitStore, LimitStoreError, OwnedLimitCall, Settlement},
};
use crate::{
    clock::{Clock, Timestamp},
    error::ConfigError,
    redis_support::{
        KeySpace, Link, N_SLOTS, RedisConnector, RedisFault, RedisStartError, Script, slot,
    },
};

const DECIDE: &str = include_str!("decide.lua");
/// For the epoch, which is set once at the start.
const EPOCH_PATIENCE: Duration = Duration::from_secs(1);

/// Counts in Redis, shared by every process: one script call decides all rules of a request.
///
/// # What is guaranteed
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

struct Inner {
    connector: Arc<RedisConnector>,
    space: KeySpace,
    /// One queue for each driver; in a Cluster each has a range of slots.
    queues: Box<[mpsc::Sender<Queued>]>,
    leases: Arc<Leases>,
    renewing: AbortHandle,
    metrics: DriverMetrics,
    clock: Arc<dyn Clock>,
    time_of_calls: bool,
    totals: Option<Arc<dyn QuotaTotals>>,
    reading: Reading,
    /// Receipts are this process's own, and then numbered.
    boot: u64,
    next_receipt: AtomicU64,
    /// How far the server's wall clock is ahead of this process's, in microseconds, as of the last answer.
    server_ahead: AtomicI64,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

/// The store could not be asked.
#[derive(Debug, thiserror::Error)]
enum NotAsked {
    #[error("too many calls wait for Redis")]
    QueueFull,
    #[error("the task that sends calls to Redis has ended")]
    Ended,
    #[error("the calendar's period was not found in two attempts")]
    Calendar,
    #[error("Redis has lost a quota and its totals are not known yet")]
    TotalsUnknown,
}

/// A value under one of our keys is not a count.
#[derive(Debug, thiserror::Error)]
#[error("a value under the rule's key in Redis is not a count")]
struct NotACount;

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

impl Inner {
    fn start(
        builder: RedisLimitsBuilder,
        link: &Link,
        n_drivers: usize,
        metrics: DriverMetrics,
        leases: Arc<Leases>,
    ) -> Self {
        let connector = Arc::new(builder.connector);
        let script = Script::new(DECIDE);
        // In a Cluster it lies in another slot than the counts.
        let epoch =
            (builder.totals.is_some() && !connector.is_cluster()).then(|| builder.space.epoch());
        let queues: Box<[_]> = (0..n_drivers)
            .map(|_| {
                let (queue, calls) = mpsc::channel(builder.queue);
                let driver = Driver::new(
                    Arc::clone(&connector),
                    script.clone(),
                    link.clone(),
                    calls,
                    builder.margin,
                    epoch.clone(),
                    metrics.clone(),
                );
                tokio::spawn(driver.run());
                queue
            })
            .collect();
        let weak = queues.iter().map(mpsc::Sender::downgrade).collect();
        let renewing = tokio::spawn(Leases::renew(Arc::clone(&leases), weak)).abort_handle();
        let mut boot = [0; 8];
        if getrandom::fill(&mut boot).is_err() {
            // No randomness at all: the address space's layout and the time still differ between processes.
            boot = (builder.clock.now().wall().as_unix_micros() ^ std::process::id() as u64)
                .to_be_bytes();
        }
        Self {
            connector,
            space: builder.space,
            queues,
            leases,
            renewing,
            metrics,
            clock: builder.clock,
            time_of_calls: builder.time_of_calls,
            totals: builder.totals,
            reading: Reading::default(),
            boot: u64::from_be_bytes(boot),
            next_receipt: AtomicU64::new(0),
            server_ahead: AtomicI64::new(0),
        }
    }

    /// Notes in the server since when it has held its counts, unless it is noted. A note that is younger than a
    /// period tells that the period's counts may have been lost.
    async fn begin_epoch(&self, mut link: Link) -> Result<(), RedisError> {
        let time = link.query(redis::cmd("TIME"), EPOCH_PATIENCE).await?;
        let (seconds, micros): (u64, u64) = redis::from_redis_value(time)?;
        let mut note = redis::cmd("SET");
        note.arg(&*self.space.epoch())
            .arg(seconds.saturating_mul(1_000_000).saturating_add(micros))
            .arg("NX");
        link.query(note, EPOCH_PATIENCE).await.map(drop)
    }

    fn receipt(&self) -> u128 {
        let number = self.next_receipt.fetch_add(1, Ordering::Relaxed);
        u128::from(self.boot) << 64 | u128::from(number)
    }

    fn shard_of(&self, call: &PackedCall) -> usize {
        match call.rules.first() {
            Some(rule) if self.queues.len() > 1 => {
                usize::from(slot(&rule.key)) * self.queues.len() / usize::from(N_SLOTS)
            }
            _ => 0,
        }
    }

    /// The server's wall clock, as far as it is known.
    fn server_wall(&self, wall: Timestamp) -> Timestamp {
        if self.time_of_calls {
            return wall;
        }
        let ahead = self.server_ahead.load(Ordering::Relaxed);
        Timestamp::from_unix_micros(wall.as_unix_micros().saturating_add_signed(ahead))
    }

    const fn time_of(&self, call: &LimitCall<'_>) -> Option<(u64, u64)> {
        if self.time_of_calls {
            Some((
                call.now.monotonic_micros(),
                call.now.wall().as_unix_micros(),
            ))
        } else {
            None
        }
    }

    fn pack(
        &self,
        operation: Operation,
        call: &LimitCall<'_>,
        applied: &[Applied<'_>],
        around: Timestamp,
        receipt: u128,
    ) -> PackedCall {
        let prepared = Prepared::of(call.set, &self.space, self.totals.is_some());
        let rules = applied
            .iter()
            .filter(|rule| rule.has_count)
            .filter_map(|rule| {
                let force = u64::from(!rule.rule.refuses());
                let values = (rule.amount, force, None);
                prepared.rule(rule.index)?.pack(
                    &self.space,
                    call.set,
                    rule.rule,
                    call.scopes,
                    values,
                    around,
                    receipt,
                )
            });
        PackedCall {
            operation,
            time: self.time_of(call),
            rules: rules.collect(),
        }
    }

    /// Queues a call and waits for its answer.
    async fn ask(
        &self,
        shard: usize,
        call: PackedCall,
        release: Option<Release>,
    ) -> Result<Answer, LimitStoreError> {
        let (reply, answer) = oneshot::channel();
        let queued = Queued {
            call,
            reply: Some(reply),
            release,
        };
        let queue = self.queues.get(shard).ok_or_else(ended)?;
        queue.try_send(queued).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                LimitStoreError::Unavailable(NotAsked::QueueFull.into())
            }
            mpsc::error::TrySendError::Closed(_) => ended(),
        })?;
        match answer.await {
            Ok(Ok(delivered)) => delivered.accept().ok_or_else(ended),
            Ok(Err(fault)) => Err(fault.into()),
            // The task ends with its runtime; what it had sent may have been run.
            Err(gone) => Err(LimitStoreError::Indeterminate(gone.into())),
        }
    }

    async fn decide(self: &Arc<Self>, call: &LimitCall<'_>) -> Result<Decision, LimitStoreError> {
        let applied = applied(call);
        if !applied.iter().any(|rule| rule.has_count) {
            return Ok(answer::without_trip(&applied));
        }
        let is_refused = applied
            .iter()
            .any(|rule| !rule.has_count && rule.rule.refuses());
        let operation = if is_refused {
            Operation::Look
        } else {
            Operation::Decide
        };
        let mut around = self.server_wall(call.now.wall());
        let mut is_read = false;
        // Once more with the right calendar, and once more when a lost quota has been read.
        for _ in 0..3 {
            let receipt = self.receipt();
            let packed = self.pack(operation, call, &applied, around, receipt);
            let shard = self.shard_of(&packed);
            let slots = slots_of(&packed, &applied);
            let release = slots.as_ref().map(|(slots, _)| Release {
                call: slots.clone(),
                queue: self
                    .queues
                    .get(shard)
                    .map_or_else(no_queue, mpsc::Sender::downgrade),
            });
            let answer = self.ask(shard, packed, release).await?;
            self.learn_time(call, &answer);
            let time = self
                .time_of(call)
                .unwrap_or((answer.server_micros, answer.server_micros));
            match answer::decision(&applied, &answer, time, receipt) {
                Ok(decision) => {
                    if let Some((slots, lease)) = slots
                        && decision.is_admitted()
                    {
                        self.leases.open(receipt, slots, shard, lease);
                    }
                    return Ok(decision);
                }
                Err(NoDecision::Corrupt) => return Err(LimitStoreError::Corrupt(NotACount.into())),
                Err(NoDecision::Bad(bad)) => {
                    return Err(LimitStoreError::Indeterminate(bad.into()));
                }
                Err(NoDecision::Missing) if is_read => {
                    return Err(LimitStoreError::Unavailable(NotAsked::TotalsUnknown.into()));
                }
                Err(NoDecision::Missing) => {
                    is_read = true;
                    self.read_totals(call, &applied, Timestamp::from_unix_micros(time.1))
                        .await;
                }
                // Nothing was charged. The second time the bounds are those around the server's own time.
                Err(NoDecision::Calendar) => around = Timestamp::from_unix_micros(time.1),
            }
        }
        Err(LimitStoreError::Unavailable(NotAsked::Calendar.into()))
    }

    /// Reads the quotas of a call from the totals, and waits until they stand in Redis or the source has failed.
    async fn read_totals(
        self: &Arc<Self>,
        call: &LimitCall<'_>,
        applied: &[Applied<'_>],
        now: Timestamp,
    ) {
        let owner = call.set.owner();
        for rule in applied
            .iter()
            .filter(|rule| rule.has_count && rule.rule.is_fixed_by_owner())
        {
            let CompiledAlgorithm::Quota(quota) = rule.rule.compiled() else {
                continue;
            };
            let period = quota.bounds(now, owner.billing_anchor);
            let start = period.start.as_unix_micros();
            let prepared = Prepared::of(call.set, &self.space, self.totals.is_some());
            let (Some(totals), Some((key, field))) = (
                &self.totals,
                prepared
                    .rule(rule.index)
                    .and_then(PreparedRule::fixed_place),
            ) else {
                continue;
            };
            let key = (key, field, start);
            let (mut done, begins) = self.reading.join(&key);
            if let Some(begins) = begins {
                let lost = LostQuota {
                    tenant: owner.tenant.clone(),
                    environment: owner.environment,
                    key: owner.key.clone(),
                    rule: Arc::clone(&rule.rule.rule().name),
                    scope: rule.rule.scope().clone(),
                    unit: rule.rule.unit().clone(),
                    period,
                };
                let (inner, totals) = (Arc::clone(self), Arc::clone(totals));
                let (call, index) = (call.to_owned(), rule.index);
                // A task of its own: whoever asked may leave before the answer is there.
                tokio::spawn(async move {
                    match totals.used(&lost).await {
                        Ok(units) => inner.seed(&call.as_call(), index, start, units, now).await,
                        Err(error) => {
                            tracing::warn!(target: "tollgate::redis", error = &*error as &dyn std::error::Error, "the totals of a lost quota are not known");
                        }
                    }
                    inner.reading.end(&key);
                    begins.send_replace(true);
                });
            }
            // A task that has panicked ends the wait as well.
            let _ = done.wait_for(|done| *done).await;
        }
    }

    /// Puts into Redis what is known to have been used, unless more is counted there already.
    async fn seed(
        &self,
        call: &LimitCall<'_>,
        index: usize,
        start: u64,
        units: u64,
        now: Timestamp,
    ) {
        let prepared = Prepared::of(call.set, &self.space, self.totals.is_some());
        let values = (start, units.min(Cost::MAX), Some(0));
        let packed = call.set.rules().get(index).and_then(|rule| {
            let prepared = prepared.rule(index)?;
            prepared.pack(&self.space, call.set, rule, call.scopes, values, now, 0)
        });
        let call = PackedCall {
            operation: Operation::Seed,
            time: self.time_of(call),
            rules: packed.into_iter().collect(),
        };
        if let Err(error) = self.ask(self.shard_of(&call), call, None).await {
            tracing::debug!(target: "tollgate::redis", error = &error as &dyn std::error::Error, "a quota was not begun");
        }
    }

    fn learn_time(&self, call: &LimitCall<'_>, answer: &Answer) {
        let (server, own) = (answer.server_micros, call.now.wall().as_unix_micros());
        let ahead = i64::try_from(i128::from(server) - i128::from(own)).unwrap_or(0);
        self.server_ahead.store(ahead, Ordering::Relaxed);
    }

    fn settle(&self, call: &LimitCall<'_>, receipt: &Receipt, settlement: &Settlement) {
        if !receipt.begin_settlement() {
            return;
        }
        self.leases.close(receipt.id());
        let prepared = Prepared::of(call.set, &self.space, self.totals.is_some());
        let rules: SmallVec<_> = receipt
            .holds()
            .iter()
            .filter_map(|hold| {
                let rule = call.set.rules().get(hold.rule)?;
                let (back, more) = settlement.change(rule, hold.amount);
                if (back, more) == (0, 0) {
                    return None;
                }
                // A quota that is gone begins again in the period of the charge.
                let around = Timestamp::from_unix_micros(hold.period);
                let values = (hold.period, back, Some(more));
                prepared.rule(hold.rule)?.pack(
                    &self.space,
                    call.set,
                    rule,
                    call.scopes,
                    values,
                    around,
                    receipt.id(),
                )
            })
            .collect();
        if rules.is_empty() {
            return;
        }
        let call = PackedCall {
            operation: Operation::Settle,
            time: self.time_of(call),
            rules,
        };
        let queue = self.queues.get(self.shard_of(&call));
        let queued = Queued {
            call,
            reply: None,
            release: None,
        };
        if queue.is_none_or(|queue| queue.try_send(queued).is_err()) {
            self.metrics.dropped_settlements.increment(1);
        }
    }

    async fn administer(
        &self,
        operation: Operation,
        set: &Arc<LimitSet>,
        scopes: &ScopeValues,
        rule: Option<&str>,
        units: u64,
    ) -> Result<usize, LimitStoreError> {
        let cost = Cost::requests(0);
        let call = LimitCall::new(set, scopes, &cost, self.clock.now());
        let is_wanted = |applied: &Applied<'_>| {
            let is_grantable = matches!(
                applied.rule.compiled(),
                CompiledAlgorithm::TokenBucket(_) | CompiledAlgorithm::Quota(_)
            );
            rule.is_none_or(|name| applied.rule.name() == name)
                && (operation != Operation::Grant || is_grantable)
        };
        let wanted: Vec<Applied<'_>> = applied(&call)
            .into_iter()
            .filter(is_wanted)
            .map(|applied| Applied {
                amount: units,
                ..applied
            })
            .collect();
        let packed = self.pack(
            operation,
            &call,
            &wanted,
            self.server_wall(call.now.wall()),
            0,
        );
        let n_rules = packed.rules.len();
        if n_rules == 0 {
            return Ok(0);
        }
        let answer = self.ask(self.shard_of(&packed), packed, None).await?;
        match answer.values.first() {
            Some(&status::CORRUPT) => Err(LimitStoreError::Corrupt(NotACount.into())),
            _ => Ok(n_rules),
        }
    }
}

fn ended() -> LimitStoreError {
    LimitStoreError::Unavailable(NotAsked::Ended.into())
}

fn no_queue() -> mpsc::WeakSender<Queued> {
    mpsc::channel(1).0.downgrade()
}

/// A call's concurrency rules, packed as the release of what they hold, and the shortest of their leases; `None`
/// where there are none.
fn slots_of(packed: &PackedCall, applied: &[Applied<'_>]) -> Option<(PackedCall, Duration)> {
    let mut lease: Option<u64> = None;
    let counted = applied.iter().filter(|rule| rule.has_count);
    let mut slots = PackedCall {
        operation: Operation::Settle,
        time: packed.time,
        rules: SmallVec::new(),
    };
    for (rule, packed) in std::iter::zip(counted, &packed.rules) {
        if let CompiledAlgorithm::Concurrency(gauge) = rule.rule.compiled()
            && rule.amount > 0
        {
            let own = gauge.lease_micros();
            lease = Some(lease.map_or(own, |lease| lease.min(own)));
            slots.rules.push(packed.as_release(rule.amount));
        }
    }
    lease.map(|lease| (slots, Duration::from_micros(lease)))
}

impl From<RedisFault> for LimitStoreError {
    fn from(fault: RedisFault) -> Self {
        if fault.is_unknown() {
            Self::Indeterminate(fault.into())
        } else {
            Self::Unavailable(fault.into())
        }
    }
}

#[async_trait]
impl LimitStore for RedisLimits {
    /// Answers where no rule of the call has a count: limits of zero, and unlimited ones.
    fn try_decide(&self, call: &LimitCall<'_>) -> Option<Result<Decision, LimitStoreError>> {
        let applied = applied(call);
        if applied.iter().any(|rule| rule.has_count) {
            return None;
        }
        Some(Ok(answer::without_trip(&applied)))
    }

    async fn decide(self: Arc<Self>, call: OwnedLimitCall) -> Result<Decision, LimitStoreError> {
        self.inner.decide(&call.as_call()).await
    }

    fn settle(&self, call: &LimitCall<'_>, receipt: &Receipt, settlement: &Settlement) {
        self.inner.settle(call, receipt, settlement);
    }
}
