use std::{
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::losses::LossReason;
use crate::error::ErrorCode;

/// What became of every call that reached the meter, at one moment.
///
/// Two laws hold in every snapshot, at rest and under load, and [`Counters::is_balanced`] checks them:
///
/// - `opened = settled + open`
/// - `settled + replayed = queued + in_flight + spooled + acked + dead_lettered + dropped`
///
/// A call is opened when its caller is identified. Calls that end without an identity (refused before
/// authentication, public paths) make no event; they are counted by status, so that events and
/// [`Counters::unidentified`] together are every call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Calls whose caller was identified.
    pub opened: u64,
    /// Opened calls that have ended.
    pub settled: u64,
    /// Opened calls that still run.
    pub open: u64,
    /// Events in the queue.
    pub queued: u64,
    /// Events in the hands of the recorder on which the sink has not given its last word. With a spool they are on
    /// the disk as well, unless it refuses them.
    pub in_flight: u64,
    /// Events on the disk only, to be read back when their turn comes.
    pub spooled: u64,
    /// Events that the sink accepted, or had already.
    pub acked: u64,
    /// Events that the sink rejected for good and that became dead letters. Those that gave way to newer ones count in
    /// [`Counters::dropped_dead_letters_full`] instead.
    pub dead_lettered: u64,
    /// Dead letters that were offered again; see [`Recorder::replay_dead_letters`](super::Recorder::replay_dead_letters).
    /// Each gets a second last word, so it counts on both sides of the law.
    pub replayed: u64,
    /// Events and dead letters that an earlier life of the process has left in the spool; they are counted as opened
    /// and settled too.
    pub recovered: u64,
    /// Events lost because the queue was full.
    pub dropped_queue_full: u64,
    /// Events lost because the queue was full, as the spool held as much as it may.
    pub dropped_spool_full: u64,
    /// Events lost because the queue was full, as the spool's disk was.
    pub dropped_spool_no_space: u64,
    /// Events lost because the queue was full, as the spool could not be written.
    pub dropped_spool_failed: u64,
    /// Events lost because they waited in the spool for longer than they may.
    pub dropped_expired: u64,
    /// Events lost because their records in the spool are damaged. What a record held, nobody can say: where even
    /// their number is lost, each damaged place counts as one.
    pub dropped_corrupt: u64,
    /// Events lost because the sink rejected them and there was no room for as many dead letters. See
    /// [`RecorderBuilder::dead_letters`](super::RecorderBuilder::dead_letters).
    pub dropped_dead_letters_full: u64,
    /// Events lost because the recorder ended before they were written. Some of them may have reached the
    /// sink, when it was cut off before it answered.
    pub dropped_shutdown: u64,
    /// Batches, or what remained of them, that were offered again.
    pub retries: u64,
    /// Times that the spool did not take what was appended.
    pub spool_failures: u64,
    /// Bytes of the spool's segments.
    pub spool_bytes: u64,
    /// Events that report a call which goes on; they are counted as opened and settled too. See
    /// [`RecorderBuilder::report_every`](super::RecorderBuilder::report_every).
    pub parts: u64,
    /// Uses of [`Meter::add`](super::Meter::add) that were ignored: the name was too long or not plain text, or
    /// the call had named too many.
    pub quantities_ignored: u64,
    unidentified: Vec<u64>,
}

impl Counters {
    /// Calls that ended with this status and without an identity; 499 where the client left before the
    /// answer, 500 after a panic. Zero for a number that is no status.
    #[must_use]
    pub fn unidentified(&self, status: u16) -> u64 {
        self.unidentified
            .get(usize::from(status))
            .copied()
            .unwrap_or(0)
    }

    /// Calls that ended without an identity.
    #[must_use]
    pub fn unidentified_total(&self) -> u64 {
        self.unidentified.iter().sum()
    }

    /// Events lost, whatever the reason.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped_queue_full
            + self.dropped_spool_full
            + self.dropped_spool_no_space
            + self.dropped_spool_failed
            + self.dropped_expired
            + self.dropped_corrupt
            + self.dropped_dead_letters_full
            + self.dropped_shutdown
    }

    /// Events lost for one reason.
    #[must_use]
    pub const fn dropped_for(&self, reason: LossReason) -> u64 {
        match reason {
            LossReason::QueueFull => self.dropped_queue_full,
            LossReason::SpoolFull => self.dropped_spool_full,
            LossReason::SpoolNoSpace => self.dropped_spool_no_space,
            LossReason::SpoolFailed => self.dropped_spool_failed,
            LossReason::Expired => self.dropped_expired,
            LossReason::Corrupt => self.dropped_corrupt,
            LossReason::DeadLettersFull => self.dropped_dead_letters_full,
            LossReason::Shutdown => self.dropped_shutdown,
        }
    }

    /// Whether both laws hold. They always do; anything else is a fault of this crate.
    #[must_use]
    pub const fn is_balanced(&self) -> bool {
        self.opened == self.settled + self.open
            && self.settled + self.replayed
                == self.queued
                    + self.in_flight
                    + self.spooled
                    + self.acked
                    + self.dead_lettered
                    + self.dropped()
    }
}

/// A counter on a cache line of its own, for those that every call touches.
#[derive(Default)]
#[repr(align(64))]
pub(super) struct Hot(AtomicU64);

impl Hot {
    pub(super) fn increment(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    fn decrement(&self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// What keeps the queue full: a sink, or a spool that does not take what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overflow {
    Queue,
    SpoolFull,
    SpoolNoSpace,
    SpoolFailed,
}

impl Overflow {
    pub(super) const fn from_u8(number: u8) -> Self {
        match number {
            1 => Self::SpoolFull,
            2 => Self::SpoolNoSpace,
            3 => Self::SpoolFailed,
            _ => Self::Queue,
        }
    }

    pub(super) const fn reason(self) -> LossReason {
        match self {
            Self::Queue => LossReason::QueueFull,
            Self::SpoolFull => LossReason::SpoolFull,
            Self::SpoolNoSpace => LossReason::SpoolNoSpace,
            Self::SpoolFailed => LossReason::SpoolFailed,
        }
    }
}

/// What became of the events behind the queue. Under one lock, as an event may go to and fro between them: no call
/// takes it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stages {
    /// Taken from the queue, or found on the disk at the start.
    pub(super) taken: u64,
    pub(super) spooled: u64,
    pub(super) acked: u64,
    pub(super) dead_lettered: u64,
    pub(super) replayed: u64,
    pub(super) recovered: u64,
    pub(super) expired: u64,
    pub(super) corrupt: u64,
    pub(super) letters_full: u64,
    pub(super) shutdown: u64,
}

const STATUSES: usize = 1000;
pub(super) const CLASSES: usize = 6;
pub(super) const CLASS_NAMES: [&str; CLASSES] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];
const REASONS: usize = ErrorCode::ALL.len() + 1;

/// The counters themselves. The places that count are: opening, settling, the queue, the flush.
pub(super) struct Tally {
    opened: Hot,
    settled: Hot,
    /// Those that the queue had no room for, by what kept it full.
    overflowed: [AtomicU64; 4],
    stages: Mutex<Stages>,
    pub(super) retries: AtomicU64,
    pub(super) spool_failures: AtomicU64,
    pub(super) spool_bytes: AtomicU64,
    parts: AtomicU64,
    quantities_ignored: AtomicU64,
    quantities_logged: AtomicBool,
    by_status: Box<[AtomicU64]>,
    by_reason: Box<[AtomicU64]>,
}

impl Tally {
    pub(super) fn new() -> Self {
        let zeros = |n| (0..n).map(|_| AtomicU64::new(0)).collect();
        Self {
            opened: Hot::default(),
            settled: Hot::default(),
            overflowed: Default::default(),
            stages: Mutex::default(),
            retries: AtomicU64::new(0),
            spool_failures: AtomicU64::new(0),
            spool_bytes: AtomicU64::new(0),
            parts: AtomicU64::new(0),
            quantities_ignored: AtomicU64::new(0),
            quantities_logged: AtomicBool::new(false),
            by_status: zeros(STATUSES),
            by_reason: zeros(REASONS * CLASSES),
        }
    }

    pub(super) fn opened(&self) {
        self.opened.increment();
    }

    /// Takes an opening back: the call had ended before its caller was identified.
    pub(super) fn not_opened(&self) {
        self.opened.decrement();
    }

    pub(super) fn settled(&self) {
        self.settled.increment();
    }

    pub(super) fn part(&self) {
        self.parts.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn unidentified(&self, status: u16, reason: Option<ErrorCode>) {
        if let Some(count) = self.by_status.get(usize::from(status)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let reason = reason
            .and_then(|code| ErrorCode::ALL.iter().position(|known| *known == code))
            .map_or(0, |place| place + 1);
        if let Some(count) = self.by_reason.get(reason * CLASSES + class(status)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn quantity_ignored(&self) {
        self.quantities_ignored.fetch_add(1, Ordering::Relaxed);
        if !self.quantities_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                max_names = super::MAX_QUANTITIES,
                max_name_bytes = super::MAX_QUANTITY_NAME_BYTES,
                "a quantity was ignored: its name is too long or not plain text, or the call names too many; \
                 further ones are counted in tollgate_usage_quantities_ignored_total"
            );
        }
    }

    /// Calls without identity by reason and status class, in a fixed order, for the metrics.
    pub(super) fn unidentified_by_reason(
        &self,
    ) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        self.by_reason.iter().enumerate().map(|(place, count)| {
            let reason = (place / CLASSES)
                .checked_sub(1)
                .and_then(|place| ErrorCode::ALL.get(place))
                .map_or("none", |code| code.as_str());
            let class = CLASS_NAMES[place % CLASSES];
            (reason, class, count.load(Ordering::Relaxed))
        })
    }

    pub(super) fn stages(&self) -> MutexGuard<'_, Stages> {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn overflowed(&self, overflow: Overflow) {
        let place = overflow as usize;
        if let Some(count) = self.overflowed.get(place) {
            count.fetch_add(1, Ordering::Release);
        }
    }

    /// Events of an earlier life, which never were in this one's queue: `spooled` on the disk, `dead` letters, which
    /// whoever keeps them counts as such, and `corrupt` ones.
    pub(super) fn recovered(&self, spooled: u64, dead: u64, corrupt: u64) {
        let n = spooled + dead + corrupt;
        self.opened.0.fetch_add(n, Ordering::Release);
        self.settled.0.fetch_add(n, Ordering::Release);
        let mut stages = self.stages();
        stages.taken += n;
        stages.recovered += spooled + dead;
        stages.spooled += spooled;
        stages.corrupt += corrupt;
    }

    /// A snapshot in which both laws hold under load too: an event moves in one direction only until it is taken from
    /// the queue, and the counters are read against it, so what has left a stage was counted into it.
    pub(super) fn snapshot(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        let stages = *self.stages();
        let [queue, full, no_space, failed] = &self.overflowed;
        let [queue, full, no_space, failed] =
            [read(queue), read(full), read(no_space), read(failed)];
        let settled = read(&self.settled.0);
        let opened = read(&self.opened.0);
        let last_words = stages.acked
            + stages.dead_lettered
            + stages.expired
            + stages.corrupt
            + stages.letters_full
            + stages.shutdown;
        Counters {
            opened,
            settled,
            open: opened.saturating_sub(settled),
            queued: settled.saturating_sub(stages.taken + queue + full + no_space + failed),
            in_flight: (stages.taken + stages.replayed).saturating_sub(last_words + stages.spooled),
            spooled: stages.spooled,
            acked: stages.acked,
            dead_lettered: stages.dead_lettered,
            replayed: stages.replayed,
            recovered: stages.recovered,
            dropped_queue_full: queue,
            dropped_spool_full: full,
            dropped_spool_no_space: no_space,
            dropped_spool_failed: failed,
            dropped_expired: stages.expired,
            dropped_corrupt: stages.corrupt,
            dropped_dead_letters_full: stages.letters_full,
            dropped_shutdown: stages.shutdown,
            retries: read(&self.retries),
            spool_failures: read(&self.spool_failures),
            spool_bytes: read(&self.spool_bytes),
            parts: read(&self.parts),
            quantities_ignored: read(&self.quantities_ignored),
            unidentified: self.by_status.iter().map(read).collect(),
        }
    }
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tally").finish_non_exhaustive()
    }
}

pub(super) const fn class(status: u16) -> usize {
    match status {
        100..=599 => (status / 100) as usize,
        _ => 0,
    }
}
