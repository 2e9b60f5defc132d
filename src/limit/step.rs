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
    charge::{Charge, Ending, NO_SCOPES, RefusedByLimit},
    compile::CompiledRule,
    cost::Cost,
    decision::{Decision, Outcome},
    headers,
    hook::{LimitDegraded, ThresholdEvent},
    layer::Settings,
    refusal,
    rule::Scope,
    set::{LimitSet, ScopeValues},
    store::{LimitCall, LimitStore, LimitStoreError, OwnedLimitCall},
};
use crate::{
    body::ResponseBody,
    clock::Now,
    error::Problem,
    grpc::{GrpcKind, Watch},
    head::RequestHead,
    identity::Identity,
    meter::Meter,
};

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
    /// The call may pass; its charge is in the place that was given for it.
    Admitted,
    Refused(Box<Refused>),
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
    pub(crate) fn poll_step(
        &mut self,
        cx: &mut Context<'_>,
        charge: &mut Option<Charge>,
    ) -> Poll<Step> {
        let decision = ready!(self.decide.as_mut().poll(cx));
        // The question is there: a trip is not polled again after it has ended.
        let Some(question) = self.question.take() else {
            return Poll::Pending;
        };
        Poll::Ready(match decision {
            Ok(Ok(decision)) => question.decided(decision, charge),
            Ok(Err(error)) => question.failed(&error, false, charge),
            Err(elapsed) => {
                let cause: Box<dyn Error + Send + Sync> = elapsed.into();
                question.failed(&LimitStoreError::Indeterminate(cause), false, charge)
            }
        })
    }
}

impl Settings {
    /// The step before the call: asks whether it may pass under the rules of `set`. The charge of a call that may
    /// is put into `charge`, where it is to stay: it is not to be moved about.
    #[inline]
    pub(crate) fn ask<B>(
        self: &Arc<Self>,
        set: &Arc<LimitSet>,
        request: &mut Request<B>,
        meter: Option<&Meter>,
        charge: &mut Option<Charge>,
    ) -> Step {
        if set.rules().is_empty() {
            self.metrics.not_limited.increment(1);
            return Step::NotLimited;
        }
        let question = Question::new(self, set, request, meter);
        // What is answered at once waits for nobody: the breaker holds trips back.
        match self.store.try_decide(&question.call()) {
            Some(Ok(decision)) => {
                self.breaker.answered();
                question.conclude(decision, None, charge)
            }
            Some(Err(error)) => question.failed(&error, true, charge),
            None if !self.breaker.lets_ask(question.now) => question.without_store(false, charge),
            None => {
                let owned: OwnedLimitCall = question.call().to_owned();
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
    settings: Arc<Settings>,
    set: Arc<LimitSet>,
    scopes: Option<Box<ScopeValues>>,
    cost: Cost,
    meter: Option<Meter>,
    grpc: Option<Watch>,
    now: Now,
}

impl Question {
    #[inline]
    fn new<B>(
        settings: &Arc<Settings>,
        set: &Arc<LimitSet>,
        request: &mut Request<B>,
        meter: Option<&Meter>,
    ) -> Self {
        let now = meter.map_or_else(|| settings.clock.now(), Meter::started);
        let traits = set.rule_set().traits();
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
            None
        } else {
            Some(Box::new(scope_values(settings, set, &head)))
        };
        Self {
            settings: Arc::clone(settings),
            set: Arc::clone(set),
            scopes,
            cost,
            meter,
            grpc: Watch::of(GrpcKind::of_request(request)),
            now,
        }
    }

    fn call(&self) -> LimitCall<'_> {
        let scopes = self.scopes.as_deref().unwrap_or(&NO_SCOPES);
        LimitCall::new(&self.set, scopes, &self.cost, self.now)
    }

    #[inline]
    fn decided(self, decision: Decision, charge: &mut Option<Charge>) -> Step {
        self.settings.breaker.succeeded();
        self.conclude(decision, None, charge)
    }

    #[cold]
    fn failed(
        self,
        error: &LimitStoreError,
        is_at_once: bool,
        charge: &mut Option<Charge>,
    ) -> Step {
        let metrics = &self.settings.metrics;
        let indeterminate = match error {
            LimitStoreError::Unavailable(_) => {
                metrics.unavailable.increment(1);
                false
            }
            LimitStoreError::Indeterminate(_) => {
                metrics.indeterminate.increment(1);
                true
            }
            LimitStoreError::Corrupt(_) => {
                metrics.corrupt.increment(1);
                false
            }
        };
        tracing::debug!(target: "tollgate::limit", error = error as &dyn Error, "no decision");
        // A store that found a foreign value under one key still serves every other.
        if !matches!(error, LimitStoreError::Corrupt(_)) {
            self.settings.breaker.failed(self.now, is_at_once);
        }
        self.without_store(indeterminate, charge)
    }

    #[cold]
    fn without_store(mut self, indeterminate: bool, charge: &mut Option<Charge>) -> Step {
        let settings = &*self.settings;
        settings.metrics.degraded.increment(1);
        let decided = settings.fallback.decide(&self.call());
        let degraded = Some(LimitDegraded { indeterminate });
        match decided {
            None => Step::Refused(Box::new(Refused {
                set: Arc::clone(&self.set),
                problem: refusal::unavailable(),
                degraded,
            })),
            Some((set, decision)) => {
                self.set = set;
                self.conclude(decision, degraded, charge)
            }
        }
    }

    #[inline]
    fn conclude(
        self,
        decision: Decision,
        degraded: Option<LimitDegraded>,
        charge: &mut Option<Charge>,
    ) -> Step {
        let Self {
            settings,
            set,
            scopes,
            cost,
            meter,
            grpc,
            ..
        } = self;
        if !decision.crossings.is_empty() {
            report(&settings, &set, &decision);
        }
        let Outcome::Admitted { overage } = decision.outcome else {
            settings.metrics.refused.increment(1);
            let problem = refusal::problem(&settings, &set, &decision);
            return Step::Refused(Box::new(Refused {
                set,
                problem,
                degraded,
            }));
        };
        if overage {
            settings.metrics.overage.increment(1);
            if let Some(meter) = &meter {
                meter.mark_overage();
            }
        } else {
            settings.metrics.admitted.increment(1);
        }
        let told = headers::told(settings.headers, &set, &decision);
        *charge = Some(Charge {
            settings,
            set,
            scopes,
            cost,
            receipt: decision.receipt,
            told,
            meter,
            degraded,
            ending: Ending::Used,
            running: false,
            grpc,
        });
        Step::Admitted
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
