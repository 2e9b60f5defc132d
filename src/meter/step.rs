//! The step before a metered call: what is kept of its request.

use std::sync::Arc;

use http::{HeaderValue, Method, Request};
use smallvec::SmallVec;

use super::{
    guard::{Guard, length},
    layer::Shared,
    meter::{Call, Meter},
};
use crate::{
    grpc::{GrpcKind, Watch},
    head::{Fields, RequestHead},
    route::RouteOf,
};

impl Shared {
    /// Begins a call: whoever holds the guard settles it by dropping it.
    pub(crate) fn begin(self: &Arc<Self>, method: &Method, fields: &Fields<'_>) -> Guard {
        self.recorder.ensure_started();
        let mut call = Call::new(
            self.recorder.next_id(),
            self.clock.now(),
            Some(Arc::clone(&self.site)),
        );
        call.method = bounded(method);
        call.request_bytes = fields.content_length.and_then(length).unwrap_or(0);
        call.request_id = fields.request_id.map_or_else(SmallVec::new, request_id);
        call.trace_id = fields.traceparent.map_or(0, trace_id);
        let grpc = Watch::of(GrpcKind::of_call(method, fields.content_type));
        Guard::new(Meter(Arc::new(call)), Arc::clone(self), grpc)
    }
}

impl Guard {
    /// Asks the hook for the route template. The guard must have been [entered](Guard::enter): a hook may panic.
    pub(crate) fn find_route<B>(&self, route_of: &impl RouteOf, request: &Request<B>) {
        if let Some(route) = route_of.route_of(&RequestHead::from(request)) {
            self.meter().set_route(route);
        }
    }
}

/// The longest request id that an event keeps, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

fn request_id(value: &HeaderValue) -> SmallVec<[u8; 36]> {
    if value.len() <= MAX_REQUEST_ID_BYTES {
        SmallVec::from_slice(value.as_bytes())
    } else {
        SmallVec::new()
    }
}

/// The trace id of a `traceparent` header field (W3C Trace Context, section 3.2.2); 0 when it is none. The
/// standard calls a trace id of zeros invalid.
fn trace_id(value: &HeaderValue) -> u128 {
    let Some((version, rest)) = value.as_bytes().split_at_checked(3) else {
        return 0;
    };
    let Some((digits, rest)) = rest.split_at_checked(32) else {
        return 0;
    };
    let is_hex = |digit: &u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(digit);
    if version == b"ff-" || !version.ends_with(b"-") || !rest.starts_with(b"-") {
        return 0;
    }
    if !digits.iter().all(is_hex) || !version.iter().take(2).all(is_hex) {
        return 0;
    }
    std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| u128::from_str_radix(digits, 16).ok())
        .unwrap_or(0)
}

/// The longest method kept, in bytes; the longest registered one (UPDATEREDIRECTREF) is this long.
const MAX_METHOD_BYTES: usize = 17;

/// The method, or `_OTHER`, OpenTelemetry's word for it, when a client made up a long one to fill the memory.
fn bounded(method: &Method) -> Method {
    if method.as_str().len() <= MAX_METHOD_BYTES {
        method.clone()
    } else {
        Method::from_bytes(b"_OTHER").unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(value: &'static str) -> u128 {
        trace_id(&HeaderValue::from_static(value))
    }

    #[test]
    fn reads_the_trace_id_of_the_standard_form_only() {
        let id = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
        let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(trace(valid), id);
        for invalid in [
            "",
            "00-",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "zz-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(trace(invalid), 0, "{invalid}");
        }
    }

    #[test]
    fn a_made_up_method_cannot_fill_the_memory() {
        let long = Method::from_bytes("X".repeat(4000).as_bytes()).unwrap();
        assert_eq!(bounded(&long).as_str(), "_OTHER");
        let longest = Method::from_bytes(b"UPDATEREDIRECTREF").unwrap();
        assert_eq!(bounded(&longest), longest);
    }
}
