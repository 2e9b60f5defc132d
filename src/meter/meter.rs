use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
};

use http::Method;
use smallvec::SmallVec;

use super::{
    abort::{AbortPolicy, Billed},
    cost::Spent,
    counters::Tally,
    country::{Countries, Country},
    event::{CallOutcome, EventId},
    hold::Holds,
    quantities::Quantities,
    rates::CostRates,
    report::Watchlist,
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
    /// What the request's head says, until the bytes themselves are counted.
    pub(super) request_bytes: u64,
    received_bytes: AtomicU64,
    /// Bytes of the answer so far; kept up to date for a watched call only.
    pub(super) sent_bytes: AtomicU64,
    /// Zero until the call is answered; set for a watched call only.
    pub(super) status: AtomicU16,
    /// The id of the call that this is a part of; zero for a call itself.
    pub(super) part_of: u128,
    /// Copied, because a header value would keep the connection's read buffer alive while the event waits.
    pub(super) request_id: SmallVec<[u8; 36]>,
    /// Zero when the call belongs to no trace.
    pub(super) trace_id: u128,
    pub(super) route: OnceLock<RouteTemplate>,
    identity: OnceLock<Identity>,
    quantities: Mutex<Quantities>,
    pub(super) spent: Spent,
    state: AtomicU16,
    /// Two letters; zero when the country is not known.
    country: AtomicU16,
    refused: OnceLock<ErrorCode>,
    ending: OnceLock<Ending>,
    /// Nothing, until somebody holds the call open.
    pub(super) holds: Mutex<Option<Box<Holds>>>,
}

/// What all calls of one layer share.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) api: Arc<str>,
    pub(super) rates: Option<Arc<CostRates>>,
    pub(super) tally: Arc<Tally>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) on_abort: AbortPolicy,
    pub(super) watchlist: Option<Arc<Watchlist>>,
    pub(super) countries: Option<Countries>,
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
    pub(super) grpc_status: Option<u8>,
    pub(super) outcome: CallOutcome,
    pub(super) refused: Option<ErrorCode>,
    pub(super) latency_micros: u64,
    pub(super) response_bytes: u64,
}

const IDENTIFIED: u16 = 1;
const SETTLED: u16 = 2;
const OVERAGE: u16 = 4;
const DEPRECATED: u16 = 8;
/// Something was added since the last frame was handed over.
const UNDELIVERED: u16 = 16;
/// Somebody holds the call open, or did.
const HELD: u16 = 32;
/// The bytes of the request are counted as they are read.
const RECEIVING: u16 = 64;
/// The client left: what was not handed over does not count.
const LEFT: u16 = 128;
/// The client left before anything was handed over that it would have to pay for.
const WAIVED: u16 = 256;
/// The call reports while it goes on.
const WATCHED: u16 = 2048;
const ON_ABORT_PRODUCED: u16 = 512;
const ON_ABORT_NOTHING_BEFORE_FIRST_BYTE: u16 = 1024;

/// The policy as bits of the state; none for the default.
const fn policy_bits(policy: AbortPolicy) -> u16 {
    match policy {
        AbortPolicy::Delivered => 0,
        AbortPolicy::NothingBeforeFirstByte => ON_ABORT_NOTHING_BEFORE_FIRST_BYTE,
        AbortPolicy::Produced => ON_ABORT_PRODUCED,
    }
}

impl Call {
    pub(super) fn new(id: EventId, started: Now, site: Option<Arc<Site>>) -> Self {
        Self {
            id,
            started,
            state: AtomicU16::new(site.as_ref().map_or(0, |site| policy_bits(site.on_abort))),
            site,
            method: Method::GET,
            request_bytes: 0,
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            status: AtomicU16::new(0),
            part_of: 0,
            request_id: SmallVec::new(),
            trace_id: 0,
            route: OnceLock::new(),
            identity: OnceLock::new(),
            quantities: Mutex::new(Quantities::default()),
            spent: Spent::default(),
            country: AtomicU16::new(0),
            refused: OnceLock::new(),
            ending: OnceLock::new(),
            holds: Mutex::new(None),
        }
    }

    fn has(&self, flag: u16) -> bool {
        self.state.load(Ordering::Acquire) & flag != 0
    }

    pub(super) fn is_settled(&self) -> bool {
        self.has(SETTLED)
    }

    pub(super) fn was_held(&self) -> bool {
        self.has(HELD)
    }

    pub(super) fn set_held(&self) {
        self.state.fetch_or(HELD, Ordering::AcqRel);
    }

    /// True when nobody has said so before.
    pub(super) fn set_watched(&self) -> bool {
        self.state.fetch_or(WATCHED, Ordering::AcqRel) & WATCHED == 0
    }

    pub(super) fn is_watched(&self) -> bool {
        self.has(WATCHED)
    }

    /// Makes this a part of another call, before it is settled.
    pub(super) fn settled_part(
        &mut self,
        whole: &Self,
        identity: Identity,
        quantities: Quantities,
    ) {
        let _ = self.identity.set(identity);
        self.quantities = Mutex::new(quantities);
        *self.country.get_mut() = whole.country.load(Ordering::Acquire);
        let marks = whole.state.load(Ordering::Acquire) & (OVERAGE | DEPRECATED);
        self.state.fetch_or(marks | IDENTIFIED, Ordering::AcqRel);
    }

    pub(super) fn on_abort(&self) -> AbortPolicy {
        let state = self.state.load(Ordering::Acquire);
        if state & ON_ABORT_PRODUCED != 0 {
            AbortPolicy::Produced
        } else if state & ON_ABORT_NOTHING_BEFORE_FIRST_BYTE != 0 {
            AbortPolicy::NothingBeforeFirstByte
        } else {
            AbortPolicy::Delivered
        }
    }

    /// A frame of the answer was handed over, and with it what was added before.
    #[inline]
    pub(super) fn handed_over(&self) {
        if self.has(UNDELIVERED) {
            let mut quantities = self.quantities();
            self.state.fetch_and(!UNDELIVERED, Ordering::AcqRel);
            quantities.deliver();
        }
    }

    /// The client left. Said before what the call holds is dropped, so that a charge is settled by the same
    /// amounts as the event.
    pub(super) fn left(&self, billed: Billed) {
        let flags = match billed {
            Billed::All => return,
            Billed::Delivered => LEFT,
            Billed::Nothing => LEFT | WAIVED,
        };
        self.state.fetch_or(flags, Ordering::AcqRel);
    }

    /// What counts of the call's quantities, as far as is known.
    pub(super) fn billed(&self) -> Billed {
        let state = self.state.load(Ordering::Acquire);
        if state & WAIVED != 0 {
            Billed::Nothing
        } else if state & LEFT != 0 {
            Billed::Delivered
        } else {
            Billed::All
        }
    }

    /// Bytes of the request: as they were read, where they are counted.
    pub(super) fn request_bytes(&self) -> u64 {
        self.received().unwrap_or(self.request_bytes)
    }

    pub(super) fn received(&self) -> Option<u64> {
        self.has(RECEIVING)
            .then(|| self.received_bytes.load(Ordering::Acquire))
    }

    pub(super) fn identity(&self) -> Option<&Identity> {
        self.identity.get()
    }

    pub(super) fn country(&self) -> Option<Country> {
        Country::from_bits(self.country.load(Ordering::Acquire))
    }

    pub(super) fn set_country(&self, country: Country) {
        if !self.has(SETTLED) {
            self.country.store(country.to_bits(), Ordering::Release);
        }
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

    /// Whether a recorder hears of the call.
    pub(crate) fn reports(&self) -> bool {
        self.0.site.is_some()
    }

    /// Adds to a named quantity, such as `tokens`; the sum stays at `u64::MAX` when it would overflow.
    ///
    /// Of a call whose client leaves before the end, it counts as the [`AbortPolicy`] says: by default when a
    /// frame of the answer was handed over after it.
    ///
    /// A call may name up to [`MAX_QUANTITIES`] quantities by names of 1 to [`MAX_QUANTITY_NAME_BYTES`] bytes
    /// without control characters; what goes beyond is ignored and counted. Allocates for the first use of a
    /// name in the call only.
    pub fn add(&self, name: &str, n: u64) {
        let mut quantities = self.0.quantities();
        if self.0.has(SETTLED) {
            return;
        }
        if !quantities.add(name, n) {
            self.ignored();
        } else if !self.0.has(UNDELIVERED) {
            self.0.state.fetch_or(UNDELIVERED, Ordering::AcqRel);
        }
    }

    /// Adds to a named quantity that is handed over already, so that it counts whoever leaves.
    pub(super) fn add_delivered(&self, name: &str, n: u64) {
        let mut quantities = self.0.quantities();
        if !self.0.has(SETTLED) && !quantities.add_delivered(name, n) {
            self.ignored();
        }
    }

    fn ignored(&self) {
        if let Some(site) = &self.0.site {
            site.tally.quantity_ignored();
        }
    }

    /// The sum of a named quantity so far, zero when it was never named.
    #[must_use]
    pub fn quantity(&self, name: &str) -> u64 {
        self.0.quantities().amount(name, Billed::All).unwrap_or(0)
    }

    /// What counts of a quantity that was named, be it with zero: all, unless the client has left.
    pub(crate) fn billed_quantity(&self, name: &str) -> Option<u64> {
        self.0.quantities().amount(name, self.0.billed())
    }

    /// What counts of the call, as far as is known: all, unless the client has left.
    pub(crate) fn billed(&self) -> Billed {
        self.0.billed()
    }

    /// Sets what this call pays when its client leaves, in place of the layer's policy; the last word before the
    /// end stands. For a route, or for a plan: a layer behind the gate knows the identity.
    pub fn set_abort_policy(&self, policy: AbortPolicy) {
        const ALL: u16 = ON_ABORT_PRODUCED | ON_ABORT_NOTHING_BEFORE_FIRST_BYTE;
        let change = |state: u16| Some(state & !ALL | policy_bits(policy));
        // Cannot fail: there is always a next state.
        let _ = self
            .0
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
    }

    /// From here on the bytes of the request are counted as they are read; false when somebody counts already.
    pub(super) fn receive(&self) -> bool {
        !self.0.has(SETTLED) && self.0.state.fetch_or(RECEIVING, Ordering::AcqRel) & RECEIVING == 0
    }

    pub(super) fn received(&self, n_bytes: u64) {
        // Sums of what was really read do not reach the end of 64 bits.
        self.0.received_bytes.fetch_add(n_bytes, Ordering::AcqRel);
    }

    /// Whether the bytes of the request are counted.
    pub(crate) fn is_receiving(&self) -> bool {
        self.0.has(RECEIVING)
    }

    /// The bytes of the request that were read so far, where they are counted.
    pub(crate) fn received_bytes(&self) -> Option<u64> {
        self.0.received()
    }

    /// The name of a quantity that was added, if one of them `matches`.
    pub(crate) fn find_quantity(&self, matches: impl Fn(&str) -> bool) -> Option<Arc<str>> {
        self.0.quantities().find(matches)
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

    fn mark(&self, flag: u16) {
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

pub(super) fn is_quantity_name(name: &str) -> bool {
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
        assert_eq!(meter.0.quantities().len(), 0);
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
            grpc_status: None,
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
