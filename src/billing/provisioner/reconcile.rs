//! What the provider lists against what was made of its events.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::{Account, EventKind, Handled, Subscription, SubscriptionStatus, facts::Source},
    ProvisionError, Provisioner,
};
use crate::{clock::Timestamp, id::Environment};

/// A subscription that the provider and the accounts see differently.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// Whose it is; empty where the provider's listing does not say.
    pub customer: Box<str>,
    /// The subscription.
    pub subscription: Box<str>,
    /// What differs.
    pub kind: DifferenceKind,
}

/// What differs of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DifferenceKind {
    /// The provider has it, and no event has told of it.
    Unknown,
    /// It is in use here, and the provider's listing has none of its name.
    NotListed,
    /// Its status differs.
    Status {
        /// As events have told it.
        ours: SubscriptionStatus,
        /// As the provider lists it.
        theirs: SubscriptionStatus,
    },
    /// What is subscribed to differs.
    Prices {
        /// As events have told it: prices, products and lookup keys.
        ours: Vec<Box<str>>,
        /// As the provider lists it.
        theirs: Vec<Box<str>>,
    },
    /// When it ends differs.
    End {
        /// As events have told it.
        ours: Option<Timestamp>,
        /// As the provider lists it.
        theirs: Option<Timestamp>,
    },
}

/// How the provider's listing compares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReconcileReport {
    /// How many subscriptions are the same on both sides.
    pub n_equal: usize,
    /// Those that are not, by customer and subscription.
    pub differences: Vec<Difference>,
}

/// Compares the subscriptions that the provider lists with the accounts. Changes nothing.
///
/// The listing should be complete, ended subscriptions of the last days included; where it is not, what is missing shows
/// as [`DifferenceKind::NotListed`].
#[must_use]
pub fn reconcile_subscriptions<'a>(
    listing: impl IntoIterator<Item = &'a Subscription>,
    accounts: impl IntoIterator<Item = &'a Account>,
) -> ReconcileReport {
    let accounts: BTreeMap<&str, &Account> = accounts
        .into_iter()
        .map(|account| (account.customer(), account))
        .collect();
    let mut listed = BTreeSet::new();
    let mut report = ReconcileReport::default();
    for theirs in listing {
        let subscription = theirs.id.as_deref().unwrap_or_default();
        let customer = theirs.customer.as_deref().unwrap_or_default();
        listed.insert(subscription);
        let account = accounts.get(customer).copied();
        match account.map_or(Some(DifferenceKind::Unknown), |it| {
            compare(it, subscription, theirs)
        }) {
            None => report.n_equal += 1,
            Some(kind) => report.differences.push(Difference {
                customer: customer.into(),
                subscription: subscription.into(),
                kind,
            }),
        }
    }
    for (customer, account) in accounts {
        for (subscription, facts) in &account.subscriptions {
            let in_use = facts.status.is_some() && !facts.has_ended();
            if in_use && !listed.contains(&**subscription) {
                report.differences.push(Difference {
                    customer: customer.into(),
                    subscription: subscription.clone(),
                    kind: DifferenceKind::NotListed,
                });
            }
        }
    }
    report
        .differences
        .sort_by(|a, b| (&a.customer, &a.subscription).cmp(&(&b.customer, &b.subscription)));
    report
}

fn compare(account: &Account, id: &str, theirs: &Subscription) -> Option<DifferenceKind> {
    let Some(ours) = account.subscriptions.get(id) else {
        return Some(DifferenceKind::Unknown);
    };
    let Some(status) = ours.status else {
        return Some(DifferenceKind::Unknown);
    };
    if status != theirs.status {
        let theirs = theirs.status;
        return Some(DifferenceKind::Status {
            ours: status,
            theirs,
        });
    }
    if status.is_terminal() {
        return None;
    }
    let names = ours
        .prices
        .values()
        .next_back()
        .map(|prices| prices.names.clone());
    let listed = theirs.names();
    if names.as_ref().is_some_and(|names| *names != listed) {
        return Some(DifferenceKind::Prices {
            ours: names.unwrap_or_default(),
            theirs: listed,
        });
    }
    if ours.ends_at != theirs.ends_at() {
        return Some(DifferenceKind::End {
            ours: ours.ends_at,
            theirs: theirs.ends_at(),
        });
    }
    None
}

impl Provisioner {
    /// Compares the subscriptions that the provider lists with the accounts of this provisioner, as
    /// [`reconcile_subscriptions`] does. Changes nothing.
    ///
    /// # Errors
    ///
    /// [`ProvisionError::Accounts`] when the store failed.
    pub async fn compare(
        &self,
        listing: &[Subscription],
    ) -> Result<ReconcileReport, ProvisionError> {
        const PAGE: usize = 1_000;
        let mut accounts = Vec::new();
        loop {
            let last = accounts.last().map(Account::customer);
            let page = self.settings.accounts.list(last, PAGE).await?;
            let is_last = page.len() < PAGE;
            accounts.extend(page);
            if is_last {
                return Ok(reconcile_subscriptions(listing, &accounts));
            }
        }
    }

    /// Takes a subscription of a listing that was made at `as_of` as if an event had told of it then, with all that
    /// follows. An event that is newer stays the newer.
    ///
    /// # Errors
    ///
    /// [`ProvisionError`], as for an event.
    pub async fn apply_listed(
        &self,
        listed: &Subscription,
        environment: Environment,
        as_of: Timestamp,
    ) -> Result<Handled, ProvisionError> {
        let field = |field| ProvisionError::MissingField { field };
        let id = listed.id.as_deref().ok_or_else(|| field("id"))?;
        let customer = listed
            .customer
            .as_deref()
            .ok_or_else(|| field("customer"))?;
        self.check_subscription(listed)?;
        let source = Source {
            event: "",
            created: as_of,
            kind: EventKind::SubscriptionChanged,
        };
        let fold = |account: &mut Account| account.fold_subscription(id, listed, source, false);
        self.change(customer, environment, fold).await
    }
}
