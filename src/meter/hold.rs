//! Calls that outlive their answer.

use std::{
    fmt,
    sync::{Arc, PoisonError},
};

use super::{
    event::CallOutcome,
    layer::Shared,
    meter::{Call, Ending, Meter},
    report::Reported,
};
use crate::{
    clock::{Clock, Now, micros},
    error::ErrorCode,
    route::UNMATCHED,
};

/// Keeps a call open after its answer has ended: an upgraded connection, or work that goes on in a task.
///
/// Made by [`Meter::hold`]. While one lives, the call is not settled: its usage event is not made, what it
/// reserved and charged stays so, and its concurrency slots are taken. When the last one is dropped, all of that
/// ends, once. A connection whose upgrade never completes ends it too, as whoever waits for it drops the hold.
///
/// Quantities that are added through a hold count whoever leaves, as the holder speaks for the connection.
///
/// The task that owns the connection should own the hold:
///
/// ```
/// use tollgate::meter::Meter;
/// # use tollgate::{clock::Now, meter::EventId};
///
/// async fn serve_connection(meter: Meter) {
///     let hold = meter.hold();
///     tokio::spawn(async move {
///         // For each message of the connection:
///         hold.add("messages", 1);
///         // The call ends here, or wherever the task is cut off.
///     });
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let meter = Meter::new(EventId::new(0, 0), Now::default());
/// # serve_connection(meter.clone()).await;
/// # while meter.quantity("messages") == 0 { tokio::task::yield_now().await }
/// # }
/// ```
#[must_use = "dropping a hold lets the call end"]
pub struct MeterHold {
    meter: Meter,
    /// The number of this hold's stopwatch within the call.
    number: u32,
    is_live: bool,
}

/// What a call has that goes on for long: what its holds share, and what its reports have told.
#[derive(Default)]
pub(super) struct Holds {
    n_live: u32,
    n_made: u32,
    watches: Vec<Stopwatch>,
    pub(super) sent_bytes: u64,
    pub(super) reported: Reported,
    panicked: bool,
    /// What ends when the last hold does: dropped, in this order, before the call is settled.
    kept: Vec<Box<dyn Send>>,
    verdict: Option<(Verdict, Arc<Shared>)>,
}

/// Adds its age to a quantity.
struct Stopwatch {
    number: u32,
    name: Arc<str>,
    since: Now,
    n_millis: u64,
}

impl Stopwatch {
    /// The whole milliseconds since it was last asked.
    fn lap(&mut self, now: Now) -> u64 {
        let age = micros(now.since(self.since.monotonic_micros())) / 1_000;
        let lap = age.saturating_sub(self.n_millis);
        self.n_millis = self.n_millis.max(age);
        lap
    }
}

/// How a call ended.
pub(super) struct Verdict {
    pub(super) status: u16,
    pub(super) outcome: CallOutcome,
    pub(super) grpc_status: Option<u8>,
    pub(super) reason: Option<ErrorCode>,
    pub(super) response_bytes: u64,
}

impl Verdict {
    /// Settles the call, or leaves that to the last of its holds.
    pub(super) fn reach(self, call: &Arc<Call>, shared: &Arc<Shared>) {
        if call.was_held() {
            let mut holds = call.holds.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(holds) = holds.as_mut().filter(|holds| holds.n_live > 0) {
                holds.verdict = Some((self, Arc::clone(shared)));
                return;
            }
        }
        self.settle(call, shared);
    }

    fn settle(mut self, call: &Arc<Call>, shared: &Shared) {
        if call.was_held() {
            let holds = call.holds.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(holds) = &*holds {
                self.response_bytes = self.response_bytes.saturating_add(holds.sent_bytes);
                if holds.panicked {
                    self.outcome = CallOutcome::Panicked;
                }
            }
        }
        let now = shared.clock.now();
        let latency = now.since(call.started.monotonic_micros());
        let route = call.route.get().map_or(UNMATCHED, |route| route.as_str());
        shared
            .stats
            .ended(route, self.status, self.outcome, self.reason, latency);
        let identified = call.settle(Ending {
            status: self.status,
            outcome: self.outcome,
            grpc_status: self.grpc_status,
            refused: self.reason.filter(|_| self.outcome == CallOutcome::Refused),
            latency_micros: micros(latency),
            response_bytes: self.response_bytes,
        });
        if identified {
            shared.recorder.record(Arc::clone(call), now);
        } else {
            shared.site.tally.unidentified(self.status, self.reason);
        }
    }
}

impl Call {
    fn with_holds<T>(&self, read: impl FnOnce(&mut Holds) -> T) -> Option<T> {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        holds.as_deref_mut().map(read)
    }

    /// Notes that a report tells all bytes so far, and gives those that none has told before.
    pub(super) fn tell(&self, sent_by_body: u64, received: u64) -> Reported {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        let holds = holds.get_or_insert_default();
        let sent = sent_by_body.saturating_add(holds.sent_bytes);
        let told = std::mem::replace(&mut holds.reported, Reported { sent, received });
        Reported {
            sent: sent.saturating_sub(told.sent),
            received: received.saturating_sub(told.received),
        }
    }

    /// What the call's reports have told.
    pub(super) fn reported(&self) -> Reported {
        self.with_holds(|holds| holds.reported).unwrap_or_default()
    }

    /// Adds the time that the stopwatches have counted since they were last asked.
    pub(super) fn add_laps(&self, now: Now) {
        let laps = self.with_holds(|holds| {
            let watches = holds.watches.iter_mut();
            let laps = watches.map(|watch| (Arc::clone(&watch.name), watch.lap(now)));
            laps.collect::<Vec<_>>()
        });
        let mut quantities = self.quantities();
        for (name, n) in laps.into_iter().flatten() {
            let _ = quantities.add_delivered(&name, n);
        }
    }
}

impl Meter {
    /// Keeps the call open until the hold is dropped; see [`MeterHold`].
    ///
    /// Take it before the answer is given: a call that has ended is not opened again, and the hold then holds
    /// nothing, which [`MeterHold::is_live`] tells.
    pub fn hold(&self) -> MeterHold {
        let mut holds = self.0.holds.lock().unwrap_or_else(PoisonError::into_inner);
        let is_live = !self.0.is_settled();
        let mut number = 0;
        if is_live {
            let holds = holds.get_or_insert_default();
            holds.n_live += 1;
            holds.n_made += 1;
            number = holds.n_made;
            self.0.set_held();
        }
        drop(holds);
        self.watch();
        MeterHold {
            meter: self.clone(),
            number,
            is_live,
        }
    }

    /// Whether somebody holds the call open.
    pub(crate) fn is_held(&self) -> bool {
        self.0.was_held() && self.0.with_holds(|holds| holds.n_live > 0) == Some(true)
    }

    /// Drops something when the last hold is dropped; at once when there is none.
    pub(crate) fn keep_while_held(&self, thing: Box<dyn Send>) {
        let mut thing = Some(thing);
        self.0.with_holds(|holds| {
            if holds.n_live > 0 {
                holds.kept.extend(thing.take());
            }
        });
        drop(thing);
    }
}

impl MeterHold {
    /// Adds to a named quantity of the call, as [`Meter::add`] does. It counts whoever leaves.
    pub fn add(&self, name: &str, n: u64) {
        self.meter.add_delivered(name, n);
    }

    /// Adds bytes that were sent over an upgraded connection to the event's `response_bytes`.
    pub fn add_sent_bytes(&self, n_bytes: u64) {
        self.meter.0.with_holds(|holds| {
            holds.sent_bytes = holds.sent_bytes.saturating_add(n_bytes);
        });
    }

    /// Adds bytes that came over an upgraded connection to the event's `request_bytes`.
    pub fn add_received_bytes(&self, n_bytes: u64) {
        self.meter.receive();
        self.meter.received(n_bytes);
    }

    /// Adds the time from now to the end of the hold to a quantity, in whole milliseconds; the name is bound as
    /// in [`Meter::add`]. Several on one hold count each by itself. Counts nothing where no
    /// [`MeterLayer`](super::MeterLayer) gives the time.
    pub fn count_millis(self, name: impl Into<Arc<str>>) -> Self {
        if let Some(clock) = self.clock() {
            let watch = Stopwatch {
                number: self.number,
                name: name.into(),
                since: clock.now(),
                n_millis: 0,
            };
            self.meter.0.with_holds(|holds| holds.watches.push(watch));
        }
        self
    }

    /// Whether the hold keeps a call open: false when the call had ended before.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.is_live
    }

    /// The call's meter.
    #[must_use]
    pub const fn meter(&self) -> &Meter {
        &self.meter
    }

    fn clock(&self) -> Option<&Arc<dyn Clock>> {
        let site = self.meter.0.site.as_ref();
        site.filter(|_| self.is_live).map(|site| &site.clock)
    }
}

impl Drop for MeterHold {
    fn drop(&mut self) {
        if !self.is_live {
            return;
        }
        let call = &self.meter.0;
        if let Some(clock) = self.clock() {
            call.add_laps(clock.now());
        }
        let ended = call.with_holds(|holds| {
            holds.watches.retain(|watch| watch.number != self.number);
            holds.panicked |= std::thread::panicking();
            holds.n_live = holds.n_live.saturating_sub(1);
            if holds.n_live > 0 {
                return (Vec::new(), None);
            }
            (std::mem::take(&mut holds.kept), holds.verdict.take())
        });
        let Some((kept, verdict)) = ended else { return };
        // A charge is settled by what the meter says, so before the meter hears no more.
        drop(kept);
        if let Some((verdict, shared)) = verdict {
            verdict.reach(call, &shared);
        }
    }
}

impl fmt::Debug for MeterHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeterHold")
            .field("meter", &self.meter)
            .field("is_live", &self.is_live)
            .finish()
    }
}

impl fmt::Debug for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holds")
            .field("n_live", &self.n_live)
            .finish_non_exhaustive()
    }
}
