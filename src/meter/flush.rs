//! The background task: from the queue to the sink.

use std::{
    collections::HashSet,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

use super::{
    batch::Frozen,
    config::Settings,
    dead_letters::DeadLetter,
    encode::Encoder,
    event::UsageEvent,
    export::Exported,
    inner::{Core, Running},
    spool::Secured,
};
use crate::sink::{DeliveryOrder, Verdict, Verdicts, offer};

/// How many events may wait for their retry, while the sink takes others, before no more are taken from the
/// queue, or read back from the spool.
pub(super) const MAX_WAITING_EVENTS: usize = 65_536;

/// While a shutdown waits, what failed is offered again after this time.
const HURRIED_RETRY: Duration = Duration::from_millis(100);

/// The longest wait that a sink can ask for; a longer one is cut to it.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// What the background task works with; it survives the task.
pub(super) struct Flusher {
    encoder: Encoder,
    pub(super) waiting: Vec<Waiting>,
    next_number: u64,
    /// The batch that the sink has at the moment.
    pub(super) offered: Option<u64>,
    /// The dead letters that were made batches again, by the batch's number, until the spool has it.
    pub(super) replaying: Vec<(u64, Vec<DeadLetter>)>,
    /// Batches whose last events are finished and that the spool still holds.
    pub(super) finished: Vec<u64>,
    backoff: ExponentialBuilder,
    exported: Exported,
}

/// A batch that is not finished. Its events stay in their order, and none joins.
pub(super) struct Waiting {
    /// Its place in the order in which batches were taken.
    number: u64,
    /// It was read back from the spool, and is older than what was taken meanwhile.
    is_loaded: bool,
    pub(super) frozen: Arc<Frozen>,
    /// What the sink's verdicts have left of it.
    pub(super) events: Arc<Vec<UsageEvent>>,
    delays: ExponentialBackoff,
    due: Instant,
    not_before: Instant,
    n_offers: u64,
    /// The last offer got no verdict: the sink is down, and other batches need not try.
    without_verdict: bool,
}

impl Waiting {
    fn due_at(&self, hurry: bool) -> Instant {
        if hurry {
            self.not_before
        } else {
            self.due.max(self.not_before)
        }
    }

    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    /// Whether it was taken after the batches below `mark`.
    const fn is_later_than(&self, mark: u64) -> bool {
        !self.is_loaded && self.number >= mark
    }
}

impl Flusher {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            encoder: Encoder::new(Arc::clone(&settings.source)),
            waiting: Vec::new(),
            next_number: 1,
            offered: None,
            replaying: Vec::new(),
            finished: Vec::new(),
            backoff: ExponentialBuilder::new()
                .with_min_delay(settings.min_backoff)
                .with_max_delay(settings.max_backoff)
                .without_max_times()
                .with_jitter(),
            exported: Exported::new(settings.queue_capacity),
        }
    }

    pub(super) fn export(&mut self, core: &Core) {
        self.exported.export(&core.tally);
    }

    pub(super) fn n_waiting(&self) -> usize {
        self.waiting
            .iter()
            .map(|waiting| waiting.events.len())
            .sum()
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.n_waiting() >= MAX_WAITING_EVENTS
            || self.waiting.iter().any(|waiting| waiting.without_verdict)
    }

    fn next_due(&self, hurry: bool) -> Option<Instant> {
        // One that was never offered waits for another, not for a time.
        let offered = self.waiting.iter().filter(|waiting| waiting.n_offers > 0);
        offered.map(|waiting| waiting.due_at(hurry)).min()
    }

    /// The batches that may be offered now, in their order.
    fn eligible(&self, core: &Core, is_wanted: impl Fn(&Waiting) -> bool) -> Vec<u64> {
        let is_ordered = core.sink.order() == DeliveryOrder::PerTenant;
        // What the spool did not take is newer than what it holds.
        let has_older = is_ordered && core.tally.stages().spooled > 0;
        let mut held = HashSet::new();
        let mut eligible = Vec::new();
        for waiting in &self.waiting {
            let tenants = waiting.events.iter().map(|event| &event.tenant);
            let is_newer = waiting.n_offers == 0 && waiting.frozen.secured().is_none();
            let is_held =
                (has_older && is_newer) || tenants.clone().any(|tenant| held.contains(tenant));
            if !is_held && is_wanted(waiting) {
                eligible.push(waiting.number);
            }
            if is_ordered {
                held.extend(tenants);
            }
        }
        eligible
    }

    /// Offers what is due again, then what is new; true when everything that was in the queue at the start
    /// is finished.
    async fn cycle(&mut self, core: &Arc<Core>, tick: &mut Interval) -> bool {
        let mut n_new = self.secure(core).await;
        let mut mark = self.next_number;
        let hurry = core.hurry.load(Ordering::Acquire);
        let now = Instant::now();
        let is_due = |waiting: &Waiting| waiting.n_offers > 0 && waiting.due_at(hurry) <= now;
        for number in self.eligible(core, is_due) {
            self.offer(core, number, tick).await;
        }
        while !self.is_blocked() {
            let is_new = |waiting: &Waiting| waiting.n_offers == 0 && !waiting.is_later_than(mark);
            if let Some(number) = self.eligible(core, is_new).first() {
                self.offer(core, *number, tick).await;
            } else if n_new > 0 && core.spool.is_none() {
                let n = n_new.min(core.settings.max_batch);
                let n_taken = self.take(core, n);
                if n_taken == 0 {
                    break;
                }
                n_new -= n_taken.min(n_new);
                mark = self.next_number;
            } else if core.tally.stages().spooled > 0 {
                self.commit(core).await;
                if !self.load(core).await {
                    break;
                }
            } else {
                break;
            }
        }
        self.commit(core).await;
        n_new == 0
            && core.tally.stages().spooled == 0
            && self
                .waiting
                .iter()
                .all(|waiting| waiting.is_later_than(mark))
    }

    /// Takes up to `n` calls from the queue as a new batch, which ends with the event that reaches the greatest
    /// number of bytes; says how many were taken.
    pub(super) fn take(&mut self, core: &Core, n: usize) -> usize {
        let mut events = Vec::with_capacity(n);
        let mut n_taken = 0;
        let mut n_bytes = 0;
        while n_taken < n && n_bytes < core.settings.max_batch_bytes {
            let Some(call) = core.next() else { break };
            n_taken += 1;
            match self.encoder.event(&call) {
                Some(event) => {
                    n_bytes += event.about_bytes();
                    events.push(event);
                }
                // Cannot be: only settled calls with an identity are queued. Counted all the same.
                None => core.lose_call(&call),
            }
        }
        if !events.is_empty() {
            self.wait(self.waiting.len(), Frozen::new(events).into(), false);
        }
        n_taken
    }

    /// Takes a batch that was read back: behind those that the spool holds, before those that it did not take.
    pub(super) fn take_loaded(&mut self, frozen: Arc<Frozen>) {
        let is_newer = |waiting: &Waiting| waiting.frozen.secured().is_none();
        let place = self.waiting.iter().position(is_newer);
        self.wait(place.unwrap_or(self.waiting.len()), frozen, true);
    }

    /// Takes a batch at that place and says its number.
    pub(super) fn wait(&mut self, place: usize, frozen: Arc<Frozen>, is_loaded: bool) -> u64 {
        let now = Instant::now();
        let number = self.next_number;
        let waiting = Waiting {
            number,
            is_loaded,
            events: Arc::clone(&frozen.events),
            frozen,
            delays: self.backoff.build(),
            due: now,
            not_before: now,
            n_offers: 0,
            without_verdict: false,
        };
        self.next_number += 1;
        self.waiting.insert(place, waiting);
        number
    }

    /// Offers a batch to the sink. The batch stays in its place during the write, so that a task that is cut off
    /// loses nothing; with a spool, what comes meanwhile is secured on each tick.
    async fn offer(&mut self, core: &Arc<Core>, number: u64, tick: &mut Interval) {
        let Some(waiting) = self.find(number) else {
            return;
        };
        if waiting.n_offers > 0 {
            core.tally.retries.fetch_add(1, Ordering::Relaxed);
        }
        waiting.n_offers += 1;
        let events = Arc::clone(&waiting.events);
        self.offered = Some(number);
        let mut woken = false;
        let written = {
            let mut write = pin!(offer(&*core.sink, &events, core.settings.write_timeout));
            if core.spool.is_none() {
                write.await
            } else {
                loop {
                    tokio::select! {
                        biased;
                        written = &mut write => break written,
                        _ = tick.tick() => {}
                        () = core.wake.notified() => woken = true,
                    }
                    self.secure(core).await;
                }
            }
        };
        self.offered = None;
        if woken {
            // Whoever woke the task waits for more than the spool, perhaps.
            core.wake.notify_one();
        }
        let Some(waiting) = self.find(number) else {
            return;
        };
        let mut after = Duration::ZERO;
        match written {
            Ok(verdicts) => {
                waiting.without_verdict = false;
                after = judge(core, &mut waiting.events, verdicts);
            }
            Err(failure) => {
                waiting.without_verdict = true;
                tracing::warn!(
                    error = &failure as &dyn std::error::Error,
                    n_events = events.len(),
                    n_offers = waiting.n_offers,
                    "the usage sink failed: the batch will be offered again"
                );
            }
        }
        self.conclude(core, number, events.len(), after);
    }

    /// Forgets a batch that is finished, or says when what is left of it is offered again.
    fn conclude(&mut self, core: &Core, number: u64, n_before: usize, after: Duration) {
        let backoff = self.backoff;
        let Some(waiting) = self.find(number) else {
            return;
        };
        if waiting.events.is_empty() {
            if let Some(Secured::InHand(ticket)) = waiting.frozen.secured() {
                self.finished.push(ticket);
            }
            self.waiting.retain(|waiting| !waiting.events.is_empty());
            return;
        }
        if waiting.events.len() < n_before {
            // The sink makes progress.
            waiting.delays = backoff.build();
            if waiting.frozen.secured().is_none() {
                // The spool is to take what is left only.
                waiting.frozen = Arc::new(Frozen::of(Arc::clone(&waiting.events)));
            }
        }
        let now = Instant::now();
        let delay = waiting.delays.next().unwrap_or(core.settings.max_backoff);
        waiting.due = now + delay;
        let least = if core.hurry.load(Ordering::Acquire) {
            after.max(HURRIED_RETRY)
        } else {
            after
        };
        waiting.not_before = now + least.min(MAX_RETRY_AFTER);
    }

    pub(super) fn find(&mut self, number: u64) -> Option<&mut Waiting> {
        self.waiting
            .iter_mut()
            .find(|waiting| waiting.number == number)
    }
}

/// Applies the sink's verdicts; what it has not finished stays in the batch. Says how long the sink asked to
/// wait.
fn judge(core: &Core, batch: &mut Arc<Vec<UsageEvent>>, verdicts: Verdicts) -> Duration {
    let Verdicts::Each(verdicts) = verdicts else {
        core.tally.stages().acked += batch.len() as u64;
        *batch = Arc::default();
        return Duration::ZERO;
    };
    let mut verdicts = verdicts.into_iter();
    let mut after = Duration::ZERO;
    let mut n_acked = 0;
    let mut dead = Vec::new();
    let mut rest = Vec::new();
    for event in &**batch {
        match verdicts.next() {
            Some(Verdict::Accepted | Verdict::Duplicate) => n_acked += 1,
            Some(Verdict::Rejected { reason }) => dead.push(DeadLetter {
                event: event.clone(),
                reason: reason.into(),
            }),
            Some(Verdict::Retry { after: asked }) => {
                after = after.max(asked);
                rest.push(event.clone());
            }
            None => rest.push(event.clone()),
        }
    }
    if rest.len() < batch.len() {
        *batch = Arc::new(rest);
    }
    core.tally.stages().acked += n_acked;
    core.bury(dead);
    after
}

/// Runs until it is aborted, or until the last handle of the recorder is gone and what is left was offered.
pub(super) async fn run(mut running: Running) {
    let (core, Some(flusher)) = running.parts() else {
        return;
    };
    let mut tick = interval(core.settings.tick);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = flusher.next_due(core.hurry.load(Ordering::Acquire));
        tokio::select! {
            _ = tick.tick() => {}
            () = core.wake.notified() => {}
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
        // Read first: whoever counts on this cycle had its calls in the queue before.
        let requested = core.requested.load(Ordering::Acquire);
        let abandoned = core.abandoned.load(Ordering::Acquire);
        if flusher.cycle(core, &mut tick).await {
            core.completed.send_replace(requested);
        }
        flusher.export(core);
        core.watch();
        if abandoned {
            break;
        }
    }
    let core = Arc::clone(core);
    let lost = core.retire(running.take()).await;
    if lost > 0 {
        tracing::error!(
            lost,
            "the last handle of the recorder was dropped before all usage was written: call \
             Recorder::shutdown before the end"
        );
    }
}
