//! Calls that make a trip, and bring slices along.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use smallvec::SmallVec;
use tokio::sync::{futures::OwnedNotified, oneshot};

use super::{
    super::{
        super::{
            decision::{Decision, Hold, Holds, Receipt},
            store::{LimitCall, LimitStoreError, OwnedLimitCall, Settlement},
        },
        answer::{Applied, applied},
        inner::{Inner, NotAsked},
    },
    Slices,
    cell::Cell,
    hand::Take,
    landing::{Landing, Part, Parts, refused},
    serve::is_leased,
};
use crate::clock::micros;

/// How long no slice is fetched ahead of need after a failure.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);

/// A trip, which runs in a task of its own: whoever asked may leave, and what was debited is in hand all the same.
pub(super) struct Trip {
    store: Arc<Inner>,
    call: OwnedLimitCall,
    parts: Parts,
    /// Whether the call itself is decided, by all its rules.
    is_call: bool,
    is_under_way: bool,
}

/// A decision on its way to whoever asked. One that nobody takes is undone.
pub(super) struct Answered {
    answer: Option<Result<Decision, LimitStoreError>>,
    store: Arc<Inner>,
    call: OwnedLimitCall,
}

impl Answered {
    fn accept(mut self) -> Option<Result<Decision, LimitStoreError>> {
        self.answer.take()
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        if let Some(Ok(decision)) = &self.answer {
            let call = self.call.as_call();
            self.store
                .settle(&call, &decision.receipt, &Settlement::Cancel);
        }
    }
}

/// What a call does that was not served.
enum Begun {
    /// Some rule's slice is on its way already.
    Wait(Waiting),
    Trip(Parts),
    /// The units have come meanwhile.
    Again,
}

/// A call that waits for a slice.
struct Waiting {
    landed: Pin<Box<OwnedNotified>>,
    cell: Arc<Cell>,
    amount: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut hand = self.cell.hand();
        hand.waiting = hand.waiting.saturating_sub(self.amount);
    }
}

impl Slices {
    pub(in super::super) async fn decide(
        &self,
        store: &Arc<Inner>,
        call: &LimitCall<'_>,
    ) -> Result<Decision, LimitStoreError> {
        let applied = applied(call);
        let refuses_without = |rule: &Applied<'_>| !rule.has_count && rule.rule.refuses();
        let is_leased = |rule: &Applied<'_>| rule.has_count && is_leased(rule.rule);
        if applied.iter().any(refuses_without) || !applied.iter().any(is_leased) {
            return store.decide(call).await;
        }
        // Once for the slice that is on its way: the next trip is the call's own.
        let mut may_wait = true;
        loop {
            if let Some(decision) = self.try_serve(store, call, &applied) {
                return Ok(decision);
            }
            match self.begin(store, call, &applied, may_wait) {
                Begun::Wait(mut waiting) => {
                    waiting.landed.as_mut().await;
                    may_wait = false;
                }
                Begun::Again => {}
                Begun::Trip(parts) => {
                    let decision = travel(store, call, parts).await?;
                    if decision.is_admitted() {
                        return Ok(decision);
                    }
                    // The last units may just have come with a slice.
                    self.all_landed(store, call, &applied).await;
                    let served = self.try_serve(store, call, &applied);
                    let served = served.filter(Decision::is_admitted);
                    return Ok(served.unwrap_or(decision));
                }
            }
        }
    }

    /// Waits for the slices of a call that are on their way.
    async fn all_landed(&self, store: &Arc<Inner>, call: &LimitCall<'_>, applied: &[Applied<'_>]) {
        let prepared = store.prepared(call.set);
        for rule in applied {
            if rule.has_count
                && is_leased(rule.rule)
                && let Some(cell) = self.cell(store, &prepared, call, rule)
            {
                let landed = cell.landed.notified();
                let is_refilling = cell.hand().is_refilling();
                if is_refilling {
                    landed.await;
                }
            }
        }
    }

    /// Takes what is in hand, and claims the slices that a trip brings along.
    fn begin(
        &self,
        store: &Arc<Inner>,
        call: &LimitCall<'_>,
        applied: &[Applied<'_>],
        may_wait: bool,
    ) -> Begun {
        let now = store.now();
        let prepared = store.prepared(call.set);
        let mut trip = Trip::new(store, call, Parts::new());
        let mut is_missing = false;
        for rule in applied {
            if !rule.has_count || !is_leased(rule.rule) {
                // Decided exactly, with the rest.
                is_missing |= rule.has_count;
                continue;
            }
            let Some(cell) = self.cell(store, &prepared, call, rule) else {
                continue;
            };
            // From here on nothing that lands is missed.
            let landed = Arc::clone(&cell.landed).notified_owned();
            let mut hand = cell.hand();
            let lapsed = hand.lapsed(now);
            let covered = match hand.take(rule.amount, now) {
                Take::Taken(period) => Some(period),
                Take::Short | Take::Refused(_) => None,
            };
            is_missing |= covered.is_none();
            if covered.is_none() && hand.is_refilling() && may_wait && rule.amount <= self.units {
                hand.waiting = hand.waiting.saturating_add(rule.amount);
                drop(hand);
                cell.give_back(store, &lapsed);
                return Begun::Wait(Waiting {
                    landed: Box::pin(landed),
                    cell,
                    amount: rule.amount,
                });
            }
            let is_claimed = if covered.is_some() {
                hand.runs_low(now)
            } else {
                !hand.is_refilling() && rule.amount <= self.units
            };
            let wanted = if is_claimed {
                hand.claim(now, self.units, self.lease_micros)
            } else {
                0
            };
            let since = hand.since;
            drop(hand);
            cell.give_back(store, &lapsed);
            trip.parts.push(Part {
                index: rule.index,
                cell,
                amount: rule.amount,
                covered,
                wanted,
                is_claimed,
                since,
            });
        }
        if is_missing {
            Begun::Trip(std::mem::take(&mut trip.parts))
        } else {
            // Dropped, the trip puts everything back.
            Begun::Again
        }
    }
}

async fn travel(
    store: &Arc<Inner>,
    call: &LimitCall<'_>,
    parts: Parts,
) -> Result<Decision, LimitStoreError> {
    let (reply, answer) = oneshot::channel();
    let mut trip = Trip::new(store, call, parts);
    trip.is_call = true;
    trip.begin(Some(reply));
    match answer.await {
        Ok(answered) => answered
            .accept()
            .unwrap_or_else(|| Err(LimitStoreError::Unavailable(NotAsked::Ended.into()))),
        // The task ends with its runtime; what it had sent may have been run.
        Err(gone) => Err(LimitStoreError::Indeterminate(gone.into())),
    }
}

impl Trip {
    pub(super) fn new(store: &Arc<Inner>, call: &LimitCall<'_>, parts: Parts) -> Self {
        Self {
            store: Arc::clone(store),
            call: call.to_owned(),
            parts,
            is_call: false,
            is_under_way: false,
        }
    }

    /// Starts the trip. Outside of a runtime nothing is fetched.
    pub(super) fn begin(mut self, reply: Option<oneshot::Sender<Answered>>) {
        if let Some(slices) = &self.store.slices {
            slices.n_trips.fetch_add(1, Ordering::Relaxed);
            self.is_under_way = true;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(self.run(reply));
        }
    }

    async fn run(mut self, reply: Option<oneshot::Sender<Answered>>) {
        let mut sent = self.store.now();
        let decided = {
            let mut call = self.call.as_call();
            if !self.is_call {
                // The call that began it is decided.
                call.now = self.store.clock.now();
            }
            if let Some((time, _)) = self.store.time_of(&call) {
                sent = sent.min(time);
            }
            let applied = self.applied(&call);
            self.store.decide_applied(&call, &applied).await
        };
        let answer = match decided {
            Ok((decision, time)) => Ok(self.land(decision, sent, time)),
            // Dropped, the trip puts back what was in hand.
            Err(error) => Err(error),
        };
        let Some(reply) = reply else {
            if let Err(error) = answer {
                tracing::debug!(target: "tollgate::redis", error = &error as &dyn std::error::Error, "no slice was fetched");
            }
            return;
        };
        let answered = Answered {
            answer: Some(answer),
            store: Arc::clone(&self.store),
            call: self.call.clone(),
        };
        // Dropped on the way, it is undone.
        drop(reply.send(answered));
    }

    /// The rules that go to the script.
    fn applied<'a>(&self, call: &LimitCall<'a>) -> SmallVec<[Applied<'a>; 4]> {
        let mut rules = applied(call);
        if !self.is_call {
            rules.retain(|rule| self.parts.iter().any(|part| part.index == rule.index));
        }
        for rule in &mut rules {
            if let Some(part) = self.parts.iter().find(|part| part.index == rule.index) {
                rule.wanted = part.wanted;
                rule.is_covered = part.covered.is_some();
                rule.amount = if rule.is_covered { 0 } else { part.amount };
            }
        }
        rules
    }

    /// Puts what the trip has brought in hand; the decision becomes that of the call.
    fn land(&mut self, mut decision: Decision, sent: u64, time: u64) -> Decision {
        let parts = std::mem::take(&mut self.parts);
        let Some(slices) = &self.store.slices else {
            return decision;
        };
        let mut holds: Holds = decision.receipt.holds().into();
        for part in parts {
            let state = decision
                .states
                .iter_mut()
                .find(|state| state.rule == part.index);
            let hold = holds.iter_mut().find(|hold| hold.rule == part.index);
            let charged = hold.as_deref().copied();
            if let (Some(hold), true) = (hold, self.is_call) {
                *hold = match part.covered {
                    Some(period) => Hold::new(part.index, part.amount, period),
                    None => Hold::new(part.index, hold.amount.min(part.amount), hold.period),
                };
            }
            let landing = Landing {
                slices,
                call: &self.call.as_call(),
                sent,
                time,
                refused: refused(&decision.outcome),
            };
            landing.land(&self.store, &part, charged, state);
        }
        let id = decision.receipt.id();
        decision.receipt = Receipt::new(id, holds);
        decision
    }
}

impl Drop for Trip {
    fn drop(&mut self) {
        let Some(slices) = &self.store.slices else {
            return;
        };
        let now = self.store.now();
        for part in std::mem::take(&mut self.parts) {
            if let Some(period) = part.covered {
                slices.put_back(&self.store, &part.cell, part.amount, period, now);
            }
            if part.is_claimed {
                let pause = micros(PAUSE_AFTER_FAILURE);
                part.cell.hand().failed(now.saturating_add(pause));
                part.cell.landed.notify_waiters();
            }
        }
        if self.is_under_way {
            slices.n_trips.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
