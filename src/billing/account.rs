//! What is known of one customer of the payment provider. Pure: an account is the sum of the events that were folded into
//! it, whatever order they came in and however often.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    Checkout, EntitlementSummary, EventKind, Notice, Subscription, SubscriptionStatus,
    lifecycle::LifecycleEvent,
};
use crate::{
    clock::Timestamp,
    id::{Environment, KeyId, PlanName, TenantId},
    tenant::AccessState,
};

/// How many changes of price are kept of a subscription, newest first: a downgrade needs the one before it.
const MAX_PRICES: usize = 16;
/// How many failures are kept that no payment has made good. The earliest decides.
const MAX_FAILURES: usize = 32;

/// What is known of one customer of the payment provider.
///
/// Made and changed by the [`Provisioner`](super::Provisioner); kept by an [`AccountStore`](super::AccountStore), as JSON
/// where that is on a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    customer: Arc<str>,
    #[serde(default)]
    version: u64,
    pub(super) environment: Environment,
    /// By checkout id.
    #[serde(default)]
    pub(super) checkouts: BTreeMap<Box<str>, Purchase>,
    /// By subscription id; what has none stands under the empty one.
    #[serde(default)]
    pub(super) subscriptions: BTreeMap<Box<str>, Facts>,
    #[serde(default)]
    pub(super) entitlements: Option<Entitled>,
    #[serde(default)]
    pub(super) deleted_at: Option<Timestamp>,
    #[serde(default)]
    pub(super) pay_page: Option<PayPage>,
    /// What the tenant was last told to be.
    #[serde(default)]
    pub(super) told: Option<Told>,
    /// What people are still to be told.
    #[serde(default)]
    pub(super) outbox: Vec<Notice>,
}

/// A checkout that was paid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Purchase {
    pub(super) tenant: TenantId,
    pub(super) created: Timestamp,
    pub(super) subscription: Option<Box<str>>,
    /// The key that was issued for it.
    #[serde(default)]
    pub(super) key: Option<KeyId>,
}

/// The features that a customer has a right to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entitled {
    stamp: Stamp,
    pub(super) lookup_keys: BTreeSet<Box<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PayPage {
    stamp: Stamp,
    pub(super) url: Arc<str>,
}

/// What the tenant was last told to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) access: AccessState,
    pub(super) plan: PlanName,
    pub(super) ends_at: Option<Timestamp>,
}

/// Which of two states of one object is newer: by the provider's time, then by what happened, then by how it stands, and
/// at last by the event's id, so that every order of arrival ends alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Stamp {
    /// Nothing follows the end of a subscription.
    terminal: bool,
    created: Timestamp,
    /// Deleted after updated after created.
    rank: u8,
    status: Option<SubscriptionStatus>,
    event: Box<str>,
}

/// What is known of one subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    stamp: Option<Stamp>,
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

/// A time at which a subscription was found good or bad. Providers tell whole seconds: within one, a status that is good
/// comes first, then a failure, then a payment, which is the last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Moment(Timestamp, u8);

impl Moment {
    const fn good_status(at: Timestamp) -> Self {
        Self(at, 0)
    }

    const fn failure(at: Timestamp) -> Self {
        Self(at, 1)
    }

    const fn payment(at: Timestamp) -> Self {
        Self(at, 2)
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
    fn stamp(&self, status: Option<SubscriptionStatus>) -> Stamp {
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
    /// Something newer was known.
    Stale,
    /// It is the newest.
    Newest,
}

impl Account {
    /// A customer of whom nothing is known.
    #[must_use]
    pub fn new(customer: impl Into<Arc<str>>, environment: Environment) -> Self {
        Self {
            customer: customer.into(),
            version: 0,
            environment,
            checkouts: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            entitlements: None,
            deleted_at: None,
            pay_page: None,
            told: None,
            outbox: Vec::new(),
        }
    }

    /// The customer's id at the provider.
    #[must_use]
    pub fn customer(&self) -> &str {
        &self.customer
    }

    /// Grows with each change; compare-and-set is against this number. An account that was never saved has 0.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// The account with another version, as a store gives it back; for implementors of
    /// [`AccountStore`](super::AccountStore).
    #[must_use]
    pub fn at_version(&self, version: u64) -> Self {
        let mut account = self.clone();
        account.version = version;
        account
    }

    /// The tenant that the customer's checkouts were made for: that of the first.
    #[must_use]
    pub fn tenant(&self) -> Option<&TenantId> {
        let first = self
            .checkouts
            .iter()
            .min_by_key(|(id, it)| (it.created, *id));
        first.map(|(_, purchase)| &purchase.tenant)
    }

    /// The keys that were issued, by checkout.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &KeyId)> {
        let purchases = self.checkouts.iter();
        purchases.filter_map(|(checkout, it)| Some((&**checkout, it.key.as_ref()?)))
    }

    /// The features that the provider says the customer has a right to, by lookup key.
    pub fn entitlements(&self) -> impl Iterator<Item = &str> {
        let keys = self.entitlements.iter().flat_map(|it| &it.lookup_keys);
        keys.map(|key| &**key)
    }

    /// The status of a subscription of the customer's.
    #[must_use]
    pub fn status(&self, subscription: &str) -> Option<SubscriptionStatus> {
        self.subscriptions.get(subscription)?.status
    }

    pub(super) fn fold_checkout(
        &mut self,
        id: &str,
        checkout: &Checkout,
        tenant: TenantId,
        created: Timestamp,
    ) -> Fold {
        // Two events may tell of one checkout, paid at once or later: the first counts.
        let known = self.checkouts.get(id);
        if known.is_some_and(|known| known.created <= created) {
            return Fold::Newest;
        }
        let purchase = Purchase {
            tenant,
            created,
            subscription: checkout.subscription.clone(),
            key: known.and_then(|known| known.key.clone()),
        };
        self.checkouts.insert(id.into(), purchase);
        Fold::Newest
    }

    /// Whether this event and the newest one of the subscription are of one second and say different things, so that only
    /// the provider knows which is newer.
    pub(super) fn ties_with(&self, subscription: &Subscription, source: Source<'_>) -> bool {
        let Some(id) = &subscription.id else {
            return false;
        };
        let known = self.subscriptions.get(id);
        let Some(stamp) = known.and_then(|facts| facts.stamp.as_ref()) else {
            return false;
        };
        let new = source.stamp(Some(subscription.status));
        stamp.created == new.created
            && stamp.event != new.event
            && !stamp.terminal
            && !new.terminal
            && (stamp.rank == new.rank)
    }

    /// Takes a subscription as an event tells it, or as the provider was asked for it.
    pub(super) fn fold_subscription(
        &mut self,
        id: &str,
        subscription: &Subscription,
        source: Source<'_>,
        is_asked: bool,
    ) -> Fold {
        let facts = self.subscriptions.entry(id.into()).or_default();
        let stamp = source.stamp(Some(subscription.status));
        facts.hear_status(subscription.status, source.created);
        facts.first = Some(
            facts
                .first
                .map_or(source.created, |it| it.min(source.created)),
        );
        facts.hear_prices(subscription, &stamp);
        let is_older = facts.stamp.as_ref().is_some_and(|known| *known > stamp);
        // What the provider was asked for is its last word.
        if is_older && !is_asked {
            return Fold::Stale;
        }
        facts.stamp = Some(stamp);
        facts.status = Some(subscription.status);
        facts.period_end = subscription.period_end;
        facts.billing_anchor = subscription.billing_anchor;
        facts.ends_at = subscription.ends_at();
        Fold::Newest
    }

    pub(super) fn fold_invoice(
        &mut self,
        subscription: &str,
        pay_url: Option<&str>,
        source: Source<'_>,
    ) -> Fold {
        let facts = self.subscriptions.entry(subscription.into()).or_default();
        let heard = match source.kind {
            EventKind::InvoicePaymentFailed => facts.hear_bad(Moment::failure(source.created)),
            _ => facts.hear_good(Moment::payment(source.created)),
        };
        let stamp = source.stamp(None);
        if let Some(url) = pay_url
            && source.kind == EventKind::InvoicePaymentFailed
            && self.pay_page.as_ref().is_none_or(|page| page.stamp < stamp)
        {
            self.pay_page = Some(PayPage {
                stamp,
                url: url.into(),
            });
        }
        heard
    }

    pub(super) fn fold_entitlements(
        &mut self,
        summary: &EntitlementSummary,
        source: Source<'_>,
    ) -> Fold {
        let stamp = source.stamp(None);
        if self
            .entitlements
            .as_ref()
            .is_some_and(|it| it.stamp > stamp)
        {
            return Fold::Stale;
        }
        self.entitlements = Some(Entitled {
            stamp,
            lookup_keys: summary.lookup_keys.iter().cloned().collect(),
        });
        Fold::Newest
    }

    pub(super) fn fold_deletion(&mut self, created: Timestamp) -> Fold {
        let first = self.deleted_at.map_or(created, |at| at.min(created));
        self.deleted_at = Some(first);
        Fold::Newest
    }

    /// The subscription that decides: the newest that has not ended, else the newest.
    pub(super) fn deciding(&self) -> Option<(&str, &Facts)> {
        let known = self
            .subscriptions
            .iter()
            .filter(|(_, it)| it.status.is_some());
        let newest = known.max_by_key(|(id, it)| (!it.has_ended(), it.first, *id));
        newest.map(|(id, facts)| (&**id, facts))
    }

    /// How the customer's payments stand, as the events that lead there from a tenant that owes nothing.
    pub(super) fn standing(&self) -> Option<Vec<LifecycleEvent>> {
        use SubscriptionStatus as Status;
        let (_, facts) = self.deciding()?;
        // What no subscription is named for is owed by the customer as a whole.
        let loose = self.subscriptions.get("").and_then(Facts::failing_since);
        let failing = match (facts.failing_since(), loose) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let status = facts.status?;
        let is_final = matches!(status, Status::Unpaid | Status::Incomplete);
        let mut events = vec![match failing {
            None => LifecycleEvent::Recovered,
            Some(since) if is_final => LifecycleEvent::Unpaid { since },
            Some(since) => LifecycleEvent::PaymentFailed { since },
        }];
        if status.is_terminal() || self.deleted_at.is_some() {
            events.push(LifecycleEvent::Ended);
        } else if status == Status::Paused {
            events.push(LifecycleEvent::Paused);
        }
        Some(events)
    }
}

impl Facts {
    pub(super) fn has_ended(&self) -> bool {
        self.status.is_some_and(SubscriptionStatus::is_terminal)
    }

    /// The first failure that no payment has made good.
    fn failing_since(&self) -> Option<Timestamp> {
        self.bad.first().map(|moment| moment.0)
    }

    fn hear_status(&mut self, status: SubscriptionStatus, at: Timestamp) {
        use SubscriptionStatus as Status;
        match status {
            Status::Active | Status::Trialing => {
                self.hear_good(Moment::good_status(at));
            }
            Status::Incomplete | Status::PastDue | Status::Unpaid => {
                self.hear_bad(Moment::failure(at));
            }
            _ => {}
        }
    }

    fn hear_good(&mut self, moment: Moment) -> Fold {
        if self.good.is_some_and(|good| good > moment) {
            return Fold::Stale;
        }
        self.good = Some(moment);
        self.bad = self.bad.split_off(&moment);
        Fold::Newest
    }

    fn hear_bad(&mut self, moment: Moment) -> Fold {
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

    fn hear_prices(&mut self, subscription: &Subscription, stamp: &Stamp) {
        let names = subscription.names();
        if names.is_empty() {
            return;
        }
        let newer = self.prices.get(&stamp.created);
        if newer.is_none_or(|known| known.stamp < *stamp) {
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
