use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use super::{
    AuthFuture, Identity,
    future::Waiting,
    layer::{Settings, Verdict},
};
use crate::{auth::CredentialSource, body::ResponseBody, head::RequestHead, meter::Meter};

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
        let meter = request.extensions().get::<Meter>();
        let now = meter.map_or_else(|| self.settings.now(), Meter::started);
        match self.settings.judge(&RequestHead::from(&request), now) {
            Verdict::Known(identity, source) => {
                admit(&self.settings, &mut request, identity, source);
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
                self.settings.admit_public(&mut request, mark);
                AuthFuture::called(self.inner.call(request))
            }
            Verdict::Refused(problem) => {
                AuthFuture::refused(problem.into_response(request.method()))
            }
        }
    }
}

/// Makes the request one of a known caller.
pub(super) fn admit<B>(
    settings: &Settings,
    request: &mut Request<B>,
    identity: Identity,
    source: Option<CredentialSource>,
) {
    let meter = request.extensions().get::<Meter>().cloned();
    settings.admit(request, &identity, source, meter.as_ref());
    request.extensions_mut().insert(identity);
}
