use std::{
    mem,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use crate::{
    body::ResponseBody,
    error::{ErrorCode, Problem},
    head::RequestHead,
    identity::{AccessFuture, Identity},
};

pub(super) mod sealed {
    #[expect(unnameable_types, reason = "a sealed trait cannot be named outside")]
    pub trait Sealed {}
}

/// One question to every request of a route. Sealed: the three guards of this crate implement it.
pub trait Guard: Clone + sealed::Sealed {
    /// Lets the request pass or says why not.
    ///
    /// # Errors
    ///
    /// The problem that the caller is answered.
    fn check(&self, head: &RequestHead<'_>) -> Result<(), Box<Problem>>;
}

/// A service behind a guard. What the guard refuses carries its [`Problem`] in the response extensions, so
/// that a limiter further out gives the charge back.
#[derive(Clone, Debug)]
pub struct Guarded<S, G> {
    inner: S,
    guard: G,
}

impl<S, G> Guarded<S, G> {
    pub(super) const fn new(inner: S, guard: G) -> Self {
        Self { inner, guard }
    }
}

impl<S, G, ReqB, B> Service<Request<ReqB>> for Guarded<S, G>
where
    S: Service<Request<ReqB>, Response = Response<B>> + Clone,
    G: Guard,
{
    type Response = Response<ResponseBody<B>>;
    type Error = S::Error;
    type Future = AccessFuture<S::Future, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqB>) -> Self::Future {
        // The instance that was polled ready must be the one that is called; a fresh clone takes its place.
        let clone = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, clone);
        match self.guard.check(&RequestHead::from(&request)) {
            Ok(()) => AccessFuture::called(inner.call(request), None),
            Err(problem) => AccessFuture::refused(problem.into_response(request.method())),
        }
    }
}

/// The caller, whom a guard that stands on a public path or without `AuthLayer` does not find.
pub(super) fn identity<'a>(
    head: &RequestHead<'a>,
    guard: &'static str,
) -> Result<&'a Identity, Box<Problem>> {
    head.extensions().get::<Identity>().ok_or_else(|| {
        let problem = Problem::new(ErrorCode::LayerMissing);
        Box::new(problem.detail(format!(
            "{guard} found no Identity: put AuthLayer outside of it, and not on a public path"
        )))
    })
}
