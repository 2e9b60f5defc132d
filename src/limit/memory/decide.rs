//! One decision over all rules of a call.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{
    super::{
        compile::{CompiledAlgorithm, CompiledRule},
        decision::{Crossing, Decision, Hold, Holds, Outcome, Receipt, RuleState, RuleStates},
        reading::{Reading, Wait},
        store::{LimitCall, LimitStoreError},
        verdict::{self, Said, prices_excess, state},
    },
    CellHandle, MemoryLimits, Place, Prepared,
    cell::{Adjustment, Cell, CellFault, Charge, Look, Moment, Taken},
};

/// How often a call is decided anew when races take units between its look and its charge. Each time some
/// other call has made progress.
const MAX_ATTEMPTS: usize = 16;

/// One rule that applies to the call.
struct Applied<'a> {
    index: usize,
    rule: &'a CompiledRule,
    /// `None` for a limit of zero that needs no count.
    cell: Option<CellHandle<'a>>,
    amount: u64,
}

type AppliedRules<'a> = SmallVec<[Applied<'a>; 4]>;

/// Why an attempt has no answer.
enum Again {
    /// A cell was evicted, or a race took a unit.
    Retry,
    Failed(LimitStoreError),
}

impl From<CellFault> for Again {
    fn from(fault: CellFault) -> Self {
        match fault {
            CellFault::Retired => Self::Retry,
            CellFault::OtherAlgorithm => Self::Failed(LimitStoreError::Corrupt(
                "a count of another algorithm stands under the rule's key".into(),
            )),
        }
    }
}

impl MemoryLimits {
    /// Always answers, in the form that the trait asks for.
    pub(super) fn decide_now(
        &self,
        call: &LimitCall<'_>,
    ) -> Option<Result<Decision, LimitStoreError>> {
        let moment = Moment::of(call);
        // A cell beside the set that was evicted in a race stays evicted: later attempts ask the map.
        let prepared = self.prepared(call.set);
        if let Some(prepared) = prepared
            && call.set.rule_set().traits().counts_by_owner
        {
            // Filled where it stands: a decision is some hundred bytes, and not to be moved about.
            let mut decision = Decision::unlimited();
            if admit_beside(call, &moment, prepared, &mut decision) {
                return Some(Ok(decision));
            }
        }
        Some(self.decide_at_length(call, &moment, prepared))
    }

    #[inline(never)]
    pub(super) fn decide_at_length<'a>(
        &self,
        call: &LimitCall<'a>,
        moment: &Moment,
        mut prepared: Option<&'a Prepared>,
    ) -> Result<Decision, LimitStoreError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let applied = self.applied(call, moment, prepared)?;
            match decide(&applied, moment, attempt >= MAX_ATTEMPTS) {
                Ok(decision) => return Ok(decision),
                Err(Again::Failed(error)) => return Err(error),
                Err(Again::Retry) => prepared = None,
            }
        }
    }

    fn applied<'a>(
        &self,
        call: &LimitCall<'a>,
        moment: &Moment,
        prepared: Option<&'a Prepared>,
    ) -> Result<AppliedRules<'a>, LimitStoreError> {
        let mut applied = AppliedRules::new();
        for (index, rule) in call.set.rules().iter().enumerate() {
            let place = Place {
                index,
                rule,
                owner: call.set.owner(),
                scopes: call.scopes,
            };
            let cell = match rule.compiled() {
                CompiledAlgorithm::Unlimited => continue,
                _ if rule.needs_no_count() => {
                    if !place.applies() {
                        continue;
                    }
                    None
                }
                _ => match self.cell(&place, moment, prepared)? {
                    Some(cell) => Some(cell),
                    None => continue,
                },
            };
            applied.push(Applied {
                index,
                rule,
                cell,
                amount: call.cost.amount(rule.unit()),
            });
        }
        Ok(applied)
    }
}

impl Applied<'_> {
    fn look(&self, moment: &Moment) -> Result<Look, CellFault> {
        match &self.cell {
            Some(cell) => cell.look(self.rule, moment, self.amount),
            None => Ok(nothing_left()),
        }
    }

    fn take(&self, moment: &Moment) -> Result<Taken, CellFault> {
        let force = !self.rule.refuses();
        match &self.cell {
            Some(cell) => cell.take(self.rule, moment, self.amount, force),
            None if force => {
                let Look { reading, wait, .. } = nothing_left();
                Ok(Taken::Charged(Charge {
                    reading,
                    wait,
                    before: 0,
                    amount: 0,
                    period: 0,
                }))
            }
            None => Ok(Taken::Refused(nothing_left())),
        }
    }

    fn state(&self, reading: &Reading, wait: Wait) -> RuleState {
        let state = state(self.index, self.rule, reading, wait);
        if self.cell.is_none() {
            state.over(None)
        } else {
            state
        }
    }
}

const fn nothing_left() -> Look {
    let (reading, wait) = verdict::nothing_left();
    Look { reading, wait }
}

/// Decides the common call without a detour: all its rules count for its owner, in cells that are known
/// already, and none of them refuses.
///
/// False leaves every count as it was, for the long way to decide.
#[inline]
fn admit_beside(
    call: &LimitCall<'_>,
    moment: &Moment,
    prepared: &Prepared,
    decision: &mut Decision,
) -> bool {
    let rules = || std::iter::zip(call.set.rules(), &prepared.cells);
    // One rule alone is looked at and charged in one step.
    if call.set.rules().len() > 1 {
        for (rule, slot) in rules() {
            let amount = call.cost.amount(rule.unit());
            let passes = |cell: &Arc<Cell>| cell.passes(rule, moment, amount);
            if rule.refuses() && !slot.get().is_some_and(passes) {
                return false;
            }
        }
    }
    let mut overage = false;
    // What may have reached a threshold is told when everything is charged.
    let mut high = Vec::new();
    for (index, (rule, slot)) in rules().enumerate() {
        let amount = call.cost.amount(rule.unit());
        let taken = slot
            .get()
            .map(|cell| cell.take(rule, moment, amount, !rule.refuses()));
        let Some(Ok(Taken::Charged(charge))) = taken else {
            for (hold, (rule, slot)) in std::iter::zip(decision.receipt.holds(), rules()) {
                if let Some(cell) = slot.get() {
                    let _ =
                        cell.adjust(rule, moment, hold.period, Adjustment::GiveBack(hold.amount));
                }
            }
            return false;
        };
        let state = state(index, rule, &charge.reading, charge.wait);
        overage |= state.exceeded && prices_excess(rule, amount);
        if state.threshold > 0 && charge.amount > 0 {
            high.push((index, charge));
        }
        decision.states.push(state);
        decision
            .receipt
            .push(Hold::new(index, charge.amount, charge.period));
    }
    decision.outcome = Outcome::Admitted { overage };
    for (index, charge) in high {
        if let Some((rule, slot)) = rules().nth(index)
            && let Some(cell) = slot.get()
        {
            cell.reach(rule, &charge, |threshold| {
                let used = charge.reading.used;
                let crossing = Crossing::new(index, threshold.percent, used, rule.limit());
                decision.crossings.push(crossing);
            });
        }
    }
    true
}

/// Looks at every rule, and charges all of them when none refuses. On the last attempt a rule that a race has
/// used up refuses.
fn decide(
    applied: &[Applied<'_>],
    moment: &Moment,
    is_last_attempt: bool,
) -> Result<Decision, Again> {
    // One rule alone is looked at and charged in one step.
    if applied.len() > 1 {
        let looks = look_at_all(applied, moment)?;
        if is_refused(applied, &looks) {
            return Ok(refuse(applied, &looks));
        }
    }
    let mut charges: SmallVec<[Charge; 4]> = SmallVec::new();
    for rule in applied {
        let fault = match rule.take(moment) {
            Ok(Taken::Charged(charge)) => {
                charges.push(charge);
                continue;
            }
            Ok(Taken::Refused(look)) if applied.len() == 1 => {
                return Ok(refuse(applied, &[look]));
            }
            Ok(Taken::Refused(look)) => {
                give_back(applied, &charges, moment);
                if !is_last_attempt {
                    return Err(Again::Retry);
                }
                let mut looks = look_at_all(applied, moment)?;
                if let Some(stale) = looks.get_mut(charges.len()) {
                    *stale = look;
                }
                return Ok(refuse(applied, &looks));
            }
            Err(fault) => fault,
        };
        give_back(applied, &charges, moment);
        return Err(fault.into());
    }
    Ok(admit(applied, &charges))
}

fn look_at_all(applied: &[Applied<'_>], moment: &Moment) -> Result<SmallVec<[Look; 4]>, CellFault> {
    applied.iter().map(|rule| rule.look(moment)).collect()
}

fn is_refused(applied: &[Applied<'_>], looks: &[Look]) -> bool {
    std::iter::zip(applied, looks).any(|(rule, look)| rule.rule.refuses() && !look.wait.is_zero())
}

/// Undoes the charges of an attempt. A cell that was evicted meanwhile was as good as new.
fn give_back(applied: &[Applied<'_>], charges: &[Charge], moment: &Moment) {
    for (rule, charge) in std::iter::zip(applied, charges) {
        if let Some(cell) = &rule.cell {
            let _ = cell.adjust(
                rule.rule,
                moment,
                charge.period,
                Adjustment::GiveBack(charge.amount),
            );
        }
    }
}

fn refuse(applied: &[Applied<'_>], looks: &[Look]) -> Decision {
    verdict::refused(std::iter::zip(applied, looks).map(|(rule, look)| Said {
        index: rule.index,
        rule: rule.rule,
        amount: rule.amount,
        state: rule.state(&look.reading, look.wait),
        wait: look.wait,
    }))
}

fn admit(applied: &[Applied<'_>], charges: &[Charge]) -> Decision {
    let mut states = RuleStates::new();
    let mut holds = Holds::new();
    let mut crossings = Vec::new();
    let mut overage = false;
    for (rule, charge) in std::iter::zip(applied, charges) {
        let state = rule.state(&charge.reading, charge.wait);
        overage |= state.exceeded && prices_excess(rule.rule, rule.amount);
        states.push(state);
        let Some(cell) = &rule.cell else {
            continue;
        };
        // A rule that took nothing is held too: a settlement may charge it.
        holds.push(Hold::new(rule.index, charge.amount, charge.period));
        if charge.amount > 0 {
            cell.reach(rule.rule, charge, |threshold| {
                crossings.push(Crossing::new(
                    rule.index,
                    threshold.percent,
                    charge.reading.used,
                    rule.rule.limit(),
                ));
            });
        }
    }
    let mut decision = Decision::new(
        Outcome::Admitted { overage },
        states,
        Receipt::new(0, holds),
    );
    decision.crossings = crossings;
    decision
}
