use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::CallSpan;
use crate::route::{MatchedRoute, RouteOf};

/// Puts each call into a span; see the [module's page](super).
///
/// Belongs inside of what sets `x-request-id`, and outside of everything else of this crate.
#[derive(Clone)]
#[must_use]
pub struct SpanLayer<R = MatchedRoute> {
    on: bool,
    route_of: R,
}

impl SpanLayer {
    /// A span for each call, with the route that [`MatchedRoute`] finds.
    pub const fn new() -> Self {
        Self {
            on: true,
            route_of: MatchedRoute,
        }
    }
}

impl Default for SpanLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<R> SpanLayer<R> {
    /// Finds the route template of a request; a closure works.
    pub fn route_of<N: RouteOf>(self, route_of: N) -> SpanLayer<N> {
        SpanLayer {
            on: self.on,
            route_of,
        }
    }

    /// Whether there are spans at all, for a layer that is always in place; on unless set. Off costs a branch.
    pub const fn on(mut self, on: bool) -> Self {
        self.on = on;
        self
    }
}

impl<R: RouteOf> SpanLayer<R> {
    /// The step before the call.
    #[inline]
    pub(crate) fn begin<Q>(&self, request: &Request<Q>) -> CallSpan {
        if self.on {
            CallSpan::of(request, &self.route_of)
        } else {
            CallSpan::NONE
        }
    }
}

impl<S, R: Clone> Layer<S> for SpanLayer<R> {
    type Service = SpanService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        SpanService {
            inner,
            layer: self.clone(),
        }
    }
}

impl<R> fmt::Debug for SpanLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpanLayer")
            .field("on", &self.on)
            .finish_non_exhaustive()
    }
}

/// The service of [`SpanLayer`].
#[derive(Clone)]
pub struct SpanService<S, R = MatchedRoute> {
    inner: S,
    layer: SpanLayer<R>,
}

impl<S, R> fmt::Debug for SpanService<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpanService").finish_non_exhaustive()
    }
}

impl<S, R, Q, B> Service<Request<Q>> for SpanService<S, R>
where
    S: Service<Request<Q>, Response = Response<B>>,
    R: RouteOf,
{
    type Response = Response<SpanBody<B>>;
    type Error = S::Error;
    type Future = SpanFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let span = self.layer.begin(&request);
        let future = {
            let _entered = span.enter();
            self.inner.call(request)
        };
        SpanFuture { future, span }
    }
}

pin_project! {
    /// The future of [`SpanService`]: runs within the call's span.
    pub struct SpanFuture<F> {
        #[pin]
        future: F,
        span: CallSpan,
    }
}

impl<F, B, E> Future for SpanFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<SpanBody<B>>, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = {
            let _entered = this.span.enter();
            ready!(this.future.poll(cx))
        };
        Poll::Ready(match result {
            Ok(response) => {
                let span = this.span.answered(&response);
                Ok(response.map(|body| SpanBody { body, span }))
            }
            Err(error) => {
                this.span.failed();
                Err(error)
            }
        })
    }
}

impl<F> fmt::Debug for SpanFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpanFuture").finish_non_exhaustive()
    }
}

pin_project! {
    /// A response body that runs within its call's span, and ends it when it is dropped.
    pub struct SpanBody<B> {
        #[pin]
        body: B,
        span: CallSpan,
    }
}

impl<B: Body> Body for SpanBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let _entered = this.span.enter();
        this.body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> fmt::Debug for SpanBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpanBody").finish_non_exhaustive()
    }
}
