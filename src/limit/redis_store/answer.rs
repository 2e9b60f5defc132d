//! From the numbers that the script answers to a decision. What they mean is computed by the same functions as
//! in every other store, so headers and waits are the same.

use smallvec::SmallVec;

use super::{
    super::{
        compile::{CompiledAlgorithm, CompiledRule},
        decision::{Crossing, Decision, Hold, Holds, Outcome, Receipt, RuleState, RuleStates},
        reading::{Reading, Wait},
        store::LimitCall,
        verdict::{self, Said, prices_excess},
    },
    wire::{Answer, BadAnswer, Values, status},
};
use crate::clock::Timestamp;

/// One rule that applies to a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Applied<'a> {
    pub(super) index: usize,
    pub(super) rule: &'a CompiledRule,
    pub(super) amount: u64,
    /// False for a limit of zero that needs no count.
    pub(super) has_count: bool,
    /// Units to be charged beside those of the call, as far as there are enough.
    pub(super) wanted: u64,
    /// The call's units of this rule are in hand: the rule does not refuse.
    pub(super) is_covered: bool,
}

pub(super) type AppliedRules<'a> = SmallVec<[Applied<'a>; 4]>;

/// The rules that apply to a call, in their order.
pub(super) fn applied<'a>(call: &LimitCall<'a>) -> AppliedRules<'a> {
    let mut applied = AppliedRules::new();
    for (index, rule) in call.set.rules().iter().enumerate() {
        if rule.applies_to(call.scopes) && !matches!(rule.compiled(), CompiledAlgorithm::Unlimited)
        {
            applied.push(Applied {
                index,
                rule,
                amount: call.cost.amount(rule.unit()),
                has_count: !rule.needs_no_count(),
                wanted: 0,
                is_covered: false,
            });
        }
    }
    applied
}

/// Why an answer is no decision.
#[derive(Debug)]
pub(super) enum NoDecision {
    /// A count of the call is not one.
    Corrupt,
    /// The calendar's bounds that were sent are not around the server's time.
    Calendar,
    /// A quota of the call is not there, and may have been lost.
    Missing,
    /// The answer cannot be read.
    Bad(BadAnswer),
}

impl From<BadAnswer> for NoDecision {
    fn from(bad: BadAnswer) -> Self {
        Self::Bad(bad)
    }
}

/// What the script says about one rule.
struct Told {
    passed: bool,
    charged: u64,
    percents: SmallVec<[u8; 3]>,
    reading: Reading,
    wait: Wait,
    period: u64,
}

/// The decision on a call whose rules all need no count.
pub(super) fn without_trip(applied: &[Applied<'_>]) -> Decision {
    if applied.iter().any(|rule| rule.rule.refuses()) {
        return verdict::refused(applied.iter().map(uncounted));
    }
    let mut decision = Decision::unlimited();
    let mut overage = false;
    for said in applied.iter().map(uncounted) {
        overage |= prices_excess(said.rule, said.amount);
        decision.states.push(said.state);
    }
    decision.outcome = Outcome::Admitted { overage };
    decision
}

pub(super) fn uncounted<'a>(rule: &Applied<'a>) -> Said<'a> {
    let (reading, wait) = verdict::nothing_left();
    Said {
        index: rule.index,
        rule: rule.rule,
        amount: rule.amount,
        state: verdict::state(rule.index, rule.rule, &reading, wait).over(None),
        wait,
    }
}

/// The decision that an answer tells.
pub(super) fn decision(
    applied: &[Applied<'_>],
    answer: &Answer,
    time: (u64, u64),
    receipt: u128,
) -> Result<Decision, NoDecision> {
    let mut values = Values::new(&answer.values);
    let is_refused = match values.signed()? {
        status::ADMITTED => false,
        status::REFUSED => true,
        status::CORRUPT => return Err(NoDecision::Corrupt),
        status::CALENDAR => return Err(NoDecision::Calendar),
        status::MISSING => return Err(NoDecision::Missing),
        _ => return Err(BadAnswer.into()),
    };
    let mut told: SmallVec<[(Applied<'_>, Option<Told>); 4]> = SmallVec::new();
    for rule in applied {
        let says = rule.has_count.then(|| read(rule, &mut values, time));
        told.push((*rule, says.transpose()?));
    }
    if is_refused {
        return Ok(verdict::refused(told.iter().map(
            |(rule, told)| match told {
                Some(told) => Said {
                    index: rule.index,
                    rule: rule.rule,
                    amount: rule.amount,
                    state: verdict::state(rule.index, rule.rule, &told.reading, told.wait),
                    wait: told.wait,
                },
                None => uncounted(rule),
            },
        )));
    }
    Ok(admitted(&told, receipt))
}

fn admitted(told: &[(Applied<'_>, Option<Told>)], receipt: u128) -> Decision {
    let mut states = RuleStates::new();
    let mut holds = Holds::new();
    let mut crossings = Vec::new();
    let mut overage = false;
    for (rule, told) in told {
        let state = match told {
            Some(told) => {
                holds.push(Hold::new(rule.index, told.charged, told.period));
                crossings.extend(told.percents.iter().map(|percent| {
                    Crossing::new(rule.index, *percent, told.reading.used, rule.rule.limit())
                }));
                charged_state(rule, told)
            }
            None => uncounted(rule).state,
        };
        overage |= state.exceeded && prices_excess(rule.rule, rule.amount);
        states.push(state);
    }
    let receipt = Receipt::new(receipt, holds);
    let mut decision = Decision::new(Outcome::Admitted { overage }, states, receipt);
    decision.crossings = crossings;
    decision
}

fn charged_state(rule: &Applied<'_>, told: &Told) -> RuleState {
    // The state is that after the charge; whether the rule was above its limit was asked before it.
    let mut state = verdict::state(rule.index, rule.rule, &told.reading, Wait::Zero);
    state.exceeded = !told.passed;
    state
}

fn read(
    rule: &Applied<'_>,
    values: &mut Values<'_>,
    (now, wall): (u64, u64),
) -> Result<Told, BadAnswer> {
    let passed = values.count()? == 1;
    let charged = values.count()?;
    let mut percents = SmallVec::new();
    for _ in 0..values.count()?.min(100) {
        percents.push(u8::try_from(values.count()?).map_err(|_| BadAnswer)?);
    }
    let amount = rule.amount;
    let (reading, wait, period) = match rule.rule.compiled() {
        CompiledAlgorithm::TokenBucket(bucket) => {
            let level = values.signed()?;
            let at = values.count()?;
            let deficit = i128::from(bucket.capacity()) - i128::from(level);
            let deficit = u64::try_from(deficit).map_err(|_| BadAnswer)?;
            (bucket.read(deficit), bucket.wait(deficit, amount), at)
        }
        CompiledAlgorithm::SlidingWindow(window) => {
            let newest = values.count()?;
            let mut counts: SmallVec<[u64; 12]> = SmallVec::new();
            for _ in 0..values.count()?.min(window.cells() + 1) {
                counts.push(values.count()?);
            }
            let total = counts.iter().sum();
            let count = |cell: u64| {
                let age = newest
                    .checked_sub(cell)
                    .and_then(|age| usize::try_from(age).ok());
                age.and_then(|age| counts.get(age)).copied().unwrap_or(0)
            };
            (
                window.read(newest, now, total, count),
                window.wait(newest, now, total, amount, count),
                newest,
            )
        }
        CompiledAlgorithm::SlidingLog(log) => {
            let (at, used) = (values.count()?, values.count()?);
            // The script says which entry frees enough: for this call, and for one unit more than is left.
            let frees = |entry: u64| (entry > 0).then_some((entry, u64::MAX)).into_iter();
            let (for_call, for_one_more) = (values.count()?, values.count()?);
            (
                log.read(now, used, frees(for_one_more)),
                log.wait(now, used, amount, frees(for_call)),
                at,
            )
        }
        CompiledAlgorithm::Quota(quota) => {
            let (start, end, used) = (values.count()?, values.count()?, values.count()?);
            let (wall, last) = (
                Timestamp::from_unix_micros(wall),
                Timestamp::from_unix_micros(end),
            );
            (
                quota.read(used, wall, last).over(end.saturating_sub(start)),
                quota.wait(used, amount, wall, last),
                start,
            )
        }
        CompiledAlgorithm::Concurrency(gauge) => {
            let used = values.count()?;
            (gauge.read(used), gauge.wait(used, amount), 0)
        }
        CompiledAlgorithm::Unlimited => return Err(BadAnswer),
    };
    Ok(Told {
        passed,
        charged,
        percents,
        reading,
        wait,
        period,
    })
}
