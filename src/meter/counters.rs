use std::{
    fmt,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use crate::error::ErrorCode;

/// What became of every call that reached the meter, at one moment.
///
/// Two laws hold in every snapshot, at rest and under load, and [`Counters::is_balanced`] checks them:
///
/// - `opened = settled + open`
/// - `settled = queued + in_flight + acked + dead_lettered + dropped_queue_full + dropped_shutdown`
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
    /// Events taken from the queue on which the sink has not given its last word.
    pub in_flight: u64,
    /// Events that the sink accepted, or had already.
    pub acked: u64,
    /// Events that the sink rejected for good.
    pub dead_lettered: u64,
    /// Events lost because the queue was full.
    pub dropped_queue_full: u64,
    /// Events lost because the recorder ended before they were written. Some of them may have reached the
    /// sink, when it was cut off before it answered.
    pub dropped_shutdown: u64,
    /// Batches, or what remained of them, that were offered again.
    pub retries: u64,
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
        self.dropped_queue_full + self.dropped_shutdown
    }

    /// Whether both laws hold. They always do; anything else is a fault of this crate.
    #[must_use]
    pub const fn is_balanced(&self) -> bool {
        self.opened == self.settled + self.open
            && self.settled
                == self.queued
                    + self.in_flight
                    + self.acked
                    + self.dead_lettered
                    + self.dropped_queue_full
                    + self.dropped_shutdown
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

const STATUSES: usize = 1000;
pub(super) const CLASSES: usize = 6;
pub(super) const CLASS_NAMES: [&str; CLASSES] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];
const REASONS: usize = ErrorCode::ALL.len() + 1;

/// The counters themselves. The places that count are: opening, settling, the queue, the flush.
pub(super) struct Tally {
    opened: Hot,
    settled: Hot,
    pub(super) dropped_queue_full: AtomicU64,
    pub(super) taken: AtomicU64,
    pub(super) acked: AtomicU64,
    pub(super) dead_lettered: AtomicU64,
    pub(super) dropped_shutdown: AtomicU64,
    pub(super) retries: AtomicU64,
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
            dropped_queue_full: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            dead_lettered: AtomicU64::new(0),
            dropped_shutdown: AtomicU64::new(0),
            retries: AtomicU64::new(0),
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

    /// A snapshot in which both laws hold under load too: an event moves in one direction only, and the
    /// counters are read against it, so what has left a stage was counted into it.
    pub(super) fn snapshot(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        let acked = read(&self.acked);
        let dead_lettered = read(&self.dead_lettered);
        let dropped_shutdown = read(&self.dropped_shutdown);
        let taken = read(&self.taken);
        let dropped_queue_full = read(&self.dropped_queue_full);
        let settled = read(&self.settled.0);
        let opened = read(&self.opened.0);
        Counters {
            opened,
            settled,
            open: opened.saturating_sub(settled),
            queued: settled.saturating_sub(taken + dropped_queue_full),
            in_flight: taken.saturating_sub(acked + dead_lettered + dropped_shutdown),
            acked,
            dead_lettered,
            dropped_queue_full,
            dropped_shutdown,
            retries: read(&self.retries),
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
