use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    Identity, IdentityLookup,
    layer::{Caller, Settings},
    service::admit,
};
use crate::{auth::AuthRefusal, body::ResponseBody};

pin_project! {
    /// The answer of [`Auth`](super::Auth): a trip to a store where one is needed, then the inner service's
    /// answer or a refusal.
    pub struct AuthFuture<S, ReqB, B>
    where
        S: Service<Request<ReqB>>,
    {
        #[pin]
        kind: Kind<S, ReqB, B, S::Future>,
    }
}

pin_project! {
    #[project = KindProjection]
    enum Kind<S, ReqB, B, F> {
        Called { #[pin] future: F },
        // Boxed: the trip is boxed itself, and a hit need not carry the room for it.
        Waiting { waiting: Option<Box<Waiting<S, ReqB>>> },
        Refused { response: Option<Box<Response<ResponseBody<B>>>> },
    }
}

/// A request whose credential is looked up, and the service that was polled ready for it.
pub(super) struct Waiting<S, ReqB> {
    pub(super) caller: Caller,
    pub(super) inner: S,
    pub(super) lookup: IdentityLookup,
    pub(super) request: Request<ReqB>,
    pub(super) settings: Arc<Settings>,
}

impl<S, ReqB> Waiting<S, ReqB> {
    fn end<B>(self, result: Result<Identity, AuthRefusal>) -> Kind<S, ReqB, B, S::Future>
    where
        S: Service<Request<ReqB>>,
    {
        let Self {
            caller,
            mut inner,
            mut request,
            settings,
            ..
        } = self;
        match settings.conclude(result, &caller) {
            Ok(identity) => {
                admit(&settings, &mut request, identity, caller.source);
                let future = inner.call(request);
                Kind::Called { future }
            }
            Err(problem) => Kind::Refused {
                response: Some(Box::new(problem.into_response(request.method()))),
            },
        }
    }
}

impl<S, ReqB, B> AuthFuture<S, ReqB, B>
where
    S: Service<Request<ReqB>>,
{
    pub(super) const fn called(future: S::Future) -> Self {
        Self {
            kind: Kind::Called { future },
        }
    }

    pub(super) fn waiting(waiting: Waiting<S, ReqB>) -> Self {
        let waiting = Some(Box::new(waiting));
        Self {
            kind: Kind::Waiting { waiting },
        }
    }

    pub(super) fn refused(response: Response<ResponseBody<B>>) -> Self {
        let response = Some(Box::new(response));
        Self {
            kind: Kind::Refused { response },
        }
    }
}

impl<S, ReqB, B> Future for AuthFuture<S, ReqB, B>
where
    S: Service<Request<ReqB>, Response = Response<B>>,
{
    type Output = Result<Response<ResponseBody<B>>, S::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut kind = self.project().kind;
        loop {
            let next = match kind.as_mut().project() {
                KindProjection::Called { future } => {
                    return future
                        .poll(cx)
                        .map_ok(|response| response.map(ResponseBody::inner));
                }
                KindProjection::Waiting { waiting } => {
                    let Some(pending) = waiting.as_mut() else {
                        return Poll::Pending;
                    };
                    let result = ready!(pending.lookup.as_mut().poll(cx));
                    match waiting.take() {
                        Some(pending) => pending.end(result),
                        None => return Poll::Pending,
                    }
                }
                KindProjection::Refused { response } => {
                    return response
                        .take()
                        .map_or(Poll::Pending, |response| Poll::Ready(Ok(*response)));
                }
            };
            kind.set(next);
        }
    }
}

impl<S, ReqB, B> fmt::Debug for AuthFuture<S, ReqB, B>
where
    S: Service<Request<ReqB>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthFuture").finish_non_exhaustive()
    }
}
