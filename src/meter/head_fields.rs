//! What an answer says of its own cost, where it is asked to.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{cost::Spent, layer::Shared, meter::Meter};

/// Whole milliseconds from the arrival at the meter to the head of the answer.
const X_REQUEST_LATENCY: HeaderName = HeaderName::from_static("x-request-latency");
/// Whole billionths of the currency's unit.
const X_COMPUTE_COST: HeaderName = HeaderName::from_static("x-compute-cost");

/// Which header fields an answer gets; none unless set.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HeadFields {
    pub(super) latency: bool,
    pub(super) cost: bool,
}

/// The head of the answer is there: measures and tells what was asked for. Both fields are header fields and never
/// trailers: what is used later stands in the usage event alone.
pub(super) fn at_head(shared: &Shared, meter: &Meter, fields: &mut HeaderMap) {
    let measures = shared.site.measures_handler();
    if !measures && !shared.fields.latency && !shared.fields.cost {
        return;
    }
    let call = &*meter.0;
    let elapsed = shared.clock.now().since(call.started.monotonic_micros());
    if measures {
        meter.cost().add_compute(elapsed);
    }
    if shared.fields.latency {
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        fields.insert(X_REQUEST_LATENCY, HeaderValue::from(millis));
    }
    // Who is not known used nothing that anybody would account for.
    if shared.fields.cost && call.identity().is_some() {
        let total = Spent::cost(call, call.request_bytes(), 0).map_or(0, |cost| cost.total_nanos);
        fields.insert(X_COMPUTE_COST, HeaderValue::from(total));
    }
}

/// The call ends without an answer: what its handler took until then counts all the same.
pub(super) fn without_head(shared: &Shared, meter: &Meter) {
    if shared.site.measures_handler() {
        let started = meter.0.started.monotonic_micros();
        meter.cost().add_compute(shared.clock.now().since(started));
    }
}
