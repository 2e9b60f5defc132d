use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};

use http::Method;
use smallvec::SmallVec;

use super::{
    cost::Spent,
    counters::Tally,
    event::{CallOutcome, EventId},
    rates::CostRates,
};
use crate::{
    clock::{Clock, Now},
    error::ErrorCode,
    identity::Identity,
    route::RouteTemplate,
};

/// The most quantities that one call may name; further names are ignored, counted and logged once.
pub const MAX_QUANTITIES: usize = 16;

/// The longest name of a quantity, in bytes; a longer one is ignored, counted and logged once.
pub const MAX_QUANTITY_NAME_BYTES: usize = 64;

/// The handle through which a handler says what its call used, also while the response streams.
///
/// [`MeterLayer`](super::MeterLayer) puts it into the request's extensions; under the `axum` feature it is an
/// extractor. Cloning gives a second handle to the same call and does not allocate. What is said after the
/// call was settled (its response body ended or was dropped) is ignored.
#[derive(Clone)]
pub struct Meter(pub(super) Arc<Call>);

/// Everything that is known of one call: the one allocation that metering adds to it.
pub(crate) struct Call {
    pub(super) id: EventId,
    pub(super) started: Now,
    pub(super) site: Option<Arc<Site>>,
    pub(super) method: Method,
    pub(super) request_bytes: u64,
    /// Copied, because a header value would keep the connection's read buffer alive while the event waits.
    pub(super) request_id: SmallVec<[u8; 36]>,
    /// Zero when the call belongs to no trace.
    pub(super) trace_id: u128,
    pub(super) route: OnceLock<RouteTemplate>,
    identity: OnceLock<Identity>,
    quantities: Mutex<Quantities>,
    pub(super) spent: Spent,
    state: AtomicU8,
    refused: OnceLock<ErrorCode>,
    ending: OnceLock<Ending>,
}

pub(super) type Quantities = SmallVec<[(Arc<str>, u64); 2]>;

/// What all calls of one layer share.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) api: Arc<str>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) rates: Option<Arc<CostRates>>,
    pub(super) tally: Arc<Tally>,
}

impl Site {
    pub(super) fn measures_handler(&self) -> bool {
        self.rates
            .as_ref()
            .is_some_and(|rates| rates.measures_handler())
    }
}

/// How a call ended; set once, when it is settled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    pub(super) status: u16,
    pub(super) outcome: CallOutcome,
    pub(super) refused: Option<ErrorCode>,
    pub(super) latency_micros: u64,
    pub(super) response_bytes: u64,
}

const IDENTIFIED: u8 = 1;
const SETTLED: u8 = 2;
const OVERAGE: u8 = 4;
const DEPRECATED: u8 = 8;

impl Call {
    pub(super) fn new(id: EventId, started: Now, site: Option<Arc<Site>>) -> Self {
        Self {
            id,
            started,
            site,
            method: Method::GET,
            request_bytes: 0,
            request_id: SmallVec::new(),
            trace_id: 0,
            route: OnceLock::new(),
            identity: OnceLock::new(),
            quantities: Mutex::new(Quantities::new()),
            spent: Spent::default(),
            state: AtomicU8::new(0),
            refused: OnceLock::new(),
            ending: OnceLock::new(),
        }
    }

    fn has(&self, flag: u8) -> bool {
        self.state.load(Ordering::Acquire) & flag != 0
    }

    pub(super) fn identity(&self) -> Option<&Identity> {
        self.identity.get()
    }

    pub(super) fn is_settled(&self) -> bool {
        self.has(SETTLED)
    }

    pub(super) fn is_overage(&self) -> bool {
        self.has(OVERAGE)
    }

    pub(super) fn is_deprecated(&self) -> bool {
        self.has(DEPRECATED)
    }

    pub(super) fn refused(&self) -> Option<ErrorCode> {
        self.refused.get().copied()
    }

    pub(super) fn ending(&self) -> Option<Ending> {
        self.ending.get().copied()
    }

    /// Locks the quantities. Whoever holds the lock and finds the call not settled is heard in its event,
    /// because the event is made under the same lock later.
    pub(super) fn quantities(&self) -> MutexGuard<'_, Quantities> {
        self.quantities
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the call; true when its caller was identified before, so that it makes an event.
    pub(super) fn settle(&self, ending: Ending) -> bool {
        let _ = self.ending.set(ending);
        self.state.fetch_or(SETTLED, Ordering::AcqRel) & IDENTIFIED != 0
    }
}

impl Meter {
    /// A meter for one call that started at `started`, outside of any recorder: what it hears goes nowhere.
    /// For services that take a meter and are tested without the layer.
    #[must_use]
    pub fn new(id: EventId, started: Now) -> Self {
        Self(Arc::new(Call::new(id, started, None)))
    }

    /// A meter for a call that no recorder hears of, where a limit alone asks what the call used.
    pub(crate) fn detached(started: Now) -> Self {
        Self::new(EventId::new(0, 0), started)
    }

    /// Adds to a named quantity, such as `tokens`; the sum stays at `u64::MAX` when it would overflow.
    ///
    /// A call may name up to [`MAX_QUANTITIES`] quantities by names of 1 to [`MAX_QUANTITY_NAME_BYTES`] bytes
    /// without control characters; what goes beyond is ignored and counted. Allocates for the first use of a
    /// name in the call only.
    pub fn add(&self, name: &str, n: u64) {
        let mut quantities = self.0.quantities();
        if self.0.has(SETTLED) {
            return;
        }
        if let Some((_, sum)) = quantities.iter_mut().find(|(known, _)| **known == *name) {
            *sum = sum.saturating_add(n);
        } else if quantities.len() < MAX_QUANTITIES && is_quantity_name(name) {
            quantities.push((Arc::from(name), n));
        } else if let Some(site) = &self.0.site {
            site.tally.quantity_ignored();
        }
    }

    /// The sum of a named quantity so far, zero when it was never named.
    #[must_use]
    pub fn quantity(&self, name: &str) -> u64 {
        self.named_quantity(name).unwrap_or(0)
    }

    /// The sum of a quantity that was named, be it with zero.
    pub(crate) fn named_quantity(&self, name: &str) -> Option<u64> {
        let quantities = self.0.quantities();
        quantities
            .iter()
            .find(|(known, _)| **known == *name)
            .map(|(_, sum)| *sum)
    }

    /// When the call reached the meter: the reading of the clock that every layer of the call shares.
    #[must_use]
    pub fn started(&self) -> Now {
        self.0.started
    }

    /// The id of the event that the call will make.
    #[must_use]
    pub fn event_id(&self) -> EventId {
        self.0.id
    }

    /// Says who calls; the first word stands. From here on the call makes a usage event when it ends.
    ///
    /// `AuthLayer` does it; whoever has authentication of their own does it instead.
    pub fn identify(&self, identity: &Identity) {
        let call = &*self.0;
        if call.has(SETTLED) || call.identity.set(identity.clone()).is_err() {
            return;
        }
        let Some(site) = &call.site else { return };
        // Counted before the state says so: whoever settles the call finds it opened.
        site.tally.opened();
        if call.state.fetch_or(IDENTIFIED, Ordering::AcqRel) & SETTLED != 0 {
            site.tally.not_opened();
        }
    }

    /// Says who calls where nobody has: for layers that find an identity which somebody else has put into the
    /// request.
    pub(crate) fn identify_once(&self, identity: &Identity) {
        if self.0.identity().is_none() {
            self.identify(identity);
        }
    }

    /// Who calls, once known.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.0.identity()
    }

    /// Names the route template where the layer's hook could not; the first word stands.
    ///
    /// For services that route by themselves. Never a path as it was called: ids in it would make as many
    /// routes.
    pub fn set_route(&self, route: impl Into<RouteTemplate>) {
        let call = &*self.0;
        if !call.has(SETTLED)
            && call.route.set(route.into()).is_ok()
            && let Some(route) = call.route.get()
        {
            crate::span::tell_route(&call.method, route);
        }
    }

    /// Marks the call as overage: above a limit that prices it.
    pub fn mark_overage(&self) {
        self.mark(OVERAGE);
    }

    /// Marks the call as one to a deprecated version.
    pub fn mark_deprecated(&self) {
        self.mark(DEPRECATED);
    }

    /// Says that the call is refused and why; the first word stands.
    ///
    /// Needed only where the refusal is not a [`Problem`](crate::error::Problem) in the response's
    /// extensions, which the layer finds by itself.
    pub fn refused(&self, code: ErrorCode) {
        if !self.0.has(SETTLED) {
            let _ = self.0.refused.set(code);
        }
    }

    fn mark(&self, flag: u8) {
        if !self.0.has(SETTLED) {
            self.0.state.fetch_or(flag, Ordering::AcqRel);
        }
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter")
            .field("id", &self.0.id)
            .finish_non_exhaustive()
    }
}

fn is_quantity_name(name: &str) -> bool {
    (1..=MAX_QUANTITY_NAME_BYTES).contains(&name.len()) && !name.chars().any(super::forges_a_line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter() -> Meter {
        Meter::new(EventId::new(1, 2), Now::default())
    }

    #[test]
    fn a_sum_saturates() {
        let meter = meter();
        meter.add("tokens", u64::MAX);
        meter.add("tokens", 5);
        assert_eq!(meter.quantity("tokens"), u64::MAX);
    }

    #[test]
    fn names_are_bounded_in_number_and_length() {
        let meter = meter();
        meter.add("", 1);
        meter.add(&"x".repeat(MAX_QUANTITY_NAME_BYTES + 1), 1);
        meter.add("a\nb", 1);
        assert!(meter.0.quantities().is_empty());
        for n in 0..2 * MAX_QUANTITIES {
            meter.add(&format!("name {n}"), 1);
        }
        assert_eq!(meter.0.quantities().len(), MAX_QUANTITIES);
        meter.add("name 0", 1);
        assert_eq!(meter.quantity("name 0"), 2);
        assert_eq!(meter.quantity("name 30"), 0);
    }

    #[test]
    fn nothing_is_heard_after_settlement() {
        let meter = meter();
        meter.add("tokens", 1);
        let ending = Ending {
            status: 200,
            outcome: CallOutcome::Served,
            refused: None,
            latency_micros: 0,
            response_bytes: 0,
        };
        assert!(!meter.0.settle(ending));
        meter.add("tokens", 1);
        meter.mark_overage();
        meter.refused(ErrorCode::Sunset);
        meter.set_route("/late");
        assert_eq!(meter.quantity("tokens"), 1);
        assert!(!meter.0.is_overage());
        assert!(meter.0.refused().is_none() && meter.0.route.get().is_none());
    }

    /// The recorder documents its memory by this figure.
    #[test]
    fn a_call_stays_small() {
        assert!(size_of::<Call>() <= 400, "{}", size_of::<Call>());
    }
}
