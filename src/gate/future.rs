use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::task::futures::TaskLocalFuture;
use tower_service::Service;

use super::{
    GateBody,
    held::Held,
    steps::{Arrival, Next, Pending, Refusal, Steps},
};
use crate::{
    body::ResponseBody,
    error::{Reading, Replaced, RequestFacts, caught, panicked, passes, replace},
    identity::tell_access,
    request_id,
    span::CallSpan,
    tenant::{CURRENT, Tenant},
};

pin_project! {
    /// The response of a [`GateService`](super::GateService).
    pub struct GateFuture<S, Q, B>
    where
        S: Service<Request<Q>>,
    {
        #[pin]
        state: State<S, Q, B, S::Future>,
        facts: RequestFacts,
        span: CallSpan,
        steps: Arc<Steps>,
    }
}

pin_project! {
    #[project = StateProjection]
    pub(super) enum State<S, Q, B, F> {
        Called { #[pin] future: F, held: Held, mark: Option<HeaderValue> },
        Scoped { #[pin] future: TaskLocalFuture<Tenant, F>, held: Held, mark: Option<HeaderValue> },
        // Boxed: a trip is boxed itself, and a call that need not wait need not carry the room for it.
        Waiting { waiting: Option<Box<Waiting<S, Q>>> },
        Refused { response: Option<Box<Response<GateBody<B>>>> },
        Reading { reading: Pin<Box<Reading<GateBody<B>>>> },
        Panicked,
    }
}

type Polled<B, E> = Poll<Result<Response<GateBody<B>>, E>>;

/// A call on a trip, and the service that was polled ready for it.
pub(super) struct Waiting<S, Q> {
    arrival: Arrival,
    inner: S,
    pending: Pending,
    request: Request<Q>,
}

impl<S, Q, B> GateFuture<S, Q, B>
where
    S: Service<Request<Q>>,
{
    #[inline]
    pub(super) const fn new(
        state: State<S, Q, B, S::Future>,
        facts: RequestFacts,
        span: CallSpan,
        steps: Arc<Steps>,
    ) -> Self {
        Self {
            state,
            facts,
            span,
            steps,
        }
    }
}

/// Takes the steps before the service and calls it, or waits, or answers in its place. `ready` takes the service
/// that was polled ready out of its place, for a call that waits.
#[inline]
pub(super) fn start<S, Q, B>(
    steps: &Steps,
    mut request: Request<Q>,
    arrival: &mut Arrival,
    inner: &mut S,
    ready: impl FnOnce(&mut S) -> S,
) -> State<S, Q, B, S::Future>
where
    S: Service<Request<Q>, Response = Response<B>>,
    B: Body<Data = Bytes>,
{
    match steps.walk(&mut request, arrival) {
        Next::Service => serve(steps, request, arrival, inner),
        Next::Trip(pending) => {
            let mut arrival = arrival.take();
            arrival.held.leave();
            let waiting = Some(Box::new(Waiting {
                arrival,
                inner: ready(inner),
                pending,
                request,
            }));
            State::Waiting { waiting }
        }
        Next::Refused(refusal) => refuse(refusal, &request, arrival),
    }
}

/// Calls the service. What the call holds stays in `arrival` until the service has returned, and after a panic.
#[inline]
fn serve<S, Q, B>(
    steps: &Steps,
    request: Request<Q>,
    arrival: &mut Arrival,
    inner: &mut S,
) -> State<S, Q, B, S::Future>
where
    S: Service<Request<Q>, Response = Response<B>>,
{
    arrival.held.enter();
    if let Some(tenant) = arrival.scope(steps) {
        let future = CURRENT.sync_scope(tenant.clone(), || inner.call(request));
        let future = CURRENT.scope(tenant, future);
        arrival.held.leave();
        let (held, mark) = (arrival.held.take(), arrival.mark.take());
        return State::Scoped { future, held, mark };
    }
    let future = inner.call(request);
    arrival.held.leave();
    let (held, mark) = (arrival.held.take(), arrival.mark.take());
    State::Called { future, held, mark }
}

#[cold]
fn refuse<S, Q, B, F>(
    refusal: Refusal,
    request: &Request<Q>,
    arrival: &mut Arrival,
) -> State<S, Q, B, F>
where
    B: Body<Data = Bytes>,
{
    let response = refusal.into_response(request.method(), arrival);
    arrival.held.leave();
    let response = Some(Box::new(answered(
        response,
        &mut arrival.held,
        arrival.mark.take(),
        |body| body,
    )));
    State::Refused { response }
}

/// The steps after the call, up to the one that gives errors their form.
#[inline]
fn answered<B: Body<Data = Bytes>, C>(
    mut response: Response<B>,
    held: &mut Held,
    mark: Option<HeaderValue>,
    wrap: impl FnOnce(B) -> ResponseBody<C>,
) -> Response<GateBody<C>> {
    held.answered(&mut response);
    if let Some(mark) = mark {
        tell_access(mark, response.headers_mut());
    }
    response.map(|body| GateBody::new(wrap(body), held.take()))
}

impl<S, Q, B> State<S, Q, B, S::Future>
where
    S: Service<Request<Q>, Response = Response<B>>,
    B: Body<Data = Bytes>,
{
    /// Polls what may panic; `None` after a panic.
    #[inline]
    fn poll_guarded(
        mut self: Pin<&mut Self>,
        steps: &Steps,
        cx: &mut Context<'_>,
    ) -> Option<Polled<B, S::Error>> {
        loop {
            let next = match self.as_mut().project() {
                StateProjection::Called { future, held, mark } => {
                    return Some(poll_service(future, held, mark, cx));
                }
                StateProjection::Scoped { future, held, mark } => {
                    return Some(poll_service(future, held, mark, cx));
                }
                StateProjection::Waiting { waiting } => {
                    // A future is not polled again after it was ready.
                    let Some(on_trip) = waiting.as_mut() else {
                        return Some(Poll::Pending);
                    };
                    let Waiting {
                        arrival,
                        pending,
                        request,
                        ..
                    } = &mut **on_trip;
                    arrival.held.enter();
                    let next = steps.resume(pending, request, arrival, cx);
                    arrival.held.leave();
                    let Poll::Ready(next) = next else {
                        return Some(Poll::Pending);
                    };
                    if let Next::Trip(next) = next {
                        *pending = next;
                        continue;
                    }
                    let Some(ended) = waiting.take() else {
                        return Some(Poll::Pending);
                    };
                    let Waiting {
                        mut arrival,
                        mut inner,
                        request,
                        ..
                    } = *ended;
                    match next {
                        Next::Refused(refusal) => refuse(refusal, &request, &mut arrival),
                        Next::Service | Next::Trip(_) => {
                            serve(steps, request, &mut arrival, &mut inner)
                        }
                    }
                }
                StateProjection::Refused { response } => {
                    let response = response.take();
                    return Some(
                        response.map_or(Poll::Pending, |response| Poll::Ready(Ok(*response))),
                    );
                }
                StateProjection::Reading { .. } | StateProjection::Panicked => return None,
            };
            self.set(next);
        }
    }
}

#[inline]
fn poll_service<F, B, E>(
    future: Pin<&mut F>,
    held: &mut Held,
    mark: &mut Option<HeaderValue>,
    cx: &mut Context<'_>,
) -> Polled<B, E>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes>,
{
    held.enter();
    let polled = future.poll(cx);
    held.leave();
    match ready!(polled) {
        Ok(response) => {
            let response = answered(response, held, mark.take(), ResponseBody::inner);
            Poll::Ready(Ok(response))
        }
        Err(error) => {
            held.failed();
            // The call ends here: whoever keeps the future does not keep the charge.
            *held = Held::NOTHING;
            Poll::Ready(Err(error))
        }
    }
}

impl<S, Q, B> Future for GateFuture<S, Q, B>
where
    S: Service<Request<Q>, Response = Response<B>>,
    B: Body<Data = Bytes>,
{
    type Output = Result<Response<GateBody<B>>, S::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let render = this.steps.problems.hook();
        let entered = this.span.enter();
        let mut response = loop {
            if let StateProjection::Reading { reading } = this.state.as_mut().project() {
                let reading = reading.as_mut();
                break ready!(reading.poll_answer(this.facts, render, cx)).map(instead);
            }
            let polled = caught(|| {
                let mut state = DropOnUnwind(this.state.as_mut());
                let polled = state.0.as_mut().poll_guarded(this.steps, cx);
                mem::forget(state);
                polled
            });
            let response = match polled.flatten() {
                Some(polled) => match ready!(polled) {
                    Ok(response) => response,
                    Err(error) => {
                        this.span.failed();
                        return Poll::Ready(Err(error));
                    }
                },
                None => panicked(&this.facts.method).map(GateBody::instead),
            };
            if passes(&response, this.facts) {
                break response;
            }
            match replace(response, this.facts, render) {
                Replaced::Answer(response) => break response.map(instead),
                Replaced::Reading(reading) => {
                    let reading = Box::pin(reading);
                    this.state.set(State::Reading { reading });
                }
            }
        };
        if let Some(id) = this.facts.take_id() {
            request_id::tell(id, response.headers_mut());
        }
        drop(entered);
        let span = this.span.answered(&response);
        response.body_mut().within(span);
        Poll::Ready(Ok(response))
    }
}

fn instead<B>(bytes: Bytes) -> GateBody<B> {
    GateBody::instead(ResponseBody::full(bytes))
}

/// Drops the service's future while its panic unwinds, so that what it holds can tell a panic from a client
/// that left (`std::thread::panicking`).
struct DropOnUnwind<'a, S, Q, B, F>(Pin<&'a mut State<S, Q, B, F>>);

impl<S, Q, B, F> Drop for DropOnUnwind<'_, S, Q, B, F> {
    fn drop(&mut self) {
        self.0.set(State::Panicked);
    }
}

impl<S, Q, B> fmt::Debug for GateFuture<S, Q, B>
where
    S: Service<Request<Q>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateFuture").finish_non_exhaustive()
    }
}
