//! What is known of one customer of the payment provider. Pure: an account is the sum of the events that were folded into
//! it, whatever order they came in and however often.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    Checkout, EntitlementSummary, EventKind, Notice, Subscription, SubscriptionStatus,
    facts::{Facts, Fold, Moment, Source, Stamp},
    lifecycle::LifecycleEvent,
};
use crate::{
    clock::Timestamp,
    id::{Environment, KeyId, PlanName, TenantId},
    tenant::AccessState,
};

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
    /// The plan that was bought last, which is another one where the end has moved the tenant.
    #[serde(default)]
    pub(super) bought: Option<PlanName>,
    pub(super) ends_at: Option<Timestamp>,
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
        // Keys, plan and access follow from all that the customer has, so that it can be of one tenant only.
        if self.tenant().is_some_and(|known| *known != tenant) {
            return Fold::OtherTenant;
        }
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
        facts.fold(subscription, source, is_asked)
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

    /// The subscription that decides: the newest that has not ended, else the newest. One that was never paid decides only
    /// where no other one goes on.
    pub(super) fn deciding(&self) -> Option<(&str, &Facts)> {
        let known = self
            .subscriptions
            .iter()
            .filter(|(_, it)| it.status.is_some());
        let newest = known.max_by_key(|(id, it)| {
            let is_begun = it.status != Some(SubscriptionStatus::Incomplete);
            (!it.has_ended(), is_begun, it.first, *id)
        });
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
