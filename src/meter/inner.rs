//! What the handles of a recorder and its background task share.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use crossbeam_queue::ArrayQueue;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

use super::{
    config::Settings,
    counters::{Overflow, Tally},
    dead_letters::{DeadLetter, Kept},
    event::EventId,
    flush::Flusher,
    losses::{Ledger, LossReason},
    meter::Call,
    report::Watchlist,
    secure::SharedSpool,
    spool::{Opened, Spool},
};
use crate::{
    clock::{Clock, Now},
    sink::UsageSink,
};

pub(super) struct Core {
    pub(super) boot: u64,
    pub(super) sequence: AtomicU64,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) sink: Arc<dyn UsageSink>,
    pub(super) settings: Settings,
    pub(super) tally: Arc<Tally>,
    pub(super) watchlist: Option<Arc<Watchlist>>,
    pub(super) queue: ArrayQueue<Arc<Call>>,
    pub(super) state: AtomicU8,
    pub(super) task: Mutex<Option<JoinHandle<()>>>,
    /// The flusher while no task runs: a task that is cut off puts it back, with the batches in its hands.
    pub(super) parked: Mutex<Option<Flusher>>,
    pub(super) dead_letters: Mutex<Kept>,
    /// The dead letters are not as they were last written.
    pub(super) letters_changed: AtomicBool,
    /// Dead letters that are to be offered again. Locked after `dead_letters` by whoever takes both.
    pub(super) replays: Mutex<Vec<DeadLetter>>,
    pub(super) spool: Option<SharedSpool>,
    /// What keeps the queue full, if it is; an `Overflow`.
    pub(super) overflow: AtomicU8,
    pub(super) ledger: Ledger,
    pub(super) persist_requested: AtomicU64,
    /// The last request that was answered, and whether everything was on the disk then.
    pub(super) persisted: watch::Sender<(u64, bool)>,
    /// Called on each tick, until one says that it has nothing more to tell.
    pub(super) watched: Mutex<Vec<Watch>>,
    pub(super) wake: Notify,
    pub(super) requested: AtomicU64,
    pub(super) completed: watch::Sender<u64>,
    /// A shutdown waits: what failed is offered again soon.
    pub(super) hurry: AtomicBool,
    pub(super) abandoned: AtomicBool,
    full_logged_at: AtomicU64,
    pub(super) no_runtime_logged: AtomicBool,
}

/// Brings a gauge up to date; false when what it watches is gone.
pub(super) type Watch = Box<dyn FnMut() -> bool + Send>;

pub(super) const IDLE: u8 = 0;
pub(super) const RUNNING: u8 = 1;
pub(super) const CLOSED: u8 = 2;

impl Core {
    pub(super) fn new(
        boot: u64,
        clock: Arc<dyn Clock>,
        sink: Arc<dyn UsageSink>,
        settings: Settings,
        spool: Option<(Spool, Opened)>,
    ) -> Self {
        let (spool, opened) = spool.unzip();
        let core = Self {
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
            dead_letters: Mutex::default(),
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
        core
    }

    pub(super) fn next_id(&self) -> EventId {
        EventId::new(self.boot, self.sequence.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn push(&self, call: Arc<Call>, now: Now) {
        self.tally.settled();
        if let Err(call) = self.queue.push(call) {
            self.overflow(&call, now);
        } else if self.is_closed() {
            self.discard_queue();
        }
    }

    /// Counts a call that the queue had no room for.
    pub(super) fn overflow(&self, call: &Call, now: Now) {
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
    pub(super) fn recover(&self, opened: Opened) {
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
        self.keep_letters(opened.letters);
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
    pub(super) fn is_closed(&self) -> bool {
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
        self.keep_letters(letters);
    }

    /// Counts events as dead letters and keeps the latest; those that leave for it are lost.
    pub(super) fn keep_letters(&self, letters: Vec<DeadLetter>) {
        if letters.is_empty() {
            return;
        }
        let n = letters.len() as u64;
        let excess = lock(&self.dead_letters).keep(letters, self.settings.dead_letters);
        {
            let mut stages = self.tally.stages();
            stages.letters_full += excess.len() as u64;
            // What leaves was counted when it came, or comes only now.
            stages.dead_lettered = (stages.dead_lettered + n).saturating_sub(excess.len() as u64);
        }
        self.letters_changed.store(true, Ordering::Release);
        if !excess.is_empty() {
            for letter in &excess {
                self.ledger
                    .event(&letter.event, LossReason::DeadLettersFull);
            }
            tracing::error!(
                lost = excess.len(),
                max_dead_letters = self.settings.dead_letters,
                "there are more dead letters than are kept: the oldest are lost"
            );
        }
    }

    /// Once a second at most, so that an overload does not also flood the log.
    pub(super) fn log_full_queue(&self, now: Now) {
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

    pub(super) async fn close(self: &Arc<Self>) {
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
    pub(super) fn new(core: &Arc<Core>, flusher: Flusher) -> Self {
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
