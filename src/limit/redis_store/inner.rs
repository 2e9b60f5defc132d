//! What all handles of a store share: packing calls, queueing them and reading their answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::RedisError;
use smallvec::SmallVec;
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
};

use super::{
    super::{
        compile::CompiledAlgorithm,
        decision::{Decision, Receipt},
        store::{LimitCall, LimitStoreError, Settlement},
    },
    DECIDE, QuotaTotals, RedisLimitsBuilder,
    answer::{self, Applied, NoDecision, applied},
    driver::{Driver, DriverMetrics, Queued, Release},
    leases::Leases,
    prepare::Prepared,
    slices::Slices,
    totals::Reading,
    wire::{Answer, Operation, PackedCall},
};
use crate::{
    clock::{Clock, Timestamp},
    redis_support::{KeySpace, Link, N_SLOTS, RedisConnector, RedisFault, Script, slot},
};

/// For the epoch, which is set once at the start.
const EPOCH_PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct Inner {
    pub(super) connector: Arc<RedisConnector>,
    pub(super) space: KeySpace,
    /// One queue for each driver; in a Cluster each has a range of slots.
    pub(super) queues: Box<[mpsc::Sender<Queued>]>,
    pub(super) leases: Arc<Leases>,
    pub(super) renewing: AbortHandle,
    pub(super) metrics: DriverMetrics,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) time_of_calls: bool,
    pub(super) totals: Option<Arc<dyn QuotaTotals>>,
    pub(super) reading: Reading,
    /// Receipts are this process's own, and then numbered.
    pub(super) boot: u64,
    pub(super) next_receipt: AtomicU64,
    /// How far the server's wall clock is ahead of this process's, in microseconds, as of the last answer.
    pub(super) server_ahead: AtomicI64,
    /// What is in hand of the counts, in leased mode.
    pub(super) slices: Option<Slices>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(slices) = &self.slices {
            slices.return_all(self);
        }
        self.renewing.abort();
    }
}

/// The store could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotAsked {
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
pub(super) struct NotACount;

impl Inner {
    pub(super) fn start(
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
            slices: builder.lease.map(Slices::new),
        }
    }

    /// Notes in the server since when it has held its counts, unless it is noted. A note that is younger than a
    /// period tells that the period's counts may have been lost.
    pub(super) async fn begin_epoch(&self, mut link: Link) -> Result<(), RedisError> {
        let time = link.query(redis::cmd("TIME"), EPOCH_PATIENCE).await?;
        let (seconds, micros): (u64, u64) = redis::from_redis_value(time)?;
        let mut note = redis::cmd("SET");
        note.arg(&*self.space.epoch())
            .arg(seconds.saturating_mul(1_000_000).saturating_add(micros))
            .arg("NX");
        link.query(note, EPOCH_PATIENCE).await.map(drop)
    }

    pub(super) fn receipt(&self) -> u128 {
        let number = self.next_receipt.fetch_add(1, Ordering::Relaxed);
        u128::from(self.boot) << 64 | u128::from(number)
    }

    pub(super) fn shard_of(&self, call: &PackedCall) -> usize {
        match call.rules.first() {
            Some(rule) if self.queues.len() > 1 => {
                usize::from(slot(&rule.key)) * self.queues.len() / usize::from(N_SLOTS)
            }
            _ => 0,
        }
    }

    /// The server's wall clock, as far as it is known.
    pub(super) fn server_wall(&self, wall: Timestamp) -> Timestamp {
        if self.time_of_calls {
            return wall;
        }
        let ahead = self.server_ahead.load(Ordering::Relaxed);
        Timestamp::from_unix_micros(wall.as_unix_micros().saturating_add_signed(ahead))
    }

    pub(super) const fn time_of(&self, call: &LimitCall<'_>) -> Option<(u64, u64)> {
        if self.time_of_calls {
            Some((
                call.now.monotonic_micros(),
                call.now.wall().as_unix_micros(),
            ))
        } else {
            None
        }
    }

    pub(super) fn pack(
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
                let force = u64::from(rule.is_covered || !rule.rule.refuses());
                let values = (rule.amount, 2 * rule.wanted + force, None);
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
    pub(super) async fn ask(
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

    pub(super) async fn decide(
        self: &Arc<Self>,
        call: &LimitCall<'_>,
    ) -> Result<Decision, LimitStoreError> {
        let applied = applied(call);
        if !applied.iter().any(|rule| rule.has_count) {
            return Ok(answer::without_trip(&applied));
        }
        let (decision, _) = self.decide_applied(call, &applied).await?;
        Ok(decision)
    }

    /// Decides by some rules of a call, one of which has a count at least; answers the time of the decision, too.
    pub(super) async fn decide_applied(
        self: &Arc<Self>,
        call: &LimitCall<'_>,
        applied: &[Applied<'_>],
    ) -> Result<(Decision, u64), LimitStoreError> {
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
            let packed = self.pack(operation, call, applied, around, receipt);
            let shard = self.shard_of(&packed);
            let slots = slots_of(&packed, applied);
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
            match answer::decision(applied, &answer, time, receipt) {
                Ok(decision) => {
                    if let Some((slots, lease)) = slots
                        && decision.is_admitted()
                    {
                        self.leases.open(receipt, slots, shard, lease);
                    }
                    return Ok((decision, time.0));
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
                    self.read_totals(call, applied, Timestamp::from_unix_micros(time.1))
                        .await;
                }
                // Nothing was charged. The second time the bounds are those around the server's own time.
                Err(NoDecision::Calendar) => around = Timestamp::from_unix_micros(time.1),
            }
        }
        Err(LimitStoreError::Unavailable(NotAsked::Calendar.into()))
    }

    pub(super) fn learn_time(&self, call: &LimitCall<'_>, answer: &Answer) {
        let (server, own) = (answer.server_micros, call.now.wall().as_unix_micros());
        let ahead = i64::try_from(i128::from(server) - i128::from(own)).unwrap_or(0);
        self.server_ahead.store(ahead, Ordering::Relaxed);
    }

    pub(super) fn settle(&self, call: &LimitCall<'_>, receipt: &Receipt, settlement: &Settlement) {
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
                let (mut back, mut more) = settlement.change(rule, hold.amount);
                if let Some(slices) = &self.slices {
                    (back, more) = slices.settle(self, call, hold, (back, more));
                }
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
        self.send_settlement(call);
    }

    /// Queues a settlement; one that finds no place is dropped and counted.
    pub(super) fn send_settlement(&self, call: PackedCall) {
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
            slots.rules.push(packed.as_release(0, rule.amount));
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
