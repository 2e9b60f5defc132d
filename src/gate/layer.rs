use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    body::ResponseBody,
    error::{CatchPanic, ProblemLayer, ProblemService, RenderError, catch_panic},
    identity::{Auth, AuthLayer, TenantAccess, TenantLayer},
    limit::{ByIdentity, EveryCall, Limit, LimitBody, LimitLayer},
    meter::{MeterBody, MeterLayer, Metered},
    request_id::{RequestIdLayer, RequestIdService, TrustInbound},
    route::RouteOf,
    span::{SpanBody, SpanLayer, SpanService},
};

/// The layers of a [`Tollgate`](super::Tollgate).
#[derive(Clone, Debug)]
#[must_use]
pub struct TollgateLayer {
    pub(super) request_id: RequestIdLayer<dyn TrustInbound>,
    pub(super) span: SpanLayer<Arc<dyn RouteOf>>,
    pub(super) problems: ProblemLayer<dyn RenderError>,
    pub(super) meter: MeterLayer<Arc<dyn RouteOf>>,
    pub(super) auth: AuthLayer,
    pub(super) tenant: TenantLayer,
    pub(super) ceiling: LimitLayer<EveryCall>,
    pub(super) limits: LimitLayer<ByIdentity>,
}

type Limited<S> = Limit<Limit<S, ByIdentity>, EveryCall>;
type Identified<S> = Auth<TenantAccess<Limited<S>>>;
type Reported<S> = CatchPanic<Metered<Identified<S>, Arc<dyn RouteOf>>>;
type Finished<S> = ProblemService<Reported<S>, dyn RenderError>;
type Stack<S> = RequestIdService<SpanService<Finished<S>, Arc<dyn RouteOf>>, dyn TrustInbound>;

type LimitedBody<B> = LimitBody<LimitBody<B>>;
type IdentifiedBody<B> = ResponseBody<ResponseBody<LimitedBody<B>>>;
type StackBody<B> = SpanBody<ResponseBody<ResponseBody<MeterBody<IdentifiedBody<B>>>>>;

impl<S> Layer<S> for TollgateLayer {
    type Service = GateService<S>;

    fn layer(&self, inner: S) -> GateService<S> {
        let limited = self.ceiling.layer(self.limits.layer(inner));
        let identified = self.auth.layer(self.tenant.layer(limited));
        let reported = catch_panic().layer(self.meter.layer(identified));
        GateService {
            stack: self
                .request_id
                .layer(self.span.layer(self.problems.layer(reported))),
        }
    }
}

/// A service behind a [`Tollgate`](super::Tollgate).
pub struct GateService<S> {
    stack: Stack<S>,
}

impl<S: Clone> Clone for GateService<S> {
    fn clone(&self) -> Self {
        Self {
            stack: self.stack.clone(),
        }
    }
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
    type Future = GateFuture<<Stack<S> as Service<Request<Q>>>::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.stack.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<Q>) -> Self::Future {
        GateFuture {
            future: self.stack.call(request),
        }
    }
}

pin_project! {
    /// The response of a [`GateService`].
    pub struct GateFuture<F> {
        #[pin]
        future: F,
    }
}

impl<F, B, E> Future for GateFuture<F>
where
    F: Future<Output = Result<Response<StackBody<B>>, E>>,
{
    type Output = Result<Response<GateBody<B>>, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = ready!(self.project().future.poll(cx))?;
        Poll::Ready(Ok(response.map(|body| GateBody { body })))
    }
}

impl<F> fmt::Debug for GateFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateFuture").finish_non_exhaustive()
    }
}

pin_project! {
    /// The body of an answer that passed a [`Tollgate`](super::Tollgate): the service's, counted and charged,
    /// or the gate's own.
    pub struct GateBody<B> {
        #[pin]
        body: StackBody<B>,
    }
}

impl<B> fmt::Debug for GateBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateBody").finish_non_exhaustive()
    }
}

impl<B: Body<Data = Bytes>> Body for GateBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
