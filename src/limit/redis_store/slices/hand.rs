//! What one process has in hand of one count, and what it knows of it. No clock, no I/O: times are arguments, in
//! microseconds of this process's monotonic clock.

use smallvec::SmallVec;

use super::super::super::{
    compile::CompiledRule,
    decision::RuleState,
    reading::{Reading, Wait},
    verdict,
};

/// Units that were debited together, or nearly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parcel {
    pub(super) units: u64,
    /// The window or period that was charged, in the store's numbering.
    pub(super) period: u64,
    /// From here on the units are not served.
    pub(super) ends: u64,
}

/// The state of the count in the store after this process's last trip.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) remaining: u64,
    pub(super) reset_at: Option<u64>,
    pub(super) window_micros: Option<u64>,
}

/// The store refused a call of so many units.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusal {
    pub(super) cost: u64,
    pub(super) until: u64,
    /// The wait never ends, whatever time comes.
    pub(super) is_for_ever: bool,
}

/// How a call is met that takes units from the hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Take {
    /// The units are the call's; they were debited in this period.
    Taken(u64),
    /// The store has to be asked.
    Short,
    /// The store has refused such a call, and does so still.
    Refused(Wait),
}

/// Units to be given back, with the period that they were debited in.
pub(super) type Returns = SmallVec<[(u64, u64); 2]>;

#[derive(Debug, Default)]
pub(super) struct Hand {
    /// The older one first, which is served first.
    parcels: [Parcel; 2],
    seen: Option<Seen>,
    refusal: Option<Refusal>,
    /// The units that a slice has now: doubled where slices are used up, halved where they lapse.
    size: u64,
    /// Units that were taken while the last slice was on its way.
    flight: u64,
    served: u64,
    served_when_sent: u64,
    /// Units that calls wait for while a slice is on its way.
    pub(super) waiting: u64,
    is_refilling: bool,
    last_claim: Option<u64>,
    /// After a failure no slice is fetched ahead of need before this.
    not_before: u64,
    pub(super) since: Since,
}

/// What has happened to the count, to tell what a trip has not seen yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Since {
    /// The times that the counts began anew.
    pub(super) n_resets: u64,
    /// The times that units came back.
    n_returns: u64,
}

impl Hand {
    /// Units in hand that can be served.
    pub(super) fn live(&self, now: u64) -> u64 {
        let live = self.parcels.iter().filter(|parcel| now < parcel.ends);
        live.map(|parcel| parcel.units).sum()
    }

    pub(super) const fn is_refilling(&self) -> bool {
        self.is_refilling
    }

    /// Takes a call's units. One of cost zero passes where units are left.
    pub(super) fn take(&mut self, amount: u64, now: u64) -> Take {
        let live = self.live(now);
        if live < amount.max(1) {
            return match self.refusal {
                Some(refusal) if amount >= refusal.cost && now < refusal.until => {
                    Take::Refused(if refusal.is_for_ever {
                        Wait::Forever
                    } else {
                        Wait::micros(refusal.until - now)
                    })
                }
                _ => Take::Short,
            };
        }
        let mut missing = amount;
        let mut period = None;
        for parcel in &mut self.parcels {
            if now < parcel.ends && parcel.units > 0 {
                let part = missing.min(parcel.units);
                parcel.units -= part;
                missing -= part;
                period.get_or_insert(parcel.period);
            }
        }
        self.served = self.served.saturating_add(amount);
        Take::Taken(period.unwrap_or_default())
    }

    /// Puts units of a period back; false when its parcel is gone or there is no room.
    pub(super) fn put_back(&mut self, amount: u64, period: u64, now: u64, most: u64) -> bool {
        if self.live(now).saturating_add(amount) > most {
            return false;
        }
        let mut parcels = self.parcels.iter_mut();
        match parcels.find(|parcel| parcel.period == period && now < parcel.ends) {
            Some(parcel) => {
                parcel.units += amount;
                true
            }
            None => false,
        }
    }

    /// Takes as many units as there are, up to `amount`: a call has used more than it was charged.
    pub(super) fn take_up_to(&mut self, amount: u64, now: u64) -> u64 {
        let part = amount.min(self.live(now));
        if part > 0 {
            self.take(part, now);
        }
        part
    }

    /// Whether a slice is to be fetched ahead of need.
    pub(super) fn runs_low(&self, now: u64) -> bool {
        !self.is_refilling
            && now >= self.not_before
            && self.live(now) <= self.flight.clamp(1, (self.size / 4).max(1))
            && self.size > 1
    }

    /// Begins to fetch a slice, and says how many units to ask for.
    pub(super) fn claim(&mut self, now: u64, most: u64, lease: u64) -> u64 {
        self.is_refilling = true;
        self.served_when_sent = self.served;
        // A count that is asked about less than once in a lease time is not worth a slice.
        if self
            .last_claim
            .is_some_and(|last| now < last.saturating_add(lease))
        {
            self.size = (self.size * 2).clamp(1, most);
        }
        self.last_claim = Some(now);
        let live = self.live(now);
        // What is taken while the slice is on its way makes room for as much.
        let room = self.size.saturating_sub(live) + self.flight.min(live);
        if self.size == 0 {
            0
        } else {
            room + self.waiting
        }
    }

    /// The fetch has ended, with a slice or without.
    pub(super) fn landed(&mut self) {
        self.is_refilling = false;
        let taken = self.served - self.served_when_sent;
        self.flight = taken.saturating_add(self.waiting);
    }

    /// The fetch has failed.
    pub(super) fn failed(&mut self, not_before: u64) {
        self.is_refilling = false;
        self.not_before = not_before;
    }

    /// Adds a slice, and says what has to be given back for it: what has lapsed, and what is more than `most` and
    /// nobody waits for.
    pub(super) fn add(&mut self, slice: Parcel, now: u64, most: u64) -> Returns {
        let mut returns = self.lapsed(now);
        let [older, newer] = &mut self.parcels;
        if older.units == 0 {
            *older = std::mem::take(newer);
        }
        if older.units == 0 {
            *older = slice;
        } else if newer.units == 0 {
            *newer = slice;
        } else if newer.period == slice.period {
            newer.units += slice.units;
            newer.ends = newer.ends.min(slice.ends);
        } else {
            // Two periods are in hand already: the oldest one makes room.
            returns.push((older.units, older.period));
            *older = std::mem::replace(newer, slice);
        }
        let surplus = self
            .live(now)
            .saturating_sub(most.saturating_add(self.waiting));
        if surplus > 0 {
            let newest = usize::from(self.parcels[1].units > 0);
            let parcel = &mut self.parcels[newest];
            let surplus = surplus.min(parcel.units);
            parcel.units -= surplus;
            returns.push((surplus, parcel.period));
        }
        returns
    }

    /// Takes out what can no longer be served.
    pub(super) fn lapsed(&mut self, now: u64) -> Returns {
        let mut returns = Returns::new();
        for parcel in &mut self.parcels {
            if parcel.ends <= now && parcel.units > 0 {
                returns.push((parcel.units, parcel.period));
                parcel.units = 0;
            }
        }
        if !returns.is_empty() {
            self.size /= 2;
        }
        returns
    }

    /// Takes everything out.
    pub(super) fn drain(&mut self) -> Returns {
        let parcels = std::mem::take(&mut self.parcels);
        let full = parcels.iter().filter(|parcel| parcel.units > 0);
        full.map(|parcel| (parcel.units, parcel.period)).collect()
    }

    /// The counts begin anew: what is in hand, or on its way, was debited from counts that are gone.
    pub(super) fn forget(&mut self) {
        self.parcels = Default::default();
        self.refusal = None;
        self.seen = None;
        self.since.n_resets += 1;
    }

    pub(super) const fn refuse(&mut self, refusal: Refusal) {
        self.refusal = Some(refusal);
    }

    /// Units have come back: what was refused may pass.
    pub(super) const fn allow(&mut self) {
        self.since.n_returns += 1;
        self.refusal = None;
    }

    pub(super) const fn see(&mut self, seen: Seen) {
        self.seen = Some(seen);
    }

    /// The rule's state as far as this process knows: what the store had left at the last trip, and what is in hand.
    pub(super) fn state(
        &self,
        index: usize,
        rule: &CompiledRule,
        wait: Wait,
        now: u64,
    ) -> Option<RuleState> {
        let seen = self.seen?;
        let remaining = seen
            .remaining
            .saturating_add(self.live(now))
            .min(rule.limit());
        let reading = Reading {
            used: rule.limit() - remaining,
            remaining,
            reset_micros: seen.reset_at.map(|at| at.saturating_sub(now).max(1)),
            window_micros: seen.window_micros,
        };
        Some(verdict::state(index, rule, &reading, wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 100;
    const LEASE: u64 = 1_000;

    fn slice(units: u64, period: u64, ends: u64) -> Parcel {
        Parcel {
            units,
            period,
            ends,
        }
    }

    #[test]
    fn the_older_slice_is_served_first_and_none_that_has_ended() {
        let mut hand = Hand::default();
        assert!(hand.add(slice(3, 1, 10), 0, MOST).is_empty());
        assert!(hand.add(slice(5, 2, 20), 0, MOST).is_empty());
        assert_eq!(hand.take(2, 0), Take::Taken(1));
        assert_eq!(hand.take(2, 0), Take::Taken(1), "a part of each");
        assert_eq!(hand.live(0), 4);
        assert_eq!(hand.take(5, 0), Take::Short);
        assert_eq!(hand.take(0, 0), Take::Taken(2));
        assert_eq!(hand.take(4, 20), Take::Short);
        assert_eq!(hand.lapsed(20).as_slice(), [(4, 2)]);
        assert_eq!(hand.take(0, 0), Take::Short);
    }

    #[test]
    fn a_refusal_meets_calls_of_its_cost_and_above_until_it_ends() {
        let mut hand = Hand::default();
        let refusal = |is_for_ever| Refusal {
            cost: 5,
            until: 10,
            is_for_ever,
        };
        hand.refuse(refusal(false));
        assert_eq!(hand.take(4, 0), Take::Short);
        assert_eq!(hand.take(5, 3), Take::Refused(Wait::Micros(7)));
        assert_eq!(hand.take(9, 9), Take::Refused(Wait::Micros(1)));
        assert_eq!(hand.take(5, 10), Take::Short);
        hand.refuse(refusal(true));
        assert_eq!(hand.take(5, 3), Take::Refused(Wait::Forever));
        hand.allow();
        assert_eq!(hand.take(5, 3), Take::Short);
    }

    #[test]
    fn slices_double_while_they_are_used_up_and_shrink_when_they_lapse() {
        let mut hand = Hand::default();
        let mut asked = Vec::new();
        for now in 0..9 {
            asked.push(hand.claim(now, MOST, LEASE));
            hand.landed();
        }
        assert_eq!(asked, [0, 1, 2, 4, 8, 16, 32, 64, 100]);
        hand.add(slice(60, 0, 10), 9, MOST);
        assert_eq!(hand.lapsed(10).as_slice(), [(60, 0)]);
        assert_eq!(hand.claim(5_000, MOST, LEASE), 50);
    }

    #[test]
    fn more_than_a_hand_may_hold_goes_back_unless_calls_wait_for_it() {
        let mut hand = Hand::default();
        assert!(hand.add(slice(90, 1, 10), 0, MOST).is_empty());
        assert_eq!(hand.add(slice(20, 2, 10), 0, MOST).as_slice(), [(10, 2)]);
        hand.waiting = 7;
        assert!(hand.add(slice(7, 2, 10), 0, MOST).is_empty());
        assert_eq!(hand.add(slice(4, 3, 10), 0, MOST).as_slice(), [(90, 1)]);
        assert_eq!(hand.live(0), 21);
    }

    #[test]
    fn what_is_put_back_finds_its_own_period_or_none() {
        let mut hand = Hand::default();
        hand.add(slice(2, 7, 10), 0, MOST);
        assert_eq!(hand.take(2, 0), Take::Taken(7));
        assert!(!hand.put_back(1, 8, 0, MOST));
        assert!(hand.put_back(1, 7, 0, MOST));
        assert!(!hand.put_back(1, 7, 10, MOST), "it has ended");
        assert!(!hand.put_back(MOST, 7, 0, MOST), "no room");
        assert_eq!(hand.live(0), 1);
    }
}
