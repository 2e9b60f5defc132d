use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use crossbeam_queue::ArrayQueue;
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::JoinHandle,
};

use super::{
    config::{RecorderBuilder, Settings},
    counters::{Counters, Overflow, Tally},
    dead_letters::DeadLetter,
    event::{EventId, UsageEvent},
    flush::{self, Flusher},
    losses::{Ledger, Loss, LossReason},
    meter::Call,
    report::Watchlist,
    secure::SharedSpool,
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

pub(super) struct Core {
    boot: u64,
    sequence: AtomicU64,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) sink: Arc<dyn UsageSink>,
    pub(super) settings: Settings,
    pub(super) tally: Arc<Tally>,
    watchlist: Option<Arc<Watchlist>>,
    pub(super) queue: ArrayQueue<Arc<Call>>,
    state: AtomicU8,
    task: Mutex<Option<JoinHandle<()>>>,
    /// The flusher while no task runs: a task that is cut off puts it back, with the batches in its hands.
    parked: Mutex<Option<Flusher>>,
    pub(super) dead_letters: Mutex<VecDeque<DeadLetter>>,
    /// The dead letters are not as they were last written.
    pub(super) letters_changed: AtomicBool,
    /// Dead letters that are to be offered again.
    pub(super) replays: Mutex<Vec<UsageEvent>>,
    pub(super) spool: Option<SharedSpool>,
    /// What keeps the queue full, if it is; an `Overflow`.
    pub(super) overflow: AtomicU8,
    pub(super) ledger: Ledger,
    pub(super) persist_requested: AtomicU64,
    /// The last request that was answered, and whether everything was on the disk then.
    pub(super) persisted: watch::Sender<(u64, bool)>,
    /// Called on each tick, until one says that it has nothing more to tell.
    watched: Mutex<Vec<Watch>>,
    pub(super) wake: Notify,
    pub(super) requested: AtomicU64,
    pub(super) completed: watch::Sender<u64>,
    /// A shutdown waits: what failed is offered again soon.
    pub(super) hurry: AtomicBool,
    pub(super) abandoned: AtomicBool,
    full_logged_at: AtomicU64,
    no_runtime_logged: AtomicBool,
}

/// Brings a gauge up to date; false when what it watches is gone.
type Watch = Box<dyn FnMut() -> bool + Send>;

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const CLOSED: u8 = 2;

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
        let (spool, opened) = spool.unzip();
        let core = Core {
            boot,
            sequence: AtomicU64::new(0),
            clock,
            sink,
            tally: Arc::new(Tally::new()),
            watchlist: settings
                .report_every
                .map(|every| Arc::new(Watchlist::new(every))),
            queue: ArrayQueue::new(settings.queue_capacity),
            state: AtomicU8::new(IDLE),
            task: Mutex::new(None),
            parked: Mutex::new(Some(Flusher::new(&settings))),
            dead_letters: Mutex::new(VecDeque::new()),
            letters_changed: AtomicBool::new(false),
            replays: Mutex::default(),
            spool: spool.map(|spool| Arc::new(Mutex::new(Some(spool)))),
            overflow: AtomicU8::new(Overflow::Queue as u8),
            ledger: Ledger::default(),
            persist_requested: AtomicU64::new(0),
            persisted: watch::Sender::new((0, false)),
            watched: Mutex::new(Vec::new()),
            wake: Notify::new(),
            requested: AtomicU64::new(0),
            completed: watch::Sender::new(0),
            hurry: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            full_logged_at: AtomicU64::new(0),
            no_runtime_logged: AtomicBool::new(false),
            settings,
        };
        if let Some(opened) = opened {
            core.recover(opened);
        }
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
    /// [`RecorderBuilder::dead_letters`] keeps.
    #[must_use]
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        lock(&self.core().dead_letters).iter().cloned().collect()
    }

    /// Offers every dead letter to the sink again, oldest first, and says how many there were: after whatever made the
    /// sink reject them was mended. One that is rejected again is a dead letter again.
    ///
    /// A kill in the middle may leave an event both offered and a dead letter; the sink has it once all the same.
    #[expect(
        clippy::must_use_candidate,
        reason = "called for what it does: the number is for a log"
    )]
    pub fn replay_dead_letters(&self) -> usize {
        let core = self.core();
        if core.is_closed() {
            return 0;
        }
        let letters = std::mem::take(&mut *lock(&core.dead_letters));
        let n = letters.len();
        if n > 0 {
            core.tally.stages().replayed += n as u64;
            lock(&core.replays).extend(letters.into_iter().map(|letter| letter.event));
            core.letters_changed.store(true, Ordering::Release);
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
            dead_lettered: after.dead_lettered - before.dead_lettered,
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
    /// Events that the sink rejected for good during the shutdown.
    pub dead_lettered: u64,
    /// Events that are in the spool, for the next recorder that has its directory.
    pub spooled: u64,
    /// Events that were lost: not written at the deadline, or dropped meanwhile by a full queue.
    pub dropped: u64,
    /// Calls that had not ended at the deadline; their events will be dropped when they do.
    pub still_open: u64,
}

impl Core {
    fn next_id(&self) -> EventId {
        EventId::new(self.boot, self.sequence.fetch_add(1, Ordering::Relaxed))
    }

    fn push(&self, call: Arc<Call>, now: Now) {
        self.tally.settled();
        if let Err(call) = self.queue.push(call) {
            self.overflow(&call, now);
        } else if self.is_closed() {
            self.discard_queue();
        }
    }

    /// Counts a call that the queue had no room for.
    fn overflow(&self, call: &Call, now: Now) {
        let overflow = Overflow::from_u8(self.overflow.load(Ordering::Relaxed));
        self.tally.overflowed(overflow);
        self.ledger.call(call, overflow.reason());
        self.log_full_queue(now);
        if self.spool.is_some() {
            // The spool has room for what the queue has not.
            self.wake.notify_one();
        }
    }

    /// Counts what an earlier life has left.
    fn recover(&self, opened: Opened) {
        let Some(spool) = &self.spool else { return };
        let (unread, n_bytes, (corrupt, expired)) = {
            let mut spool = lock(spool);
            let Some(spool) = spool.as_mut() else { return };
            (spool.unread(), spool.bytes(), spool.take_losses())
        };
        let n_letters = opened.letters.len() as u64;
        self.tally.spool_bytes.store(n_bytes, Ordering::Relaxed);
        self.tally.recovered(unread + expired, n_letters, corrupt);
        self.ledger.unnamed(corrupt, LossReason::Corrupt);
        self.lose_spooled((0, expired));
        lock(&self.dead_letters).extend(opened.letters);
        tracing::info!(
            recovered = unread,
            dead_letters = n_letters,
            corrupt,
            expired,
            missing_segments = opened.n_missing,
            "usage events are appended to the spool before they are offered: what it held is offered first"
        );
    }

    /// Queues a part of each call that goes on and whose interval is over. Each counts as opened and settled, so
    /// that the laws of the counters hold for parts as they do for calls.
    pub(super) fn report_long_calls(&self) {
        let Some(watchlist) = &self.watchlist else {
            return;
        };
        let now = self.clock.now();
        watchlist.due(now, |call| {
            if let Some(part) = call.part(self.next_id(), now) {
                self.tally.opened();
                self.tally.part();
                self.push(part, now);
            }
        });
    }

    pub(super) fn is_running(&self) -> bool {
        self.state.load(Ordering::Acquire) == RUNNING
    }

    /// Sequentially consistent, like the store in [`Core::close`]: of a push and a closing that race, the push
    /// is emptied by the one or sees the other.
    fn is_closed(&self) -> bool {
        self.state.load(Ordering::SeqCst) == CLOSED
    }

    pub(super) fn next(&self) -> Option<Arc<Call>> {
        let call = self.queue.pop()?;
        self.tally.stages().taken += 1;
        Some(call)
    }

    pub(super) fn watch(&self) {
        lock(&self.watched).retain_mut(|watch| watch());
    }

    /// Counts what is in the queue as lost; says how much it was.
    pub(super) fn discard_queue(&self) -> u64 {
        let mut n = 0;
        while let Some(call) = self.next() {
            self.lose_call(&call);
            n += 1;
        }
        n
    }

    /// Counts a call that was taken from the queue and will not be written.
    pub(super) fn lose_call(&self, call: &Call) {
        self.tally.stages().shutdown += 1;
        self.ledger.call(call, LossReason::Shutdown);
    }

    pub(super) fn bury(&self, letters: Vec<DeadLetter>) {
        let Some(first) = letters.first() else { return };
        tracing::error!(
            n_events = letters.len(),
            first = %first.event.id,
            reason = &*first.reason,
            "the usage sink rejected events: they go to the dead letters"
        );
        let n = letters.len() as u64;
        let mut kept = lock(&self.dead_letters);
        kept.extend(letters);
        let excess = kept.len().saturating_sub(self.settings.dead_letters);
        kept.drain(..excess);
        drop(kept);
        self.tally.stages().dead_lettered += n;
        self.letters_changed.store(true, Ordering::Release);
    }

    /// Once a second at most, so that an overload does not also flood the log.
    fn log_full_queue(&self, now: Now) {
        const EVERY: Duration = Duration::from_secs(1);
        // The clock may start at zero, which stands for "never" here.
        let reading = now.monotonic_micros().saturating_add(1);
        let last = self.full_logged_at.load(Ordering::Relaxed);
        if last != 0 && reading.saturating_sub(last) < crate::clock::micros(EVERY) {
            return;
        }
        let swapped = self.full_logged_at.compare_exchange(
            last,
            reading,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        if swapped.is_ok() {
            tracing::error!(
                dropped = self.tally.snapshot().dropped(),
                queue_capacity = self.settings.queue_capacity,
                "the usage queue is full: the newest events are dropped"
            );
        }
    }

    async fn close(self: &Arc<Self>) {
        let task = {
            let mut task = lock(&self.task);
            self.state.store(CLOSED, Ordering::SeqCst);
            task.take()
        };
        if let Some(task) = task {
            task.abort();
            // A sink that blocks its thread cannot be cut off, and is not waited for.
            let _ = tokio::time::timeout(BLOCKED_SINK_PATIENCE, task).await;
        }
        let flusher = lock(&self.parked).take();
        let lost = self.retire(flusher).await;
        self.persisted
            .send_replace((u64::MAX, lost == 0 && self.spool.is_some()));
        self.completed.send_replace(u64::MAX);
    }

    /// Gives up what is left, to the spool where there is one; says how much is lost.
    pub(super) async fn retire(self: &Arc<Self>, flusher: Option<Flusher>) -> u64 {
        let mut flusher = flusher.unwrap_or_else(|| Flusher::new(&self.settings));
        if self.spool.is_none() {
            return flusher.retire(self);
        }
        let core = Arc::clone(self);
        let retired = tokio::task::spawn_blocking(move || flusher.retire(&core));
        retired.await.unwrap_or(0)
    }
}

const BLOCKED_SINK_PATIENCE: Duration = Duration::from_secs(1);

impl Drop for Handles {
    fn drop(&mut self) {
        self.core.abandoned.store(true, Ordering::Release);
        self.core.wake.notify_one();
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let parked = lock(&self.parked).take();
        let lost = parked.map_or(0, |mut flusher| flusher.retire(self));
        if lost > 0 {
            tracing::error!(
                lost,
                "the recorder was dropped with usage events in it: call Recorder::shutdown before the end"
            );
        }
    }
}

/// The running task's hold on the core and the flusher; gives the flusher back however the task ends.
pub(super) struct Running {
    core: Arc<Core>,
    flusher: Option<Flusher>,
}

impl Running {
    fn new(core: &Arc<Core>, flusher: Flusher) -> Self {
        Self {
            core: Arc::clone(core),
            flusher: Some(flusher),
        }
    }

    pub(super) fn parts(&mut self) -> (&Arc<Core>, Option<&mut Flusher>) {
        (&self.core, self.flusher.as_mut())
    }

    /// The flusher, for good.
    pub(super) fn take(&mut self) -> Option<Flusher> {
        self.flusher.take()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *lock(&self.core.parked) = self.flusher.take();
        // A closed recorder stays closed.
        let _ =
            self.core
                .state
                .compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("source", &self.core().settings.source)
            .field("sink", &self.core().sink)
            .finish_non_exhaustive()
    }
}
