//! From what each rule of a call says to the call's answer. Pure data.

use std::time::Duration;

use super::{
    compile::CompiledRule,
    decision::{Decision, Outcome, Receipt, RefusalReason, RuleState, RuleStates},
    reading::{Reading, Wait},
    rule::Action,
};

/// What one rule says about a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said<'a> {
    pub(super) index: usize,
    pub(super) rule: &'a CompiledRule,
    pub(super) amount: u64,
    pub(super) state: RuleState,
    pub(super) wait: Wait,
}

#[inline]
pub(super) fn state(index: usize, rule: &CompiledRule, reading: &Reading, wait: Wait) -> RuleState {
    let mut state = RuleState::read(index, rule.limit(), reading, rule.window_micros());
    state.exceeded = !wait.is_zero();
    state.threshold = rule.threshold_at(reading.used);
    state
}

/// Whether a charge of the rule is overage when the rule was above its limit.
#[inline]
pub(super) fn prices_excess(rule: &CompiledRule, amount: u64) -> bool {
    amount > 0 && rule.rule().action == Action::Overage && !rule.rule().shadow
}

/// What a limit of zero says that is decided without a count.
pub(super) const fn nothing_left() -> (Reading, Wait) {
    (Reading::new(0, 0, None), Wait::Forever)
}

/// The answer of a call that some rule refuses, told by the first of the most restrictive: one that never lets
/// it pass before the longest wait before an unknown one.
pub(super) fn refused<'a>(rules: impl Iterator<Item = Said<'a>>) -> Decision {
    let mut states = RuleStates::new();
    let mut worst: Option<Said<'_>> = None;
    for said in rules {
        states.push(said.state);
        if said.rule.refuses()
            && !said.wait.is_zero()
            && worst.is_none_or(|worst| said.wait > worst.wait)
        {
            worst = Some(said);
        }
    }
    let (rule, wait) = worst.map_or((0, Wait::Unknown), |said| (said.index, said.wait));
    let exceeds = worst.is_some_and(|said| said.amount > said.rule.limit());
    let outcome = Outcome::Refused {
        rule,
        reason: if exceeds {
            RefusalReason::ExceedsCapacity
        } else {
            RefusalReason::LimitReached
        },
        retry_after: match wait {
            Wait::Micros(micros) => Some(Duration::from_micros(micros)),
            Wait::Zero | Wait::Unknown | Wait::Forever => None,
        },
    };
    Decision::new(outcome, states, Receipt::default())
}
