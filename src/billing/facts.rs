//! What is known of one subscription of a customer. Pure, and the same in whatever order it was heard.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{EventKind, Subscription, SubscriptionStatus};
use crate::clock::Timestamp;

/// How many changes of price are kept of a subscription, newest first: a downgrade needs the one before it.
const MAX_PRICES: usize = 16;
/// How many failures are kept that no payment has made good. The earliest decides.
const MAX_FAILURES: usize = 32;

/// Which of two states of one object is newer: by the provider's time, then by what happened, then by how it stands, and
/// at last by the event's id, so that every order of arrival ends alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Stamp {
    /// Nothing follows the end of a subscription.
    pub(super) terminal: bool,
    pub(super) created: Timestamp,
    /// Deleted after updated after created.
    pub(super) rank: u8,
    status: Option<SubscriptionStatus>,
    pub(super) event: Box<str>,
}

/// What is known of one subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) stamp: Option<Stamp>,
    pub(super) status: Option<SubscriptionStatus>,
    pub(super) period_end: Option<Timestamp>,
    pub(super) ends_at: Option<Timestamp>,
    #[serde(default)]
    pub(super) billing_anchor: Option<Timestamp>,
    /// The first time that was heard of it.
    pub(super) first: Option<Timestamp>,
    /// What was subscribed to from when on.
    #[serde(default)]
    pub(super) prices: BTreeMap<Timestamp, Prices>,
    /// The last moment at which everything was paid; see [`Moment`].
    #[serde(default)]
    good: Option<Moment>,
    /// Failures since then.
    #[serde(default)]
    bad: BTreeSet<Moment>,
}

/// What was subscribed to at a time: prices, products and lookup keys of all items.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Prices {
    stamp: Stamp,
    pub(super) names: Vec<Box<str>>,
    pub(super) period_end: Option<Timestamp>,
}

/// A time at which a subscription was found good or bad. Providers tell whole seconds: within one, statuses come first, in
/// the order of their stamps, then an invoice that failed, then a payment, which is the last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Moment {
    at: Timestamp,
    teller: Teller,
}

/// What told that a subscription is good or bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Teller {
    Status(u8, SubscriptionStatus),
    Failure,
    Payment,
}

impl Moment {
    const fn status(at: Timestamp, rank: u8, status: SubscriptionStatus) -> Self {
        let teller = Teller::Status(rank, status);
        Self { at, teller }
    }

    pub(super) const fn failure(at: Timestamp) -> Self {
        let teller = Teller::Failure;
        Self { at, teller }
    }

    pub(super) const fn payment(at: Timestamp) -> Self {
        let teller = Teller::Payment;
        Self { at, teller }
    }
}

/// How a subscription came to be as it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    pub(super) event: &'a str,
    pub(super) created: Timestamp,
    pub(super) kind: EventKind,
}

impl Source<'_> {
    pub(super) fn stamp(&self, status: Option<SubscriptionStatus>) -> Stamp {
        Stamp {
            terminal: status.is_some_and(SubscriptionStatus::is_terminal),
            created: self.created,
            rank: match self.kind {
                EventKind::SubscriptionCreated => 0,
                EventKind::SubscriptionEnded => 2,
                _ => 1,
            },
            status,
            event: self.event.into(),
        }
    }
}

/// What an event did to an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fold {
    /// It is about another tenant than the account's: nothing was changed.
    OtherTenant,
    /// Something newer was known.
    Stale,
    /// It is the newest.
    Newest,
}

impl Facts {
    /// Takes the subscription as an event tells it, or as the provider was asked for it.
    pub(super) fn fold(
        &mut self,
        subscription: &Subscription,
        source: Source<'_>,
        is_asked: bool,
    ) -> Fold {
        let stamp = source.stamp(Some(subscription.status));
        // An event that comes again does not take back what the provider was asked for on its account.
        let is_known = self.stamp.as_ref().is_some_and(|known| {
            known.created == stamp.created && known.event == stamp.event && !stamp.event.is_empty()
        });
        if is_known && !is_asked {
            return Fold::Newest;
        }
        self.hear_status(&stamp, subscription.status, is_asked);
        self.first = Some(
            self.first
                .map_or(source.created, |it| it.min(source.created)),
        );
        self.hear_prices(subscription, &stamp, is_asked);
        let is_older = self.stamp.as_ref().is_some_and(|known| *known > stamp);
        // What the provider was asked for is its last word.
        if is_older && !is_asked {
            return Fold::Stale;
        }
        self.stamp = Some(stamp);
        self.status = Some(subscription.status);
        self.period_end = subscription.period_end;
        self.billing_anchor = subscription.billing_anchor;
        self.ends_at = subscription.ends_at();
        Fold::Newest
    }

    pub(super) fn has_ended(&self) -> bool {
        self.status.is_some_and(SubscriptionStatus::is_terminal)
    }

    /// The first failure that no payment has made good.
    pub(super) fn failing_since(&self) -> Option<Timestamp> {
        self.bad.first().map(|moment| moment.at)
    }

    fn hear_status(&mut self, stamp: &Stamp, status: SubscriptionStatus, is_asked: bool) {
        use SubscriptionStatus as Status;
        let mut rank = stamp.rank;
        if is_asked {
            // The provider's last word of this second, whatever other statuses were told of it.
            rank = u8::MAX;
            let is_status = |it: &Moment| matches!(it.teller, Teller::Status(..));
            self.bad
                .retain(|it| it.at != stamp.created || !is_status(it));
        }
        let moment = Moment::status(stamp.created, rank, status);
        match status {
            Status::Active | Status::Trialing => {
                self.hear_good(moment);
            }
            Status::Incomplete | Status::PastDue | Status::Unpaid => {
                self.hear_bad(moment);
            }
            _ => {}
        }
    }

    pub(super) fn hear_good(&mut self, moment: Moment) -> Fold {
        if self.good.is_some_and(|good| good > moment) {
            return Fold::Stale;
        }
        self.good = Some(moment);
        self.bad = self.bad.split_off(&moment);
        Fold::Newest
    }

    pub(super) fn hear_bad(&mut self, moment: Moment) -> Fold {
        if self.good.is_some_and(|good| good > moment) {
            return Fold::Stale;
        }
        self.bad.insert(moment);
        if self.bad.len() > MAX_FAILURES {
            // The last but one: the first decides, and a payment in between leaves the last.
            let spare = self.bad.iter().rev().nth(1).copied();
            spare.map(|moment| self.bad.remove(&moment));
        }
        Fold::Newest
    }

    /// Forgets what tells least: a time before and after which the same was subscribed to, else the oldest.
    fn forget_prices(&mut self) {
        let entries: Vec<_> = self.prices.iter().collect();
        let middle = entries.windows(3).find_map(|three| match three {
            [(_, a), (at, b), (_, c)] if a.names == b.names && b.names == c.names => Some(**at),
            _ => None,
        });
        match middle {
            Some(at) => self.prices.remove(&at),
            None => self.prices.pop_first().map(|(_, prices)| prices),
        };
    }

    fn hear_prices(&mut self, subscription: &Subscription, stamp: &Stamp, is_asked: bool) {
        let names = subscription.names();
        if names.is_empty() {
            return;
        }
        let newer = self.prices.get(&stamp.created);
        if newer.is_none_or(|known| is_asked || known.stamp < *stamp) {
            let prices = Prices {
                stamp: stamp.clone(),
                names,
                period_end: subscription.period_end,
            };
            self.prices.insert(stamp.created, prices);
        }
        if self.prices.len() > MAX_PRICES {
            self.forget_prices();
        }
    }
}
