use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Response};
use http_body::Body;
use smallvec::SmallVec;
use tower_service::Service;

use super::{
    body::MeterBody,
    future::ResponseFuture,
    guard::{Guard, content_length},
    layer::Shared,
    meter::{Call, Meter},
};
use crate::{
    head::RequestHead,
    route::{MatchedRoute, RouteOf},
    span::TraceContext,
};

/// A service whose calls are metered; made by [`MeterLayer`](super::MeterLayer).
#[derive(Clone)]
pub struct Metered<S, R = MatchedRoute> {
    inner: S,
    shared: Arc<Shared>,
    route_of: R,
}

impl<S, R> Metered<S, R> {
    pub(super) const fn new(inner: S, shared: Arc<Shared>, route_of: R) -> Self {
        Self {
            inner,
            shared,
            route_of,
        }
    }
}

impl<S, R, B, ReqB> Service<Request<ReqB>> for Metered<S, R>
where
    S: Service<Request<ReqB>, Response = Response<B>>,
    R: RouteOf,
    B: Body<Data = Bytes>,
{
    type Response = Response<MeterBody<B>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut request: Request<ReqB>) -> Self::Future {
        if request.extensions().get::<Meter>().is_some() {
            // An outer layer of ours meters the call already.
            return ResponseFuture::new(self.inner.call(request), None);
        }
        let recorder = &self.shared.recorder;
        recorder.ensure_started();
        let mut call = Call::new(
            recorder.next_id(),
            self.shared.clock.now(),
            Some(Arc::clone(&self.shared.site)),
        );
        call.method = bounded(request.method());
        call.request_bytes = content_length(request.headers()).unwrap_or(0);
        call.request_id = request_id(request.headers());
        call.trace_id =
            TraceContext::from_headers(request.headers()).map_or(0, |context| context.trace_id);
        let meter = Meter(Arc::new(call));
        request.extensions_mut().insert(meter.clone());
        // Before the hook and the call, so that one that panics is reported too.
        let mut guard = Guard::new(meter.clone(), Arc::clone(&self.shared));
        guard.enter();
        if let Some(route) = self.route_of.route_of(&RequestHead::from(&request)) {
            meter.set_route(route);
        }
        let future = self.inner.call(request);
        guard.leave();
        ResponseFuture::new(future, Some(guard))
    }
}

impl<S, R> fmt::Debug for Metered<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metered")
            .field("api", &self.shared.site.api)
            .finish_non_exhaustive()
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
