use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::{GateBody, GateFuture, steps::Steps};
use crate::error::caught;

/// The layers of a [`Tollgate`](super::Tollgate).
#[derive(Clone, Debug)]
#[must_use]
pub struct TollgateLayer {
    steps: Arc<Steps>,
}

impl TollgateLayer {
    pub(super) fn new(steps: Steps) -> Self {
        Self {
            steps: Arc::new(steps),
        }
    }
}

impl<S> Layer<S> for TollgateLayer {
    type Service = GateService<S>;

    fn layer(&self, inner: S) -> GateService<S> {
        GateService {
            inner,
            steps: Arc::clone(&self.steps),
        }
    }
}

/// A service behind a [`Tollgate`](super::Tollgate).
#[derive(Clone)]
pub struct GateService<S> {
    inner: S,
    steps: Arc<Steps>,
}

impl<S> fmt::Debug for GateService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateService").finish_non_exhaustive()
    }
}

impl<S, Q, B> Service<Request<Q>> for GateService<S>
where
    S: Service<Request<Q>, Response = Response<B>> + Clone,
    B: Body<Data = Bytes>,
{
    type Response = Response<GateBody<B>>;
    type Error = S::Error;
    type Future = GateFuture<S, Q, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let Self { inner, steps } = self;
        let (facts, mut arrival) = steps.arrive(&mut request);
        let mut future = GateFuture::new(facts, Arc::clone(steps));
        // A panic leaves the future as it is, and what the call holds here.
        let _ = caught(|| {
            // The instance that was polled ready must be the one that is called; a fresh clone takes its place. A
            // call that need not wait needs no clone.
            let ready = |inner: &mut S| {
                let clone = inner.clone();
                mem::replace(inner, clone)
            };
            future.start(request, &mut arrival, inner, ready);
        });
        future
    }
}
