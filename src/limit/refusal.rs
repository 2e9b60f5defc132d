//! Refusals as problems.

use http::{HeaderValue, header::RETRY_AFTER};
use serde_json::Value;

use super::{
    decision::{Decision, Outcome, RefusalReason},
    headers,
    layer::Settings,
    rule::Algorithm,
    set::LimitSet,
};
use crate::{
    error::{ErrorCode, Problem},
    plan::CompiledPlan,
};

/// The problem of a refused decision.
#[cold]
pub(super) fn problem(settings: &Settings, set: &LimitSet, decision: &Decision) -> Problem {
    let (rule, reason) = match decision.outcome {
        Outcome::Refused { rule, reason, .. } => (rule, reason),
        // Not asked for a call that was admitted.
        Outcome::Admitted { .. } => (0, RefusalReason::LimitReached),
    };
    let violated = decision.states.iter().filter(|state| state.exceeded);
    let names: Vec<Value> = violated
        .filter_map(|state| set.rules().get(state.rule))
        .filter(|rule| !rule.rule().shadow)
        .map(|rule| Value::from(rule.rule().name()))
        .collect();
    let kind = set.rules().get(rule).map(super::CompiledRule::algorithm);
    let limit = set.rules().get(rule).map(super::CompiledRule::limit);
    let (code, detail) = match (kind, reason) {
        _ if limit == Some(0) => (code_of(kind), "The plan does not allow this"),
        (_, RefusalReason::ExceedsCapacity) => (
            code_of(kind),
            "The call costs more than the limit could ever allow: make it smaller",
        ),
        (Some(Algorithm::Quota { .. }), RefusalReason::LimitReached) => (
            ErrorCode::QuotaExceeded,
            "The plan's quota is used up. Upgrade to continue",
        ),
        (Some(Algorithm::Concurrency { .. }), RefusalReason::LimitReached) => (
            ErrorCode::ConcurrencyLimited,
            "Too many calls are in flight: wait until one has ended",
        ),
        (_, RefusalReason::LimitReached) => (ErrorCode::RateLimited, "Slow down: too many calls"),
    };
    let mut problem = Problem::new(code)
        .detail(detail)
        .with("violated-policies", names);
    if code == ErrorCode::QuotaExceeded {
        problem = problem.status(settings.quota_status);
    }
    if let Some(state) = decision.states.iter().find(|state| state.rule == rule) {
        problem = problem
            .with("limit", state.limit)
            .with("remaining", state.remaining);
    }
    let mut fields = http::HeaderMap::new();
    headers::told(settings.headers, set, decision).write(&mut fields);
    if let Outcome::Refused {
        retry_after: Some(wait),
        ..
    } = decision.outcome
    {
        fields.insert(RETRY_AFTER, headers::wait_seconds(wait).into());
    }
    for (name, value) in &fields {
        problem = problem.header(name.clone(), value.clone());
    }
    problem
}

/// Says which plan's rule refused, and where a tenant can buy more.
pub(super) fn of_plan(problem: Problem, plan: &CompiledPlan) -> Problem {
    let problem = problem.with("plan", plan.name().as_str());
    match plan.upgrade_url() {
        Some(url) if problem.code() == ErrorCode::QuotaExceeded => problem.with("upgrade_url", url),
        _ => problem,
    }
}

fn code_of(kind: Option<&Algorithm>) -> ErrorCode {
    match kind {
        Some(Algorithm::Quota { .. }) => ErrorCode::QuotaExceeded,
        Some(Algorithm::Concurrency { .. }) => ErrorCode::ConcurrencyLimited,
        _ => ErrorCode::RateLimited,
    }
}

/// The problem of a store that gave no answer; says nothing about any quota.
pub(super) fn unavailable() -> Problem {
    Problem::new(ErrorCode::StoreUnavailable)
        .detail("The limits cannot be checked right now: try again shortly")
        .header(RETRY_AFTER, HeaderValue::from(1))
}
