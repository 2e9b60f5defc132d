use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::{body::MeterBody, future::ResponseFuture, layer::Shared, meter::Meter};
use crate::{
    head::Fields,
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
        let known = request.extensions().get::<Meter>();
        if known.is_some_and(Meter::reports) {
            // An outer layer of ours meters the call already.
            return ResponseFuture::new(self.inner.call(request), None);
        }
        let fields = Fields::read(request.headers());
        let mut guard = self.shared.begin(request.method(), &fields);
        request.extensions_mut().insert(guard.meter().clone());
        // Before the hook and the call, so that one that panics is reported too.
        guard.enter();
        guard.find_route(&self.route_of, &request);
        guard.find_country(&request);
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
