use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    charge::{Charge, LimitBody},
    service::{answered, conclude},
    step::Trip,
};

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
        Called { #[pin] future: F, charge: Option<Charge> },
        // Boxed: a decision that needs a trip is boxed itself, and the others need not carry the room for it.
        Deciding { waiting: Option<Box<Waiting<S, ReqB>>> },
        Refused { response: Option<Box<Response<LimitBody<B>>>> },
    }
}

/// A call whose decision is on its way, and the service that was polled ready for it.
pub(super) struct Waiting<S, ReqB> {
    pub(super) trip: Trip,
    pub(super) request: Request<ReqB>,
    pub(super) inner: S,
}

impl<S: Service<Request<ReqB>>, ReqB, B> ResponseFuture<S, ReqB, B> {
    pub(super) const fn passed(future: S::Future) -> Self {
        Self::called(future, None)
    }

    pub(super) const fn called(future: S::Future, charge: Option<Charge>) -> Self {
        Self {
            state: State::Called { future, charge },
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
    B: Body,
{
    type Output = Result<Response<LimitBody<B>>, S::Error>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let next = match self.as_mut().project().state.project() {
                StateProjection::Called { future, charge } => {
                    if let Some(charge) = charge.as_mut() {
                        charge.enter();
                    }
                    let poll = future.poll(cx);
                    if let Some(charge) = charge.as_mut() {
                        charge.leave();
                    }
                    let result = ready!(poll);
                    let charge = charge.take();
                    return Poll::Ready(match result {
                        Ok(response) => Ok(answered(response, charge)),
                        Err(error) => {
                            if let Some(mut charge) = charge {
                                charge.service_failed();
                            }
                            Err(error)
                        }
                    });
                }
                StateProjection::Deciding { waiting } => {
                    // A future is not polled again after it was ready.
                    let Some(pending) = waiting else {
                        return Poll::Pending;
                    };
                    let mut charge = None;
                    let step = ready!(pending.trip.poll_step(cx, &mut charge));
                    let Some(ended) = waiting.take() else {
                        return Poll::Pending;
                    };
                    let Waiting {
                        request, mut inner, ..
                    } = *ended;
                    conclude(step, charge, request, &mut inner)
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
