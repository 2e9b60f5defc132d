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
    grpc::Watch,
    head::RequestHead,
    route::{MatchedRoute, RouteOf},
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
        call.trace_id = trace_id(request.headers());
        let meter = Meter(Arc::new(call));
        request.extensions_mut().insert(meter.clone());
        let grpc = Watch::of(&request);
        // Before the hook and the call, so that one that panics is reported too.
        let mut guard = Guard::new(meter.clone(), Arc::clone(&self.shared), grpc);
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
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

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

/// The trace id of a `traceparent` header field (W3C Trace Context, section 3.2.2); 0 when there is none. The
/// standard calls a trace id of zeros invalid.
fn trace_id(headers: &HeaderMap) -> u128 {
    headers.get(TRACEPARENT).map_or(0, |value| {
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
    use http::HeaderValue;

    use super::*;

    fn trace(value: &'static str) -> u128 {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static(value));
        trace_id(&headers)
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
