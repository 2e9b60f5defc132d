use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::runtime::Handle;

use super::{
    config::{RecorderBuilder, Settings},
    counters::{Counters, Tally},
    dead_letters::DeadLetter,
    event::EventId,
    flush,
    inner::{Core, IDLE, RUNNING, Running, lock},
    losses::Loss,
    meter::Call,
    report::Watchlist,
    spool::{Opened, Spool},
};
use crate::{
    clock::{Clock, Now},
    error::ConfigError,
    sink::UsageSink,
};

/// Takes the calls that ended and writes them to a [`UsageSink`] in batches, in the background.
///
/// Recording a call pushes a pointer into a bounded lock-free queue: it never waits, never allocates and wakes
/// nobody. One background task looks at the queue every tick (100 ms unless set), makes events of the calls
/// and offers them to the sink until it has given its last word on each.
///
/// Events are held in memory: killing the process loses at most the queue and what is being written. A
/// [`Durability`](super::Durability) keeps them on the disk as well, from the tick after the end of their call. A full
/// queue drops the newest event, counts it and says so in the log; see [`Recorder::counters`] and
/// [`Recorder::losses`].
///
/// Cloning gives a second handle to the same recorder. The task is started on the tokio runtime that the
/// recorder is built in, else by [`Recorder::start`] or the first metered call. When the last handle is gone
/// without [`Recorder::shutdown`], the task offers what is left once more and logs what it could not write.
#[derive(Clone)]
pub struct Recorder {
    handle: Arc<Handles>,
}

/// Dropped with the last handle; the background task holds only the core.
struct Handles {
    core: Arc<Core>,
}

impl Recorder {
    /// A recorder with the default settings; see [`RecorderBuilder`].
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when the operating system gives no random bytes for the ids of events.
    pub fn new(sink: impl UsageSink) -> Result<Self, ConfigError> {
        Self::builder(sink).build()
    }

    /// Starts to set up a recorder that writes to `sink`.
    pub fn builder(sink: impl UsageSink) -> RecorderBuilder {
        RecorderBuilder::new(Arc::new(sink))
    }

    pub(super) fn assemble(
        boot: u64,
        clock: Arc<dyn Clock>,
        sink: Arc<dyn UsageSink>,
        settings: Settings,
        spool: Option<(Spool, Opened)>,
    ) -> Self {
        if spool.is_none() {
            tracing::info!(
                queue_capacity = settings.queue_capacity,
                "usage events are held in memory until they are written: a kill loses at most the queue"
            );
        }
        let core = Core::new(boot, clock, sink, settings, spool);
        let recorder = Self {
            handle: Arc::new(Handles {
                core: Arc::new(core),
            }),
        };
        recorder.start();
        recorder
    }

    /// Calls `watch` on each tick of the background task, for gauges that nobody else brings up to date.
    pub(crate) fn each_tick(&self, watch: impl FnMut() -> bool + Send + 'static) {
        lock(&self.core().watched).push(Box::new(watch));
    }

    fn core(&self) -> &Arc<Core> {
        &self.handle.core
    }

    pub(super) fn clock(&self) -> &Arc<dyn Clock> {
        &self.core().clock
    }

    pub(super) fn tally(&self) -> &Arc<Tally> {
        &self.core().tally
    }

    pub(super) fn next_id(&self) -> EventId {
        self.core().next_id()
    }

    pub(super) fn watchlist(&self) -> Option<&Arc<Watchlist>> {
        self.core().watchlist.as_ref()
    }

    /// Starts the background task where none runs; true when one runs now.
    ///
    /// False outside of a tokio runtime, which the log says once, and after [`Recorder::shutdown`]. The
    /// runtime needs its timer.
    pub fn start(&self) -> bool {
        let core = self.core();
        if core.state.load(Ordering::Acquire) != IDLE {
            return core.is_running();
        }
        let Ok(runtime) = Handle::try_current() else {
            if !core.no_runtime_logged.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "the recorder was made outside of a tokio runtime: usage waits in the queue until \
                     Recorder::start or the first call inside of one"
                );
            }
            return false;
        };
        // Under the lock, so that a shutdown that closes the recorder meanwhile finds the task.
        let mut task = lock(&core.task);
        let begun = core
            .state
            .compare_exchange(IDLE, RUNNING, Ordering::AcqRel, Ordering::Acquire);
        if begun.is_ok() {
            match lock(&core.parked).take() {
                Some(flusher) => {
                    *task = Some(runtime.spawn(flush::run(Running::new(core, flusher))));
                }
                None => core.state.store(IDLE, Ordering::Release),
            }
        }
        core.is_running()
    }

    pub(super) fn ensure_started(&self) {
        if self.core().state.load(Ordering::Relaxed) == IDLE {
            self.start();
        }
    }

    /// Takes a settled call.
    pub(super) fn record(&self, call: Arc<Call>, now: Now) {
        self.core().push(call, now);
    }

    /// Whether a call that ends now would be kept: the queue has room and there was no shutdown.
    pub(crate) fn accepts(&self) -> bool {
        let core = self.core();
        !core.is_closed() && !core.queue.is_full()
    }

    /// What became of every call so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.core().tally.snapshot()
    }

    /// The latest events that the sink rejected for good, oldest first; at most as many as
    /// [`RecorderBuilder::dead_letters`] keeps, and about 24 MiB.
    #[must_use]
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        lock(&self.core().dead_letters).iter().cloned().collect()
    }

    /// Offers every dead letter to the sink again, oldest first, and says how many there were: after whatever made the
    /// sink reject them was mended. One that is rejected again is a dead letter again.
    ///
    /// A kill in the middle may leave an event both offered and a dead letter; the sink has it once all the same. With
    /// a spool they stay in the file of dead letters until the spool has them. Those that a shutdown comes before are
    /// in the spool then, and without one dead letters again.
    #[expect(
        clippy::must_use_candidate,
        reason = "called for what it does: the number is for a log"
    )]
    pub fn replay_dead_letters(&self) -> usize {
        let core = self.core();
        let mut kept = lock(&core.dead_letters);
        let mut replays = lock(&core.replays);
        // Under the lock, so that a shutdown finds the letters in the one place or in the other.
        if core.is_closed() {
            return 0;
        }
        let letters = kept.take();
        let n = letters.len();
        if n > 0 {
            core.tally.stages().replayed += n as u64;
            replays.extend(letters);
            core.wake.notify_one();
        }
        n
    }

    /// What was lost in the life of this recorder, by tenant, day and reason: by how much an invoice may be too low.
    ///
    /// At most 4,096 notes, each of at most 16 quantities; what comes on top has no tenant. Not kept over a restart:
    /// read it before, where [`Counters::dropped`] is not zero.
    #[must_use]
    pub fn losses(&self) -> Vec<Loss> {
        self.core().ledger.losses()
    }

    /// Waits until every call that was settled before is as durable as the recorder's [`Durability`](super::Durability)
    /// promises, and says whether it is: the sink has it, or the disk.
    ///
    /// Without waiting for a tick, so that one who asks for each call pays a write for each. False at once without a
    /// spool; false too when the spool does not take events, which are then held in memory. Needs the background task
    /// to run, and starts it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn persist(&self) -> bool {
        self.start();
        let core = self.core();
        if core.spool.is_none() {
            return false;
        }
        let mut persisted = core.persisted.subscribe();
        let request = core.persist_requested.fetch_add(1, Ordering::AcqRel) + 1;
        core.wake.notify_one();
        // The sender lives in the core, so the wait cannot fail.
        let answer = persisted
            .wait_for(|(answered, _)| *answered >= request)
            .await;
        answer.is_ok_and(|answer| answer.1)
    }

    /// Waits until the sink has given its last word on every call that was settled before.
    ///
    /// Waits for as long as the sink asks for a retry. Returns at once after [`Recorder::shutdown`]. Needs the
    /// background task to run, and starts it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn flush(&self) {
        self.start();
        let core = self.core();
        let mut completed = core.completed.subscribe();
        let request = core.requested.fetch_add(1, Ordering::AcqRel) + 1;
        core.wake.notify_one();
        // The sender lives in the core, so the wait cannot fail.
        let _ = completed.wait_for(|completed| *completed >= request).await;
    }

    /// Waits until every call has ended and every event is written, at most until `deadline` from now; then
    /// ends the recorder.
    ///
    /// Stop accepting connections first. What is not written at the deadline stays in the spool for the next recorder
    /// that has its directory; without one it is counted as `dropped_shutdown` and logged as an error. So is each call
    /// that ends later. A second shutdown finds nothing left.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the recorder running.
    pub async fn shutdown(&self, deadline: Duration) -> FlushReport {
        use tokio::time::{Instant, sleep_until, timeout_at};

        let core = self.core();
        let before = self.counters();
        let now = Instant::now();
        let until = now.checked_add(deadline).unwrap_or(now + MAX_DEADLINE);
        {
            let _hurry = Hurry::new(&core.hurry);
            while timeout_at(until, self.flush()).await.is_ok() && !core.is_closed() {
                let after = self.counters();
                let is_empty = after.open == 0 && after.queued == 0 && after.in_flight == 0;
                if is_empty || Instant::now() >= until {
                    break;
                }
                sleep_until(until.min(Instant::now() + OPEN_CALLS_POLL)).await;
            }
        }
        Core::close(core).await;
        let after = self.counters();
        let report = FlushReport {
            acked: after.acked - before.acked,
            dead_lettered: after.dead_lettered.saturating_sub(before.dead_lettered),
            spooled: after.spooled,
            dropped: after.dropped().saturating_sub(before.dropped()),
            still_open: after.open,
        };
        if report.dropped > 0 || report.still_open > 0 {
            tracing::error!(
                dropped = report.dropped,
                still_open = report.still_open,
                "the recorder was shut down before all usage was written"
            );
        }
        report
    }
}

const MAX_DEADLINE: Duration = Duration::from_secs(86_400);
const OPEN_CALLS_POLL: Duration = Duration::from_millis(10);

/// Takes the hurry back when a shutdown is given up.
struct Hurry<'a>(&'a AtomicBool);

impl<'a> Hurry<'a> {
    fn new(flag: &'a AtomicBool) -> Self {
        flag.store(true, Ordering::Release);
        Self(flag)
    }
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What a shutdown did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct FlushReport {
    /// Events that the sink accepted during the shutdown.
    pub acked: u64,
    /// Events that the sink rejected for good during the shutdown and that became dead letters.
    pub dead_lettered: u64,
    /// Events that are in the spool, for the next recorder that has its directory.
    pub spooled: u64,
    /// Events that were lost: not written at the deadline, or dropped meanwhile by a full queue.
    pub dropped: u64,
    /// Calls that had not ended at the deadline; their events will be dropped when they do.
    pub still_open: u64,
}

impl Drop for Handles {
    fn drop(&mut self) {
        self.core.abandoned.store(true, Ordering::Release);
        self.core.wake.notify_one();
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("source", &self.core().settings.source)
            .field("sink", &self.core().sink)
            .finish_non_exhaustive()
    }
}
