use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response, header::CONTENT_LENGTH};
use smallvec::SmallVec;
use tower_service::Service;

use super::{
    charge::{Charge, Ending, LimitBody, RefusedByLimit},
    compile::CompiledRule,
    cost::Cost,
    decision::Decision,
    future::{ResponseFuture, Waiting},
    hook::{LimitDegraded, ThresholdEvent},
    layer::Settings,
    refusal,
    rule::Scope,
    set::{LimitSet, ScopeValues},
    store::{LimitCall, LimitStore, LimitStoreError, OwnedLimitCall},
    subject::{FindSubject, Subject},
};
use crate::{
    body::ResponseBody,
    clock::Now,
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
{
    type Response = Response<LimitBody<B>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqB, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut request: Request<ReqB>) -> Self::Future {
        let head = RequestHead::from(&request);
        let set = match self.find.subject(&head) {
            Subject::Limited(set) if !set.rules().is_empty() => set,
            Subject::Limited(_) | Subject::NotLimited => {
                self.settings.metrics.not_limited.increment(1);
                return ResponseFuture::passed(self.inner.call(request));
            }
            Subject::Unidentified => {
                let problem = Problem::new(ErrorCode::LayerMissing)
                    .detail("LimitLayer found no Identity: put AuthLayer outside of it");
                return ResponseFuture::refused(refused(problem, &request));
            }
        };
        let question = Question::new(&self.settings, set, &mut request);
        if !self.settings.breaker.lets_ask(question.now) {
            return conclude(question.without_store(false), request, &mut self.inner);
        }
        let call = question.call();
        match self.settings.store.try_decide(&call) {
            Some(Ok(decision)) => conclude(question.decided(decision), request, &mut self.inner),
            Some(Err(error)) => conclude(question.failed(&error), request, &mut self.inner),
            None => {
                let owned: OwnedLimitCall = call.to_owned();
                let decide = Arc::clone(&self.settings.store).decide(owned);
                let decide = tokio::time::timeout(self.settings.deadline, decide);
                // The instance that was polled ready must be the one that is called; a fresh clone takes its
                // place. An answer at once needs no clone: with all that is inside, it is a dozen counters.
                let clone = self.inner.clone();
                let inner = mem::replace(&mut self.inner, clone);
                ResponseFuture::deciding(Waiting {
                    decide: Box::pin(decide),
                    question,
                    request,
                    inner,
                })
            }
        }
    }
}

/// Acts on a verdict: calls the service or answers in its place.
pub(super) fn conclude<S, ReqB, B>(
    verdict: Verdict,
    request: Request<ReqB>,
    inner: &mut S,
) -> ResponseFuture<S, ReqB, B>
where
    S: Service<Request<ReqB>, Response = Response<B>>,
{
    match verdict {
        Verdict::Admitted(charge) => {
            if charge.is_overage()
                && let Some(meter) = request.extensions().get::<Meter>()
            {
                meter.mark_overage();
            }
            ResponseFuture::called(inner.call(request), charge)
        }
        Verdict::Refused {
            set,
            problem,
            degraded,
        } => {
            let problem = match request.extensions().get::<Identity>() {
                Some(caller) if Arc::ptr_eq(caller.limits(), &set) => {
                    refusal::of_plan(*problem, caller.plan())
                }
                _ => *problem,
            };
            let mut response = refused(problem, &request);
            response.extensions_mut().insert(RefusedByLimit);
            if let Some(degraded) = degraded {
                response.extensions_mut().insert(degraded);
            }
            ResponseFuture::refused(response)
        }
    }
}

fn refused<ReqB, B>(problem: Problem, request: &Request<ReqB>) -> Response<LimitBody<B>> {
    problem
        .into_response(request.method())
        .map(|body: ResponseBody<B>| LimitBody::new(body, None))
}

/// What is to be done with a call.
pub(super) enum Verdict {
    Admitted(Box<Charge>),
    Refused {
        set: Arc<LimitSet>,
        problem: Box<Problem>,
        degraded: Option<LimitDegraded>,
    },
}

/// One call, ready to be decided.
pub(super) struct Question {
    charge: Box<Charge>,
    pub(super) now: Now,
}

impl Question {
    fn new<B>(settings: &Arc<Settings>, set: Arc<LimitSet>, request: &mut Request<B>) -> Self {
        let meter = request.extensions().get::<Meter>();
        let now = meter.map_or_else(|| settings.clock.now(), Meter::started);
        let traits = *set.rule_set().traits();
        let mut meter = meter.filter(|_| traits.counts_custom).cloned();
        if meter.is_none() && traits.counts_custom {
            // Without a meter layer a handler still needs a way to say what it used.
            let detached = Meter::detached(now);
            request.extensions_mut().insert(detached.clone());
            meter = Some(detached);
        }
        let head = RequestHead::from(&*request);
        let cost = match &settings.cost {
            Some(hook) => hook.0.cost_of(&head),
            None if traits.counts_bytes => default_cost(&head),
            None => Cost::default(),
        };
        let scopes = if traits.counts_by_owner {
            ScopeValues::default()
        } else {
            scope_values(settings, &set, &head)
        };
        let charge = Charge {
            settings: Arc::clone(settings),
            set,
            scopes,
            cost,
            decision: Decision::unlimited(),
            meter,
            degraded: None,
            ending: Ending::NotAdmitted,
        };
        Self {
            charge: Box::new(charge),
            now,
        }
    }

    fn call(&self) -> LimitCall<'_> {
        let Charge {
            set, scopes, cost, ..
        } = &*self.charge;
        LimitCall::new(set, scopes, cost, self.now)
    }

    pub(super) fn decided(self, decision: Decision) -> Verdict {
        self.charge.settings.breaker.succeeded();
        self.verdict(decision)
    }

    pub(super) fn failed(self, error: &LimitStoreError) -> Verdict {
        let settings = &*self.charge.settings;
        let indeterminate = match error {
            LimitStoreError::Unavailable(_) => {
                settings.metrics.unavailable.increment(1);
                false
            }
            LimitStoreError::Indeterminate(_) => {
                settings.metrics.indeterminate.increment(1);
                true
            }
            LimitStoreError::Corrupt(_) => {
                settings.metrics.corrupt.increment(1);
                false
            }
        };
        tracing::debug!(target: "tollgate::limit", error = error as &dyn std::error::Error, "no decision");
        settings.breaker.failed(self.now);
        self.without_store(indeterminate)
    }

    fn without_store(mut self, indeterminate: bool) -> Verdict {
        let settings = &*self.charge.settings;
        settings.metrics.degraded.increment(1);
        let decided = settings.fallback.decide(&self.call());
        let degraded = Some(LimitDegraded { indeterminate });
        self.charge.degraded = degraded;
        match decided {
            None => Verdict::Refused {
                set: Arc::clone(&self.charge.set),
                problem: Box::new(refusal::unavailable()),
                degraded,
            },
            Some((set, decision)) => {
                self.charge.set = set;
                self.verdict(decision)
            }
        }
    }

    fn verdict(self, decision: Decision) -> Verdict {
        let Self { mut charge, .. } = self;
        charge.decision = decision;
        let Charge {
            settings,
            set,
            decision,
            degraded,
            ..
        } = &*charge;
        report(settings, set, decision);
        if let Some(problem) = refusal::problem(settings, set, decision) {
            settings.metrics.refused.increment(1);
            return Verdict::Refused {
                set: Arc::clone(set),
                problem: Box::new(problem),
                degraded: *degraded,
            };
        }
        if charge.is_overage() {
            settings.metrics.overage.increment(1);
        } else {
            settings.metrics.admitted.increment(1);
        }
        charge.ending = Ending::Used;
        Verdict::Admitted(charge)
    }
}

fn report(settings: &Settings, set: &LimitSet, decision: &Decision) {
    for &crossing in &decision.crossings {
        let Some(rule) = set.rules().get(crossing.rule) else {
            continue;
        };
        let event = ThresholdEvent {
            tenant: set.owner().tenant.clone(),
            rule: Arc::clone(&rule.rule().name),
            crossing,
        };
        let sink = Arc::clone(&settings.thresholds);
        // Without a runtime there is nobody to run the sink; the answer's header still warns.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { sink.threshold_reached(event).await });
        }
    }
}

fn default_cost(head: &RequestHead<'_>) -> Cost {
    let length = head
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    match length.and_then(|text| text.parse().ok()) {
        Some(bytes) => Cost::default().bytes(bytes),
        None => Cost::default(),
    }
}

/// Only what the rules ask for: most have no scope but the owner's.
fn scope_values(settings: &Settings, set: &LimitSet, head: &RequestHead<'_>) -> ScopeValues {
    let mut values = ScopeValues {
        route: None,
        address: None,
        custom: SmallVec::new(),
    };
    let asks_route = |rule: &CompiledRule| rule.route().is_some() || *rule.scope() == Scope::Route;
    if set.rules().iter().any(asks_route) {
        let route = settings.route_of.0.route_of(head);
        values.route = route.map(|route| route.to_shared());
    }
    for rule in set.rules() {
        match &rule.rule().scope {
            Scope::Tenant | Scope::Key | Scope::Route => {}
            Scope::Address => {
                if values.address.is_none() {
                    values.address = settings.client_addr.0.client_addr(head);
                    if values.address.is_none() {
                        settings.told.no_address();
                    }
                }
            }
            Scope::Custom(name) => {
                let known = values.custom.iter().any(|(known, _)| known == name);
                let hook = settings
                    .scopes
                    .iter()
                    .find(|(registered, _)| registered == name);
                if hook.is_none() {
                    settings.told.no_hook(name);
                }
                if let (false, Some((name, hook))) = (known, hook)
                    && let Some(value) = hook.0.limit_key(head)
                {
                    values.custom.push((Arc::clone(name), value));
                }
            }
        }
    }
    values
}

/// The response of a call that passed: told of its limits where it has some, its body holding the charge.
pub(super) fn answered<B>(
    mut response: Response<B>,
    mut charge: Option<Box<Charge>>,
) -> Response<LimitBody<B>> {
    if let Some(charge) = &mut charge {
        charge.observe(&mut response);
        if let Some(degraded) = charge.degraded {
            response.extensions_mut().insert(degraded);
        }
    }
    response.map(|body| LimitBody::new(ResponseBody::inner(body), charge))
}
