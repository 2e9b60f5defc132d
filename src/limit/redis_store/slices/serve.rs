//! Calls that are answered without a trip.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{
    super::{
        super::{
            compile::{CompiledAlgorithm, CompiledRule},
            decision::{Decision, Hold, Holds, Outcome, Receipt, RuleStates},
            reading::Wait,
            rule::Action,
            store::LimitCall,
            verdict::{self, Said},
        },
        answer::{Applied, uncounted},
        inner::Inner,
    },
    Slices,
    cell::Cell,
    hand::Take,
    landing::Part,
    trip::Trip,
};

/// Whether units of a rule can be taken in advance. Overage is money: which call was above the limit is decided
/// exactly. A log keeps the instant of each call, and a slot is held by a call.
pub(super) fn is_leased(rule: &CompiledRule) -> bool {
    let counts = matches!(
        rule.compiled(),
        CompiledAlgorithm::TokenBucket(_)
            | CompiledAlgorithm::SlidingWindow(_)
            | CompiledAlgorithm::Quota(_)
    );
    counts && rule.rule().action != Action::Overage
}

/// Whether a call can be served without a trip at all: every rule of it is leased, or has no count and refuses
/// nothing.
fn may_be_served(applied: &[Applied<'_>]) -> bool {
    let may_be = |rule: &Applied<'_>| {
        if rule.has_count {
            is_leased(rule.rule)
        } else {
            !rule.rule.refuses()
        }
    };
    applied.iter().all(may_be) && applied.iter().any(|rule| rule.amount > 0)
}

/// Units that a call has taken from a cell.
struct Taken {
    cell: Arc<Cell>,
    amount: u64,
    period: u64,
}

impl Slices {
    /// Decides from what is in hand; `None` when the store has to be asked.
    ///
    /// The units are taken rule by rule, and put back when a later rule lacks them: in between another call may make a
    /// trip that it did not need, and is never refused for it.
    pub(in super::super) fn try_serve(
        &self,
        store: &Arc<Inner>,
        call: &LimitCall<'_>,
        applied: &[Applied<'_>],
    ) -> Option<Decision> {
        if !may_be_served(applied) {
            return None;
        }
        let now = store.now();
        let prepared = store.prepared(call.set);
        let mut taken: SmallVec<[Taken; 3]> = SmallVec::new();
        let mut states = RuleStates::new();
        let mut holds = Holds::new();
        let mut low: SmallVec<[Part; 1]> = SmallVec::new();
        for rule in applied {
            if !rule.has_count {
                states.push(uncounted(rule).state);
                continue;
            }
            let Some(cell) = self.cell(store, &prepared, call, rule) else {
                self.undo(store, &taken, now);
                self.top_up(store, call, low);
                return None;
            };
            let mut hand = cell.hand();
            match hand.take(rule.amount, now) {
                Take::Taken(period) => {
                    holds.push(Hold::new(rule.index, rule.amount, period));
                    states.extend(hand.state(rule.index, rule.rule, Wait::Zero, now));
                    if hand.runs_low(now) {
                        let wanted = hand.claim(now, self.units, self.lease_micros);
                        let since = hand.since;
                        low.push(Part::top_up(rule.index, Arc::clone(&cell), wanted, since));
                    }
                    drop(hand);
                    taken.push(Taken {
                        cell,
                        amount: rule.amount,
                        period,
                    });
                }
                other => {
                    drop(hand);
                    self.undo(store, &taken, now);
                    self.top_up(store, call, low);
                    return match other {
                        Take::Refused(_) => self.refused(store, call, applied, now),
                        _ => None,
                    };
                }
            }
        }
        self.top_up(store, call, low);
        store.metrics.served.increment(1);
        let receipt = Receipt::new(0, holds);
        Some(Decision::new(
            Outcome::Admitted { overage: false },
            states,
            receipt,
        ))
    }

    fn undo(&self, store: &Inner, taken: &[Taken], now: u64) {
        for Taken {
            cell,
            amount,
            period,
        } in taken
        {
            self.put_back(store, cell, *amount, *period, now);
        }
    }

    /// Puts units in hand again, or gives them back where they have no place there.
    pub(super) fn put_back(&self, store: &Inner, cell: &Cell, amount: u64, period: u64, now: u64) {
        if amount > 0 && !cell.hand().put_back(amount, period, now, self.units) {
            cell.give_back(store, &SmallVec::from_slice(&[(amount, period)]));
        }
    }

    fn top_up(&self, store: &Arc<Inner>, call: &LimitCall<'_>, parts: SmallVec<[Part; 1]>) {
        if !parts.is_empty() {
            Trip::new(store, call, parts.into_iter().collect()).begin(None);
        }
    }

    /// The refusal that the store would give, as far as it is known.
    fn refused(
        &self,
        store: &Arc<Inner>,
        call: &LimitCall<'_>,
        applied: &[Applied<'_>],
        now: u64,
    ) -> Option<Decision> {
        let prepared = store.prepared(call.set);
        let mut said: SmallVec<[Said<'_>; 4]> = SmallVec::new();
        for rule in applied {
            if !rule.has_count {
                said.push(uncounted(rule));
                continue;
            }
            let cell = self.cell(store, &prepared, call, rule)?;
            let mut hand = cell.hand();
            let wait = match hand.take(rule.amount, now) {
                Take::Taken(period) => {
                    let is_back = hand.put_back(rule.amount, period, now, u64::MAX);
                    debug_assert!(is_back, "it was there under the same lock");
                    Wait::Zero
                }
                Take::Short => Wait::Zero,
                Take::Refused(wait) => wait,
            };
            said.push(Said {
                index: rule.index,
                rule: rule.rule,
                amount: rule.amount,
                state: hand.state(rule.index, rule.rule, wait, now)?,
                wait,
            });
        }
        // It may have ended in between.
        if said.iter().all(|said| said.wait.is_zero()) {
            return None;
        }
        store.metrics.served.increment(1);
        Some(verdict::refused(said.into_iter()))
    }
}
