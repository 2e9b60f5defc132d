//! The steps of a call before the service, in their order.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{HeaderValue, Method, Request, Response};

use super::held::Held;
use crate::{
    auth::CredentialSource,
    body::ResponseBody,
    error::{Problem, ProblemLayer, RenderError, RequestFacts},
    head::{Fields, RequestHead},
    identity::{
        AuthLayer, Caller, Identity, IdentityLookup, PublicPath, TenantLayer, Verdict as Who,
    },
    limit::{ByIdentity, Charge, EveryCall, LimitLayer, Refused, Step, Trip},
    meter::{Meter, MeterLayer},
    request_id::{RequestIdLayer, TrustInbound},
    route::RouteOf,
    span::SpanLayer,
    tenant::CURRENT,
};

/// The layers of which the gate is made: it takes their settings and their steps, and nests no service.
#[derive(Debug)]
pub(super) struct Steps {
    pub(super) request_id: RequestIdLayer<dyn TrustInbound>,
    pub(super) span: SpanLayer<Arc<dyn RouteOf>>,
    pub(super) problems: ProblemLayer<dyn RenderError>,
    pub(super) meter: MeterLayer<Arc<dyn RouteOf>>,
    pub(super) auth: AuthLayer,
    pub(super) tenant: TenantLayer,
    pub(super) ceiling: LimitLayer<EveryCall>,
    pub(super) limits: LimitLayer<ByIdentity>,
    /// Whether the request carries identity and meter to the service.
    pub(super) extensions: bool,
}

/// A call between its arrival and the service.
pub(super) struct Arrival {
    pub(super) held: Held,
    /// What the answer tells of the tenant's access.
    pub(super) mark: Option<HeaderValue>,
    meter: Meter,
    identity: Option<Identity>,
}

/// What comes next.
pub(super) enum Next {
    /// The service.
    Service,
    /// The end of a trip, and what comes after it.
    Trip(Pending),
    /// An answer in place of the service's.
    Refused(Refusal),
}

/// A step that waits for a store.
pub(super) enum Pending {
    Identity(IdentityLookup, Caller),
    Ceiling(Trip),
    Limits(Trip),
}

/// Why the service is not called.
pub(super) enum Refusal {
    Problem(Box<Problem>),
    Limit(Box<Refused>),
}

impl Refusal {
    pub(super) fn into_response<B>(
        self,
        method: &Method,
        arrival: &Arrival,
    ) -> Response<ResponseBody<B>> {
        match self {
            Self::Problem(problem) => problem.into_response(method),
            Self::Limit(refused) => refused.into_response(method, arrival.identity.as_ref()),
        }
    }
}

impl Steps {
    /// Takes down what is kept of a request, gives it its id and begins to meter it, but where an outer layer of
    /// ours does.
    #[inline]
    pub(super) fn arrive<Q>(&self, request: &mut Request<Q>) -> (RequestFacts, Arrival) {
        let head = RequestHead::from(&*request);
        let mut fields = Fields::read(head.headers());
        let decided = self.request_id.decide(&head, &fields);
        fields.request_id = decided.id();
        let facts = RequestFacts::of(head.method(), &fields, fields.request_id.cloned());
        let outer = head.extensions().get::<Meter>();
        let (guard, meter) = if let Some(outer) = outer.filter(|outer| outer.reports()) {
            (None, outer.clone())
        } else {
            let mut guard = self.meter.shared.begin(head.method(), &fields);
            guard.enter();
            let meter = guard.meter().clone();
            (Some(guard), meter)
        };
        decided.write(request.headers_mut());
        if self.extensions && guard.is_some() {
            request.extensions_mut().insert(meter.clone());
        }
        let arrival = Arrival {
            held: Held::metered(guard),
            mark: None,
            meter,
            identity: None,
        };
        (facts, arrival)
    }

    /// From the beginning to the service, or to a trip or a refusal on the way.
    pub(super) fn walk<Q>(&self, request: &mut Request<Q>, arrival: &mut Arrival) -> Next {
        if let Some(guard) = arrival.held.guard() {
            guard.find_route(&self.meter.route_of, request);
            guard.find_country(request);
        }
        let now = arrival.meter.started();
        match self.auth.settings.judge(&RequestHead::from(&*request), now) {
            Who::Known(identity, source) => self.known(request, arrival, identity, source),
            Who::Lookup(lookup, caller) => Next::Trip(Pending::Identity(lookup, caller)),
            Who::Public(mark) => {
                self.auth.settings.admit_public(request, mark);
                self.ceiling(request, arrival, Some(mark))
            }
            Who::Refused(problem) => Next::Refused(Refusal::Problem(problem)),
        }
    }

    /// From the end of a trip on.
    pub(super) fn resume<Q>(
        &self,
        pending: &mut Pending,
        request: &mut Request<Q>,
        arrival: &mut Arrival,
        cx: &mut Context<'_>,
    ) -> Poll<Next> {
        Poll::Ready(match pending {
            Pending::Identity(lookup, caller) => {
                let found = ready!(lookup.as_mut().poll(cx));
                match self.auth.settings.conclude(found, caller) {
                    Ok(identity) => self.known(request, arrival, identity, caller.source),
                    Err(problem) => Next::Refused(Refusal::Problem(problem)),
                }
            }
            Pending::Ceiling(trip) => {
                let mut charge = None;
                let step = ready!(trip.poll_step(cx, &mut charge));
                self.after_ceiling(step, charge, request, arrival)
            }
            Pending::Limits(trip) => {
                let step = ready!(trip.poll_step(cx, arrival.held.limits()));
                after_limits(step)
            }
        })
    }

    fn known<Q>(
        &self,
        request: &mut Request<Q>,
        arrival: &mut Arrival,
        identity: Identity,
        source: Option<CredentialSource>,
    ) -> Next {
        let auth = &self.auth.settings;
        auth.admit(request, &identity, source, Some(&arrival.meter));
        if self.extensions {
            request.extensions_mut().insert(identity.clone());
        }
        let now = arrival.meter.started();
        let head = RequestHead::from(&*request);
        match self.tenant.rules.judge(&identity, &head, now) {
            Ok(mark) => arrival.mark = mark,
            Err(problem) => return Next::Refused(Refusal::Problem(problem)),
        }
        arrival.identity = Some(identity);
        self.ceiling(request, arrival, None)
    }

    fn ceiling<Q>(
        &self,
        request: &mut Request<Q>,
        arrival: &mut Arrival,
        public: Option<PublicPath>,
    ) -> Next {
        let set = self.ceiling.find.set(public);
        let Some(set) = set.filter(|set| !set.rules().is_empty()) else {
            return self.limits(request, arrival);
        };
        let (settings, meter) = (&self.ceiling.settings, Some(&arrival.meter));
        let mut charge = None;
        let ask = || settings.ask(set, request, meter, &mut charge);
        let step = self.in_scope(arrival.identity.as_ref(), ask);
        self.after_ceiling(step, charge, request, arrival)
    }

    fn after_ceiling<Q>(
        &self,
        step: Step,
        charge: Option<Charge>,
        request: &mut Request<Q>,
        arrival: &mut Arrival,
    ) -> Next {
        match step {
            Step::NotLimited | Step::Admitted => {
                *arrival.held.ceiling() = charge.map(Box::new);
                self.limits(request, arrival)
            }
            Step::Refused(refused) => Next::Refused(Refusal::Limit(refused)),
            Step::Trip(trip) => Next::Trip(Pending::Ceiling(trip)),
        }
    }

    #[inline]
    fn limits<Q>(&self, request: &mut Request<Q>, arrival: &mut Arrival) -> Next {
        let Arrival {
            held,
            meter,
            identity,
            ..
        } = arrival;
        let Some(identity) = identity else {
            return Next::Service;
        };
        let settings = &self.limits.settings;
        let set = identity.limits();
        let ask = || settings.ask(set, request, Some(meter), held.limits());
        after_limits(self.in_scope(Some(identity), ask))
    }

    /// Runs hooks and the service with the tenant as the task's own, where that is on.
    pub(super) fn in_scope<T>(&self, identity: Option<&Identity>, run: impl FnOnce() -> T) -> T {
        match identity {
            Some(identity) if self.tenant.rules.task_local => {
                CURRENT.sync_scope(identity.tenant().clone(), run)
            }
            _ => run(),
        }
    }
}

impl Arrival {
    /// Takes the arrival to another place; its meter stays known here.
    pub(super) fn take(&mut self) -> Self {
        Self {
            held: self.held.take(),
            mark: self.mark.take(),
            meter: self.meter.clone(),
            identity: self.identity.take(),
        }
    }

    /// The tenant that is to be the task's own while the service runs.
    pub(super) fn scope(&self, steps: &Steps) -> Option<crate::tenant::Tenant> {
        let identity = self.identity.as_ref()?;
        steps
            .tenant
            .rules
            .task_local
            .then(|| identity.tenant().clone())
    }
}

fn after_limits(step: Step) -> Next {
    match step {
        Step::NotLimited | Step::Admitted => Next::Service,
        Step::Refused(refused) => Next::Refused(Refusal::Limit(refused)),
        Step::Trip(trip) => Next::Trip(Pending::Limits(trip)),
    }
}
