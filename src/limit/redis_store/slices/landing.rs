//! What a trip brings, put in hand.

use std::{sync::Arc, time::Duration};

use smallvec::SmallVec;

use super::{
    super::{
        super::{
            compile::CompiledAlgorithm,
            decision::{Hold, Outcome, RuleState},
            store::LimitCall,
        },
        inner::Inner,
    },
    Slices,
    cell::Cell,
    hand::{Parcel, Refusal, Seen, Since},
};
use crate::clock::micros;

/// One leased rule of a trip.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) index: usize,
    pub(super) cell: Arc<Cell>,
    /// What the call takes of the rule.
    pub(super) amount: u64,
    /// The units are in hand already, debited in this period; else the trip charges them.
    pub(super) covered: Option<u64>,
    /// The units to be brought along.
    pub(super) wanted: u64,
    /// This trip alone brings a slice for the cell.
    pub(super) is_claimed: bool,
    pub(super) since: Since,
}

impl Part {
    /// A slice ahead of need: no call takes anything.
    pub(super) const fn top_up(index: usize, cell: Arc<Cell>, wanted: u64, since: Since) -> Self {
        Self {
            index,
            cell,
            amount: 0,
            covered: Some(0),
            wanted,
            is_claimed: true,
            since,
        }
    }
}

pub(super) type Parts = SmallVec<[Part; 3]>;

/// The rule that refused, and for how long: `None` for ever.
pub(super) fn refused(outcome: &Outcome) -> Option<(usize, Option<Duration>)> {
    match outcome {
        Outcome::Refused {
            rule, retry_after, ..
        } => Some((*rule, *retry_after)),
        Outcome::Admitted { .. } => None,
    }
}

/// What a trip has brought.
pub(super) struct Landing<'a> {
    pub(super) slices: &'a Slices,
    pub(super) call: &'a LimitCall<'a>,
    pub(super) sent: u64,
    /// The server's time of the decision.
    pub(super) time: u64,
    pub(super) refused: Option<(usize, Option<Duration>)>,
}

impl Landing<'_> {
    pub(super) fn land(
        &self,
        store: &Arc<Inner>,
        part: &Part,
        charged: Option<Hold>,
        state: Option<&mut RuleState>,
    ) {
        let Self { slices, sent, .. } = *self;
        let now = store.now();
        let asked = if part.covered.is_some() {
            0
        } else {
            part.amount
        };
        let brought = charged.map_or(0, |hold| hold.amount.saturating_sub(asked));
        if let (true, Some(packed)) = (part.is_claimed, slices.packed(store, self.call, part.index))
        {
            part.cell.pack(packed);
        }
        let mut hand = part.cell.hand();
        let mut returns = SmallVec::new();
        let is_current = hand.since.n_resets == part.since.n_resets;
        if let Some(state) = state {
            if is_current {
                hand.see(Seen {
                    remaining: state.remaining,
                    reset_at: state
                        .reset()
                        .map(|reset| sent.saturating_add(micros(reset))),
                    window_micros: state.window().map(micros),
                });
            }
            if brought > 0
                && is_current
                && let Some(hold) = charged
            {
                let slice = Parcel {
                    units: brought,
                    period: hold.period,
                    ends: self.ends(part.index, hold, state),
                };
                returns = hand.add(slice, now, slices.units);
            }
            if part.covered.is_some() {
                state.exceeded = false;
            }
            state.remaining = state
                .remaining
                .saturating_add(hand.live(now))
                .min(state.limit);
        }
        if let Some((rule, wait)) = self.refused
            && rule == part.index
            && part.covered.is_none()
            && hand.since == part.since
        {
            // Units of other processes may come back within their lease.
            let most = slices.lease_micros;
            hand.refuse(Refusal {
                cost: part.amount,
                until: sent.saturating_add(wait.map_or(most, micros).min(most)),
                is_for_ever: wait.is_none(),
            });
        }
        if part.is_claimed {
            hand.landed();
        }
        drop(hand);
        part.cell.give_back(store, &returns);
        if brought > 0 && is_current {
            slices.note_lease(&part.cell);
        }
        if let (Some(period), Some(_)) = (part.covered, self.refused) {
            slices.put_back(store, &part.cell, part.amount, period, now);
        }
        if part.is_claimed {
            part.cell.landed.notify_waiters();
        }
    }

    /// When the units of a slice may no longer be served: after the lease time, and with the cell of a window or the
    /// period of a quota that they were counted in. Reckoned from before the trip, so never too late.
    fn ends(&self, index: usize, hold: Hold, state: &RuleState) -> u64 {
        let rule = self.call.set.rules().get(index);
        let left = match rule.map(|rule| rule.compiled()) {
            Some(CompiledAlgorithm::SlidingWindow(window)) => {
                let end = hold
                    .period
                    .saturating_add(1)
                    .saturating_mul(window.cell_micros());
                end.saturating_sub(self.time).min(window.cell_micros())
            }
            Some(CompiledAlgorithm::Quota(_)) => state.reset().map_or(0, micros),
            _ => u64::MAX,
        };
        self.sent.saturating_add(left.min(self.slices.lease_micros))
    }
}
