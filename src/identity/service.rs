use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use super::{
    AuthFuture,
    future::Waiting,
    layer::{Settings, Verdict},
};
use crate::{body::ResponseBody, head::RequestHead};

/// The service of [`AuthLayer`](super::AuthLayer).
#[derive(Clone, Debug)]
pub struct Auth<S> {
    inner: S,
    settings: Arc<Settings>,
}

impl<S> Auth<S> {
    pub(super) const fn new(inner: S, settings: Arc<Settings>) -> Self {
        Self { inner, settings }
    }
}

impl<S, ReqB, B> Service<Request<ReqB>> for Auth<S>
where
    S: Service<Request<ReqB>, Response = Response<B>> + Clone,
{
    type Response = Response<ResponseBody<B>>;
    type Error = S::Error;
    type Future = AuthFuture<S, ReqB, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut request: Request<ReqB>) -> Self::Future {
        match self.settings.judge(&RequestHead::from(&request)) {
            Verdict::Known(identity, source) => {
                self.settings.admit(&mut request, identity, source);
                AuthFuture::called(self.inner.call(request))
            }
            Verdict::Lookup(lookup, caller) => {
                // The instance that was polled ready must be the one that is called; a fresh clone takes its
                // place. A known caller needs no clone: with all that is inside, it is a dozen counters.
                let clone = self.inner.clone();
                AuthFuture::waiting(Waiting {
                    caller,
                    inner: mem::replace(&mut self.inner, clone),
                    lookup,
                    request,
                    settings: Arc::clone(&self.settings),
                })
            }
            Verdict::Public(mark) => {
                self.settings.let_pass(&mut request, mark);
                AuthFuture::called(self.inner.call(request))
            }
            Verdict::Refused(problem) => {
                AuthFuture::refused(problem.into_response(request.method()))
            }
        }
    }
}
