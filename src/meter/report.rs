//! Reports of calls that go on: a usage event for each interval, so that an hour of streaming is not unmetered
//! until its end.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::Ordering},
    time::Duration,
};

use super::{
    event::{CallOutcome, EventId},
    meter::{Call, Ending, Meter},
};
use crate::clock::{Now, micros};

/// The calls that may go on for long: held ones, and those that stream an answer of unknown length.
///
/// Apart from the recorder, so that a call which waits in the recorder's queue does not keep the recorder alive.
pub(super) struct Watchlist {
    every_micros: u64,
    calls: Mutex<Vec<Watched>>,
}

struct Watched {
    /// Weak, so that a call that nobody serves any more is not kept.
    call: Weak<Call>,
    due_micros: u64,
}

impl Watchlist {
    pub(super) fn new(every: Duration) -> Self {
        Self {
            every_micros: micros(every),
            calls: Mutex::new(Vec::new()),
        }
    }

    /// Watches a call; false when it was watched before.
    pub(super) fn watch(&self, call: &Arc<Call>) -> bool {
        let is_new = call.set_watched();
        if is_new {
            let watched = Watched {
                call: Arc::downgrade(call),
                due_micros: call
                    .started
                    .monotonic_micros()
                    .saturating_add(self.every_micros),
            };
            self.lock().push(watched);
        }
        is_new
    }

    /// Gives a part for each call whose interval is over, and forgets the calls that have ended.
    pub(super) fn due(&self, now: Now, mut report: impl FnMut(&Call)) {
        let reading = now.monotonic_micros();
        let mut due = Vec::new();
        self.lock().retain_mut(|watched| {
            let Some(call) = watched.call.upgrade().filter(|call| !call.is_settled()) else {
                return false;
            };
            if watched.due_micros <= reading {
                watched.due_micros = reading.saturating_add(self.every_micros);
                due.push(call);
            }
            true
        });
        // Without the lock: new calls need not wait for the reports.
        for call in due {
            report(&call);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Watched>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Watchlist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchlist").finish_non_exhaustive()
    }
}

/// What of a call's bytes its reports have told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reported {
    pub(super) sent: u64,
    pub(super) received: u64,
}

impl Call {
    /// What the call has used since its last report, as a settled call of its own; `None` when that is nothing,
    /// and for a call that has no caller or no answer yet.
    ///
    /// The background task alone makes parts, and it also makes the last event: neither can tell twice what the
    /// other has told.
    pub(super) fn part(&self, id: EventId, now: Now) -> Option<Arc<Self>> {
        let identity = self.identity()?;
        let status = match self.status.load(Ordering::Acquire) {
            0 => return None,
            status => status,
        };
        self.add_laps(now);
        let sent = self.sent_bytes.load(Ordering::Acquire);
        let new = self.tell(sent, self.received().unwrap_or(0));
        let quantities = self.quantities().report();
        if new.sent == 0 && new.received == 0 && quantities.is_empty() {
            return None;
        }
        let mut part = Self::new(id, now, self.site.clone());
        part.spent = {
            let _held = self.quantities();
            self.spent.report()
        };
        part.part_of = self.id.as_u128();
        part.method = self.method.clone();
        part.request_bytes = new.received;
        part.request_id = self.request_id.clone();
        part.trace_id = self.trace_id;
        part.route = self.route.clone();
        part.settled_part(self, identity.clone(), quantities);
        let ending = Ending {
            status,
            grpc_status: None,
            outcome: CallOutcome::Served,
            refused: None,
            latency_micros: micros(now.since(self.started.monotonic_micros())),
            response_bytes: new.sent,
        };
        part.settle(ending);
        Some(Arc::new(part))
    }
}

impl Meter {
    /// Watches a call that may go on for long, where the recorder reports such calls.
    pub(super) fn watch(&self) -> bool {
        let site = self.0.site.as_ref();
        site.and_then(|site| site.watchlist.as_ref())
            .is_some_and(|list| list.watch(&self.0))
    }
}
