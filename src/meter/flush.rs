//! The background task: from the queue to the sink.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::{
    config::Settings,
    counters::Tally,
    encode::Encoder,
    event::UsageEvent,
    export::Exported,
    recorder::{Core, Running},
};
use crate::sink::{Verdict, Verdicts, offer};

/// An event that the sink rejected for good.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The event as it was offered.
    pub event: UsageEvent,
    /// The sink's reason.
    pub reason: &'static str,
}

/// How many events may wait for their retry, while the sink takes others, before no more are taken from the
/// queue.
const MAX_WAITING_EVENTS: usize = 65_536;

/// While a shutdown waits, what failed is offered again after this time.
const HURRIED_RETRY: Duration = Duration::from_millis(100);

/// The longest wait that a sink can ask for; a longer one is cut to it.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// What the background task works with; it survives the task.
pub(super) struct Flusher {
    encoder: Encoder,
    waiting: Vec<Waiting>,
    backoff: ExponentialBuilder,
    exported: Exported,
}

/// A batch that was taken from the queue and is not finished. Its events stay in their order, and none joins.
struct Waiting {
    batch: Vec<UsageEvent>,
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
}

impl Flusher {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            encoder: Encoder::new(Arc::clone(&settings.source)),
            waiting: Vec::new(),
            backoff: ExponentialBuilder::new()
                .with_min_delay(settings.min_backoff)
                .with_max_delay(settings.max_backoff)
                .without_max_times()
                .with_jitter(),
            exported: Exported::new(settings.queue_capacity),
        }
    }

    /// Gives up what waits and says how much it was.
    pub(super) fn discard(&mut self) -> u64 {
        let n = self.n_waiting();
        self.waiting.clear();
        n as u64
    }

    pub(super) fn export(&mut self, tally: &Tally) {
        self.exported.export(tally);
    }

    fn n_waiting(&self) -> usize {
        self.waiting.iter().map(|waiting| waiting.batch.len()).sum()
    }

    fn is_blocked(&self) -> bool {
        self.n_waiting() >= MAX_WAITING_EVENTS
            || self.waiting.iter().any(|waiting| waiting.without_verdict)
    }

    fn next_due(&self, hurry: bool) -> Option<Instant> {
        self.waiting
            .iter()
            .map(|waiting| waiting.due_at(hurry))
            .min()
    }

    /// Offers what is due again, then what is new; true when everything that was in the queue at the start
    /// is finished.
    async fn cycle(&mut self, core: &Core) -> bool {
        core.report_long_calls();
        let hurry = core.hurry.load(Ordering::Acquire);
        let mut place = 0;
        while let Some(waiting) = self.waiting.get(place) {
            if waiting.due_at(hurry) > Instant::now() || !self.offer(core, place).await {
                place += 1;
            }
        }
        let mut n_new = core.queue.len();
        while n_new > 0 && !self.is_blocked() {
            let n = n_new.min(core.settings.max_batch);
            n_new -= n;
            if !self.take(core, n) {
                break;
            }
            self.offer(core, self.waiting.len().saturating_sub(1)).await;
        }
        n_new == 0 && self.waiting.is_empty()
    }

    /// Takes up to `n` calls from the queue as a new batch; false when there was none.
    fn take(&mut self, core: &Core, n: usize) -> bool {
        let mut batch = Vec::with_capacity(n);
        while batch.len() < n {
            let Some(call) = core.next() else { break };
            match self.encoder.event(&call) {
                Some(event) => batch.push(event),
                // Cannot be: only settled calls with an identity are queued. Counted all the same.
                None => core.lose(1),
            }
        }
        if batch.is_empty() {
            return false;
        }
        let now = Instant::now();
        self.waiting.push(Waiting {
            batch,
            delays: self.backoff.build(),
            due: now,
            not_before: now,
            n_offers: 0,
            without_verdict: false,
        });
        true
    }

    /// Offers a batch to the sink; true when it is finished and gone. The batch stays in its place during the
    /// write, so that a task that is cut off loses nothing.
    async fn offer(&mut self, core: &Core, place: usize) -> bool {
        let Some(waiting) = self.waiting.get_mut(place) else {
            return true;
        };
        if waiting.n_offers > 0 {
            core.tally.retries.fetch_add(1, Ordering::Relaxed);
        }
        waiting.n_offers += 1;
        let written = offer(&*core.sink, &waiting.batch, core.settings.write_timeout).await;
        let n_before = waiting.batch.len();
        let mut after = Duration::ZERO;
        match written {
            Ok(verdicts) => {
                waiting.without_verdict = false;
                after = judge(core, &mut waiting.batch, verdicts);
            }
            Err(failure) => {
                waiting.without_verdict = true;
                tracing::warn!(
                    error = &failure as &dyn std::error::Error,
                    n_events = n_before,
                    n_offers = waiting.n_offers,
                    "the usage sink failed: the batch will be offered again"
                );
            }
        }
        if waiting.batch.is_empty() {
            self.waiting.remove(place);
            return true;
        }
        if waiting.batch.len() < n_before {
            // The sink makes progress.
            waiting.delays = self.backoff.build();
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
        false
    }
}

/// Applies the sink's verdicts; what it has not finished stays in the batch. Says how long the sink asked to
/// wait.
fn judge(core: &Core, batch: &mut Vec<UsageEvent>, verdicts: Verdicts) -> Duration {
    let Verdicts::Each(verdicts) = verdicts else {
        core.tally
            .acked
            .fetch_add(batch.len() as u64, Ordering::Release);
        batch.clear();
        return Duration::ZERO;
    };
    let mut verdicts = verdicts.into_iter();
    let mut after = Duration::ZERO;
    let mut n_acked = 0;
    let mut dead = Vec::new();
    batch.retain(|event| match verdicts.next() {
        Some(Verdict::Accepted | Verdict::Duplicate) => {
            n_acked += 1;
            false
        }
        Some(Verdict::Rejected { reason }) => {
            dead.push(DeadLetter {
                event: event.clone(),
                reason,
            });
            false
        }
        Some(Verdict::Retry { after: asked }) => {
            after = after.max(asked);
            true
        }
        None => true,
    });
    core.tally.acked.fetch_add(n_acked, Ordering::Release);
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
        if flusher.cycle(core).await {
            core.completed.send_replace(requested);
        }
        flusher.export(&core.tally);
        core.watch();
        if abandoned {
            let mut lost = flusher.discard();
            while core.next().is_some() {
                lost += 1;
            }
            core.lose(lost);
            flusher.export(&core.tally);
            if lost > 0 {
                tracing::error!(
                    lost,
                    "the last handle of the recorder was dropped before all usage was written: call \
                     Recorder::shutdown before the end"
                );
            }
            return;
        }
    }
}
