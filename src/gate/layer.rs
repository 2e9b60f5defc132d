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

use super::{
    GateBody, GateFuture,
    future::{State, start},
    steps::Steps,
};
use crate::{error::caught, span::CallSpan};

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
        // The hook for the route may panic here too; it is asked once more within the call, which tells of it.
        let span = caught(|| steps.span.begin(&request)).unwrap_or(CallSpan::NONE);
        let entered = span.enter();
        let mut state = State::Panicked;
        // A panic leaves the state as it is, and what the call holds here.
        let _ = caught(|| {
            // The instance that was polled ready must be the one that is called; a fresh clone takes its place. A
            // call that need not wait needs no clone.
            let ready = |inner: &mut S| {
                let clone = inner.clone();
                mem::replace(inner, clone)
            };
            state = start(steps, request, &mut arrival, inner, ready);
        });
        drop(entered);
        GateFuture::new(state, facts, span, Arc::clone(steps))
    }
}
