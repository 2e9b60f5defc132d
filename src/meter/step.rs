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
    span::TraceContext,
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
        let trace = fields.only_traceparent().and_then(TraceContext::parse);
        call.trace_id = trace.map_or(0, |context| context.trace_id);
        let grpc = Watch::of(GrpcKind::of_call(method, fields.content_type));
        Guard::new(Meter(Arc::new(call)), Arc::clone(self), grpc)
    }
}

impl Guard {
    /// Asks the hook for the route template. The guard must have been [entered](Guard::enter): a hook may panic.
    pub(crate) fn find_route<B>(&self, route_of: &impl RouteOf, request: &Request<B>) {
        if let Some(route) = route_of.route_of(&RequestHead::from(request)) {
            // Not by the handle: a span has asked the hook itself.
            let _ = self.meter().0.route.set(route);
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

    #[test]
    fn a_made_up_method_cannot_fill_the_memory() {
        let long = Method::from_bytes("X".repeat(4000).as_bytes()).unwrap();
        assert_eq!(bounded(&long).as_str(), "_OTHER");
        let longest = Method::from_bytes(b"UPDATEREDIRECTREF").unwrap();
        assert_eq!(bounded(&longest), longest);
    }
}
