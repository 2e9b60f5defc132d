//! The step before a metered call: what is kept of its request.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, Method, Request};
use smallvec::SmallVec;

use super::{
    guard::{Guard, content_length},
    layer::Shared,
    meter::{Call, Meter},
};
use crate::{grpc::Watch, head::RequestHead, route::RouteOf, span::TraceContext};

impl Shared {
    /// Begins a call: whoever holds the guard settles it by dropping it.
    pub(crate) fn begin<B>(self: &Arc<Self>, request: &Request<B>) -> Guard {
        self.recorder.ensure_started();
        let mut call = Call::new(
            self.recorder.next_id(),
            self.clock.now(),
            Some(Arc::clone(&self.site)),
        );
        call.method = bounded(request.method());
        call.request_bytes = content_length(request.headers()).unwrap_or(0);
        call.request_id = request_id(request.headers());
        call.trace_id =
            TraceContext::from_headers(request.headers()).map_or(0, |context| context.trace_id);
        Guard::new(Meter(Arc::new(call)), Arc::clone(self), Watch::of(request))
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

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest request id that an event keeps, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

fn request_id(headers: &HeaderMap) -> SmallVec<[u8; 36]> {
    headers
        .get(X_REQUEST_ID)
        .filter(|value| value.len() <= MAX_REQUEST_ID_BYTES)
        .map_or_else(SmallVec::new, |value| {
            SmallVec::from_slice(value.as_bytes())
        })
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
