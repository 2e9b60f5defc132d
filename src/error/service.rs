use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response};
use http_body::Body;
use tower_service::Service;

use super::{ErrorContext, RenderError, ResponseFuture};
use crate::{body::ResponseBody, grpc::GrpcKind, head::Fields, request_id::RequestId};

/// The service of [`ProblemLayer`](super::ProblemLayer).
pub struct ProblemService<S, R: ?Sized> {
    inner: S,
    render: Arc<R>,
}

impl<S, R: ?Sized> ProblemService<S, R> {
    pub(super) const fn new(inner: S, render: Arc<R>) -> Self {
        Self { inner, render }
    }
}

impl<S: Clone, R: ?Sized> Clone for ProblemService<S, R> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), Arc::clone(&self.render))
    }
}

impl<S: fmt::Debug, R: ?Sized> fmt::Debug for ProblemService<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProblemService")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<S, R, Q, B> Service<Request<Q>> for ProblemService<S, R>
where
    S: Service<Request<Q>, Response = Response<B>>,
    B: Body<Data = Bytes>,
    R: RenderError + ?Sized,
{
    type Response = Response<ResponseBody<B>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, B, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let id = request.extensions().get::<RequestId>();
        let id = id.map(|id| id.header_value().clone());
        let facts = RequestFacts::of(request.method(), &Fields::read(request.headers()), id);
        ResponseFuture::new(self.inner.call(request), facts, Arc::clone(&self.render))
    }
}

/// What must be known of a request that is gone by the time its answer fails.
#[derive(Clone, Debug)]
pub(crate) struct RequestFacts {
    pub(crate) method: Method,
    pub(super) grpc: Option<GrpcKind>,
    request_id: Option<HeaderValue>,
    accept: Option<HeaderValue>,
}

impl RequestFacts {
    /// The step before the call.
    pub(crate) fn of(
        method: &Method,
        fields: &Fields<'_>,
        request_id: Option<HeaderValue>,
    ) -> Self {
        Self {
            method: method.clone(),
            grpc: GrpcKind::of_call(method, fields.content_type),
            request_id,
            accept: fields.accept.cloned(),
        }
    }

    /// The request's id, which nobody asks for any more.
    pub(crate) const fn take_id(&mut self) -> Option<HeaderValue> {
        self.request_id.take()
    }

    pub(super) fn context(&self) -> ErrorContext<'_> {
        let request_id = self.request_id.as_ref().and_then(|id| id.to_str().ok());
        ErrorContext::new(&self.method)
            .with_request_id(request_id)
            .with_accept(self.accept.as_ref())
    }
}
