use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::{
    charge::{Charge, LimitBody},
    future::{ResponseFuture, Waiting},
    layer::Settings,
    step::Step,
    subject::{FindSubject, Subject},
};
use crate::{
    body::ResponseBody,
    error::{ErrorCode, Problem},
    head::RequestHead,
    identity::Identity,
    meter::Meter,
};

/// The service of [`LimitLayer`](super::LimitLayer).
#[derive(Clone)]
pub struct Limit<S, F> {
    inner: S,
    settings: Arc<Settings>,
    find: F,
}

impl<S, F> Limit<S, F> {
    pub(super) const fn new(inner: S, settings: Arc<Settings>, find: F) -> Self {
        Self {
            inner,
            settings,
            find,
        }
    }
}

impl<S, F> fmt::Debug for Limit<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limit")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl<S, F, ReqB, B> Service<Request<ReqB>> for Limit<S, F>
where
    S: Service<Request<ReqB>, Response = Response<B>> + Clone,
    F: FindSubject,
    B: Body,
{
    type Response = Response<LimitBody<B>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqB, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut request: Request<ReqB>) -> Self::Future {
        let set = match self.find.subject(&RequestHead::from(&request)) {
            Subject::Limited(set) => set,
            Subject::NotLimited => {
                self.settings.metrics.not_limited.increment(1);
                return ResponseFuture::passed(self.inner.call(request));
            }
            Subject::Unidentified => {
                let problem = Problem::new(ErrorCode::LayerMissing)
                    .detail("LimitLayer found no Identity: put AuthLayer outside of it");
                let response = problem.into_response(request.method());
                return ResponseFuture::refused(response.map(LimitBody::refused));
            }
        };
        let meter = request.extensions().get::<Meter>().cloned();
        let mut charge = None;
        let step = self
            .settings
            .ask(&set, &mut request, meter.as_ref(), &mut charge);
        match step {
            Step::Trip(trip) => {
                // The instance that was polled ready must be the one that is called; a fresh clone takes its
                // place. An answer at once needs no clone: with all that is inside, it is a dozen counters.
                let clone = self.inner.clone();
                let inner = mem::replace(&mut self.inner, clone);
                ResponseFuture::deciding(Waiting {
                    trip,
                    request,
                    inner,
                })
            }
            step => conclude(step, charge, request, &mut self.inner),
        }
    }
}

/// Acts on a decision: calls the service or answers in its place.
pub(super) fn conclude<S, ReqB, B>(
    step: Step,
    charge: Option<Charge>,
    request: Request<ReqB>,
    inner: &mut S,
) -> ResponseFuture<S, ReqB, B>
where
    S: Service<Request<ReqB>, Response = Response<B>>,
{
    if let Step::Refused(refused) = step {
        let caller = request.extensions().get::<Identity>();
        let response = refused.into_response(request.method(), caller);
        return ResponseFuture::refused(response.map(LimitBody::refused));
    }
    ResponseFuture::called(inner.call(request), charge)
}

/// The response of a call that passed: told of its limits where it has some, its body holding the charge.
pub(super) fn answered<B: Body>(
    mut response: Response<B>,
    mut charge: Option<Charge>,
) -> Response<LimitBody<B>> {
    if let Some(charge) = &mut charge {
        charge.answered(&mut response);
    }
    response.map(|body| LimitBody::new(ResponseBody::inner(body), charge))
}
