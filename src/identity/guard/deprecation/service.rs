use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use super::{future::DeprecationFuture, layer::Terms};
use crate::{body::ResponseBody, meter::Meter};

/// A service of a deprecated version; made by [`DeprecationLayer`](super::DeprecationLayer).
#[derive(Clone, Debug)]
pub struct Deprecated<S> {
    inner: S,
    terms: Arc<Terms>,
}

impl<S> Deprecated<S> {
    pub(super) const fn new(inner: S, terms: Arc<Terms>) -> Self {
        Self { inner, terms }
    }
}

impl<S, ReqB, B> Service<Request<ReqB>> for Deprecated<S>
where
    S: Service<Request<ReqB>, Response = Response<B>> + Clone,
{
    type Response = Response<ResponseBody<B>>;
    type Error = S::Error;
    type Future = DeprecationFuture<S::Future, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqB>) -> Self::Future {
        // The instance that was polled ready must be the one that is called; a fresh clone takes its place.
        let clone = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, clone);
        match self.terms.check(request.extensions().get::<Meter>()) {
            Ok(()) => DeprecationFuture::called(inner.call(request), Arc::clone(&self.terms)),
            Err(problem) => DeprecationFuture::refused(problem.into_response(request.method())),
        }
    }
}
