use std::{
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tokio::time::Timeout;
use tower_service::Service;

use super::{
    charge::{Charge, LimitBody},
    decision::Decision,
    hook::LimitDegraded,
    layer::Settings,
    service::{Question, answered, conclude},
    store::LimitStoreError,
};
use crate::body::ResponseBody;

pub(super) type Decide = Pin<Box<dyn Future<Output = Result<Decision, LimitStoreError>> + Send>>;

pin_project! {
    /// The response of [`Limit`](super::Limit).
    pub struct ResponseFuture<S, ReqB, B>
    where
        S: Service<Request<ReqB>>,
    {
        #[pin]
        state: State<S, ReqB, B, S::Future>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, ReqB, B, F> {
        Passed { #[pin] future: F },
        Called { #[pin] future: F, settings: Arc<Settings>, pending: Option<Pending> },
        // Boxed: a decision that needs a trip is boxed itself, and the others need not carry the room for it.
        Deciding { waiting: Option<Box<Waiting<S, ReqB>>> },
        Refused { response: Option<Box<Response<LimitBody<B>>>> },
    }
}

struct Pending {
    charge: Box<Charge>,
    degraded: Option<LimitDegraded>,
}

/// A call whose decision is on its way, and the service that was polled ready for it.
pub(super) struct Waiting<S, ReqB> {
    pub(super) decide: Pin<Box<Timeout<Decide>>>,
    pub(super) settings: Arc<Settings>,
    pub(super) question: Question,
    pub(super) request: Request<ReqB>,
    pub(super) inner: S,
}

impl<S: Service<Request<ReqB>>, ReqB, B> ResponseFuture<S, ReqB, B> {
    pub(super) const fn passed(future: S::Future) -> Self {
        Self {
            state: State::Passed { future },
        }
    }

    pub(super) const fn called(
        future: S::Future,
        settings: Arc<Settings>,
        charge: Box<Charge>,
        degraded: Option<LimitDegraded>,
    ) -> Self {
        Self {
            state: State::Called {
                future,
                settings,
                pending: Some(Pending { charge, degraded }),
            },
        }
    }

    pub(super) fn deciding(waiting: Waiting<S, ReqB>) -> Self {
        let waiting = Some(Box::new(waiting));
        Self {
            state: State::Deciding { waiting },
        }
    }

    pub(super) fn refused(response: Response<LimitBody<B>>) -> Self {
        let response = Some(Box::new(response));
        Self {
            state: State::Refused { response },
        }
    }
}

impl<S, ReqB, B> Future for ResponseFuture<S, ReqB, B>
where
    S: Service<Request<ReqB>, Response = Response<B>>,
{
    type Output = Result<Response<LimitBody<B>>, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let next = match self.as_mut().project().state.project() {
                StateProjection::Passed { future } => {
                    let response = ready!(future.poll(cx))?;
                    return Poll::Ready(Ok(
                        response.map(|body| LimitBody::new(ResponseBody::inner(body), None))
                    ));
                }
                StateProjection::Called {
                    future,
                    settings,
                    pending,
                } => {
                    let before = pending.as_mut().map(|pending| pending.charge.enter());
                    let poll = future.poll(cx);
                    if let (Some(pending), Some(before)) = (pending.as_mut(), before) {
                        pending.charge.leave(before);
                    }
                    let result = ready!(poll);
                    let pending = pending.take();
                    let response = match result {
                        Ok(response) => response,
                        Err(error) => {
                            if let Some(pending) = pending {
                                pending.charge.service_failed();
                            }
                            return Poll::Ready(Err(error));
                        }
                    };
                    return Poll::Ready(Ok(match pending {
                        Some(Pending { charge, degraded }) => {
                            answered(settings, response, charge, degraded)
                        }
                        None => {
                            response.map(|body| LimitBody::new(ResponseBody::inner(body), None))
                        }
                    }));
                }
                StateProjection::Deciding { waiting } => {
                    // A future is not polled again after it was ready.
                    let Some(trip) = waiting else {
                        return Poll::Pending;
                    };
                    let decision = ready!(trip.decide.as_mut().poll(cx));
                    let Some(trip) = waiting.take() else {
                        return Poll::Pending;
                    };
                    let Waiting {
                        settings,
                        question,
                        request,
                        inner,
                        ..
                    } = *trip;
                    let verdict = match decision {
                        Ok(Ok(decision)) => question.decided(&settings, decision),
                        Ok(Err(error)) => question.failed(&settings, &error),
                        Err(elapsed) => {
                            let cause: Box<dyn Error + Send + Sync> = elapsed.into();
                            question.failed(&settings, &LimitStoreError::Indeterminate(cause))
                        }
                    };
                    conclude(&settings, verdict, request, inner)
                }
                StateProjection::Refused { response } => {
                    return response
                        .take()
                        .map_or(Poll::Pending, |response| Poll::Ready(Ok(*response)));
                }
            };
            self.set(next);
        }
    }
}

impl<S: Service<Request<ReqB>>, ReqB, B> fmt::Debug for ResponseFuture<S, ReqB, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
