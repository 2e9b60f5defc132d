//! The step before a limited call: a question, and its answer.

use std::{
    error::Error,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Method, Request, Response, header::CONTENT_LENGTH};
use smallvec::SmallVec;
use tokio::time::Timeout;

use super::{
    charge::{Charge, Ending, RefusedByLimit},
    compile::CompiledRule,
    cost::Cost,
    decision::Decision,
    hook::{LimitDegraded, ThresholdEvent},
    layer::Settings,
    refusal,
    rule::Scope,
    set::{LimitSet, ScopeValues},
    store::{LimitCall, LimitStore, LimitStoreError, OwnedLimitCall},
};
use crate::{
    body::ResponseBody, clock::Now, error::Problem, grpc::Watch, head::RequestHead,
    identity::Identity, meter::Meter,
};

/// What is to be done with a call.
pub(crate) enum Verdict {
    Admitted(Box<Charge>),
    Refused(Box<Refused>),
}

/// A call that the limit answers in place of the service.
pub(crate) struct Refused {
    set: Arc<LimitSet>,
    problem: Problem,
    degraded: Option<LimitDegraded>,
}

impl Refused {
    /// The answer, which names the plan where the rules were those of the caller's plan.
    pub(crate) fn into_response<B>(
        self,
        method: &Method,
        caller: Option<&Identity>,
    ) -> Response<ResponseBody<B>> {
        let Self {
            set,
            problem,
            degraded,
        } = self;
        let problem = match caller {
            Some(caller) if Arc::ptr_eq(caller.limits(), &set) => {
                refusal::of_plan(problem, caller.plan())
            }
            _ => problem,
        };
        let mut response = problem.into_response(method);
        response.extensions_mut().insert(RefusedByLimit);
        if let Some(degraded) = degraded {
            response.extensions_mut().insert(degraded);
        }
        response
    }
}

/// What the limit says to a call.
pub(crate) enum Step {
    /// No rule counts the call.
    NotLimited,
    Decided(Verdict),
    Trip(Trip),
}

type Decide = Pin<Box<dyn Future<Output = Result<Decision, LimitStoreError>> + Send>>;

/// A decision that is on its way.
pub(crate) struct Trip {
    decide: Pin<Box<Timeout<Decide>>>,
    question: Option<Question>,
}

impl Trip {
    /// What was decided, by the store or in its place.
    pub(crate) fn poll_verdict(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        let decision = ready!(self.decide.as_mut().poll(cx));
        // The question is there: a trip is not polled again after it has ended.
        let Some(question) = self.question.take() else {
            return Poll::Pending;
        };
        Poll::Ready(match decision {
            Ok(Ok(decision)) => question.decided(decision),
            Ok(Err(error)) => question.failed(&error),
            Err(elapsed) => {
                let cause: Box<dyn Error + Send + Sync> = elapsed.into();
                question.failed(&LimitStoreError::Indeterminate(cause))
            }
        })
    }
}

impl Settings {
    /// The step before the call: asks whether it may pass under the rules of `set`.
    pub(crate) fn ask<B>(
        self: &Arc<Self>,
        set: Arc<LimitSet>,
        request: &mut Request<B>,
        meter: Option<&Meter>,
    ) -> Step {
        if set.rules().is_empty() {
            self.metrics.not_limited.increment(1);
            return Step::NotLimited;
        }
        let question = Question::new(self, set, request, meter);
        if !self.breaker.lets_ask(question.now) {
            return Step::Decided(question.without_store(false));
        }
        let call = question.call();
        match self.store.try_decide(&call) {
            Some(Ok(decision)) => Step::Decided(question.decided(decision)),
            Some(Err(error)) => Step::Decided(question.failed(&error)),
            None => {
                let owned: OwnedLimitCall = call.to_owned();
                let decide = Arc::clone(&self.store).decide(owned);
                Step::Trip(Trip {
                    decide: Box::pin(tokio::time::timeout(self.deadline, decide)),
                    question: Some(question),
                })
            }
        }
    }
}

/// One call, ready to be decided.
struct Question {
    charge: Box<Charge>,
    now: Now,
}

impl Question {
    fn new<B>(
        settings: &Arc<Settings>,
        set: Arc<LimitSet>,
        request: &mut Request<B>,
        meter: Option<&Meter>,
    ) -> Self {
        let now = meter.map_or_else(|| settings.clock.now(), Meter::started);
        let traits = *set.rule_set().traits();
        let mut meter = meter.cloned();
        if meter.is_none() && (traits.counts_custom || traits.counts_bytes || traits.holds_slots) {
            // Without a meter layer a handler still needs a way to say what it used, and for how long.
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
            running: false,
            grpc: Watch::of(request),
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

    fn decided(self, decision: Decision) -> Verdict {
        self.charge.settings.breaker.succeeded();
        self.verdict(decision)
    }

    fn failed(self, error: &LimitStoreError) -> Verdict {
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
        tracing::debug!(target: "tollgate::limit", error = error as &dyn Error, "no decision");
        // A store that found a foreign value under one key still serves every other.
        if !matches!(error, LimitStoreError::Corrupt(_)) {
            settings.breaker.failed(self.now);
        }
        self.without_store(indeterminate)
    }

    fn without_store(mut self, indeterminate: bool) -> Verdict {
        let settings = &*self.charge.settings;
        settings.metrics.degraded.increment(1);
        let decided = settings.fallback.decide(&self.call());
        let degraded = Some(LimitDegraded { indeterminate });
        self.charge.degraded = degraded;
        match decided {
            None => Verdict::Refused(Box::new(Refused {
                set: Arc::clone(&self.charge.set),
                problem: refusal::unavailable(),
                degraded,
            })),
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
            return Verdict::Refused(Box::new(Refused {
                set: Arc::clone(set),
                problem,
                degraded: *degraded,
            }));
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
