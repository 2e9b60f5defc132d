use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::reading::{flag, id, integer, list, text, time};
use crate::clock::Timestamp;

/// The object that an event is about. Fields that the provider left out, or that are not what they should be, are absent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BillingObject {
    /// A checkout.
    Checkout(Checkout),
    /// A customer.
    Customer(Customer),
    /// A dispute about a payment.
    Dispute(Dispute),
    /// The features that a customer has a right to.
    Entitlements(EntitlementSummary),
    /// An invoice.
    Invoice(Invoice),
    /// A subscription.
    Subscription(Subscription),
    /// Something else, which only the raw JSON holds.
    Unknown,
}

/// A checkout.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checkout {
    /// Its id: the cause of a key, so that each has one.
    pub id: Option<Box<str>>,
    /// The customer who bought.
    pub customer: Option<Box<str>>,
    /// The subscription that was bought.
    pub subscription: Option<Box<str>>,
    /// What the service called the buyer when it began the checkout.
    pub client_reference_id: Option<Box<str>>,
    /// `payment`, `setup` or `subscription`.
    pub mode: Option<Box<str>>,
    /// `paid`, `unpaid` or `no_payment_required`.
    pub payment_status: Option<Box<str>>,
    /// The currency, in lower case.
    pub currency: Option<Box<str>>,
    /// What the service wrote into it.
    pub metadata: BTreeMap<Box<str>, Box<str>>,
}

/// A customer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Customer {
    /// The customer's id.
    pub id: Option<Box<str>>,
}

/// A dispute about a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dispute {
    /// The dispute's id.
    pub id: Option<Box<str>>,
    /// The charge in dispute. The customer is found through it.
    pub charge: Option<Box<str>>,
    /// Why, such as `fraudulent`.
    pub reason: Option<Box<str>>,
    /// How it stands, such as `needs_response`, `won` or `lost`.
    pub status: Option<Box<str>>,
}

/// The features that a customer has a right to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EntitlementSummary {
    /// Whose they are.
    pub customer: Option<Box<str>>,
    /// The features by their lookup keys, in the provider's order.
    pub lookup_keys: Vec<Box<str>>,
    /// There are more than stand here: ask the provider for the list.
    pub has_more: bool,
}

/// An invoice.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Invoice {
    /// Its id; an upcoming one has none.
    pub id: Option<Box<str>>,
    /// Who owes it.
    pub customer: Option<Box<str>>,
    /// The subscription that it is for.
    pub subscription: Option<Box<str>>,
    /// `draft`, `open`, `paid`, `uncollectible` or `void`.
    pub status: Option<Box<str>>,
    /// Why it was made, such as `subscription_cycle`.
    pub billing_reason: Option<Box<str>>,
    /// How often the provider has tried to collect it.
    pub attempt_count: Option<i64>,
    /// When the provider tries again.
    pub next_payment_attempt: Option<Timestamp>,
    /// What is owed, in the currency's minor units.
    pub amount_due: Option<i64>,
    /// The currency, in lower case.
    pub currency: Option<Box<str>>,
    /// The page where it can be paid.
    pub pay_url: Option<Box<str>>,
    /// What its lines are for.
    pub lines: Vec<PriceRef>,
}

/// A price and its product.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PriceRef {
    /// The price's id.
    pub price: Option<Box<str>>,
    /// The product's id.
    pub product: Option<Box<str>>,
}

/// A subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Subscription {
    /// Its id.
    pub id: Option<Box<str>>,
    /// Whose it is.
    pub customer: Option<Box<str>>,
    /// How it stands.
    pub status: SubscriptionStatus,
    /// What is subscribed to.
    pub items: Vec<SubscriptionItem>,
    /// When the period ends that is paid for: the latest of its items'.
    pub period_end: Option<Timestamp>,
    /// Where its billing periods begin.
    pub billing_anchor: Option<Timestamp>,
    /// It ends with its period.
    pub cancel_at_period_end: bool,
    /// When it will end.
    pub cancel_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// When its trial ends.
    pub trial_end: Option<Timestamp>,
    /// Payments are not collected for a while, which leaves the status as it is.
    pub pause_collection: bool,
    /// The currency, in lower case.
    pub currency: Option<Box<str>>,
    /// What the service wrote into it.
    pub metadata: BTreeMap<Box<str>, Box<str>>,
}

/// One thing that is subscribed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionItem {
    /// The price's id.
    pub price: Option<Box<str>>,
    /// The product's id.
    pub product: Option<Box<str>>,
    /// The price's lookup key.
    pub lookup_key: Option<Box<str>>,
    /// How many.
    pub quantity: Option<i64>,
    /// When its period ends.
    pub period_end: Option<Timestamp>,
}

/// How a subscription stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SubscriptionStatus {
    /// A trial runs.
    Trialing,
    /// Paid.
    Active,
    /// The first payment has not been made.
    Incomplete,
    /// Paused, as a trial ended without a way to pay, or by a person.
    Paused,
    /// A payment failed and is tried again.
    PastDue,
    /// A payment failed and is not tried again.
    Unpaid,
    /// The first payment was never made. It stays so.
    IncompleteExpired,
    /// Ended. It stays so.
    Canceled,
    /// A status that this crate does not know.
    Unknown,
}

impl SubscriptionStatus {
    /// Whether nothing can follow.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Canceled | Self::IncompleteExpired)
    }

    fn read(text: Option<&str>) -> Self {
        match text {
            Some("trialing") => Self::Trialing,
            Some("active") => Self::Active,
            Some("incomplete") => Self::Incomplete,
            Some("paused") => Self::Paused,
            Some("past_due") => Self::PastDue,
            Some("unpaid") => Self::Unpaid,
            Some("incomplete_expired") => Self::IncompleteExpired,
            Some("canceled" | "cancelled") => Self::Canceled,
            _ => Self::Unknown,
        }
    }
}

const CUSTOMER: &[&str] = &["/customer", "/customer_account", "/customer_id"];

fn lower(text: Option<Box<str>>) -> Option<Box<str>> {
    text.map(|text| text.to_ascii_lowercase().into())
}

fn metadata(object: &Value, paths: &[&str]) -> BTreeMap<Box<str>, Box<str>> {
    let found = paths
        .iter()
        .find_map(|path| object.pointer(path)?.as_object());
    let entries = found.into_iter().flatten();
    entries
        .filter_map(|(name, value)| Some((name.as_str().into(), value.as_str()?.into())))
        .collect()
}

impl Checkout {
    pub(super) fn read(object: &Value) -> Self {
        Self {
            id: text(object, &["/id"]),
            customer: id(object, CUSTOMER),
            subscription: id(object, &["/subscription", "/subscription_id"]),
            client_reference_id: text(object, &["/client_reference_id", "/custom_data/tenant"]),
            mode: text(object, &["/mode"]),
            payment_status: text(object, &["/payment_status"]),
            currency: lower(text(object, &["/currency", "/currency_code"])),
            metadata: metadata(object, &["/metadata", "/custom_data"]),
        }
    }
}

impl Customer {
    pub(super) fn read(object: &Value) -> Self {
        Self {
            id: text(object, &["/id"]),
        }
    }
}

impl Dispute {
    pub(super) fn read(object: &Value) -> Self {
        Self {
            id: text(object, &["/id"]),
            charge: id(object, &["/charge"]),
            reason: text(object, &["/reason"]),
            status: text(object, &["/status"]),
        }
    }
}

impl EntitlementSummary {
    pub(super) fn read(object: &Value) -> Self {
        let entitlements = list(object, &["/entitlements/data"]).iter();
        Self {
            customer: id(object, CUSTOMER),
            lookup_keys: entitlements
                .filter_map(|entitlement| text(entitlement, &["/lookup_key"]))
                .collect(),
            has_more: flag(object, "/entitlements/has_more"),
        }
    }
}

impl Invoice {
    pub(super) fn read(object: &Value) -> Self {
        let lines = list(object, &["/lines/data", "/items"]).iter();
        Self {
            id: text(object, &["/id"]),
            customer: id(object, CUSTOMER),
            subscription: id(
                object,
                &[
                    "/parent/subscription_details/subscription",
                    "/subscription",
                    "/subscription_id",
                ],
            ),
            status: text(object, &["/status"]),
            billing_reason: text(object, &["/billing_reason", "/origin"]),
            attempt_count: integer(object, &["/attempt_count"]),
            next_payment_attempt: time(object, &["/next_payment_attempt"]),
            amount_due: integer(object, &["/amount_due", "/details/totals/grand_total"]),
            currency: lower(text(object, &["/currency", "/currency_code"])),
            pay_url: text(object, &["/hosted_invoice_url", "/checkout/url"]),
            lines: lines.map(PriceRef::read).collect(),
        }
    }
}

impl PriceRef {
    fn read(line: &Value) -> Self {
        Self {
            price: id(line, &["/pricing/price_details/price", "/price", "/plan"]),
            product: id(
                line,
                &[
                    "/pricing/price_details/product",
                    "/price/product",
                    "/price/product_id",
                    "/plan/product",
                ],
            ),
        }
    }
}

impl Subscription {
    /// Reads a subscription as the provider's API gives it: of a listing to be compared with, or asked for because two
    /// events of one second cannot be told apart.
    #[must_use]
    pub fn read(object: &Value) -> Self {
        let items: Vec<_> = list(object, &["/items/data", "/items"])
            .iter()
            .map(SubscriptionItem::read)
            .collect();
        // Some payloads have both; the items' are the newer field.
        let of_items = items.iter().filter_map(|item| item.period_end).max();
        let of_all = time(
            object,
            &["/current_period_end", "/current_billing_period/ends_at"],
        );
        let pause = object.pointer("/pause_collection");
        let ends = text(object, &["/scheduled_change/action"]).as_deref() == Some("cancel");
        let scheduled = time(object, &["/scheduled_change/effective_at"]).filter(|_| ends);
        Self {
            id: text(object, &["/id"]),
            customer: id(object, CUSTOMER),
            status: SubscriptionStatus::read(text(object, &["/status"]).as_deref()),
            period_end: of_items.or(of_all),
            items,
            billing_anchor: time(object, &["/billing_cycle_anchor"]),
            cancel_at_period_end: flag(object, "/cancel_at_period_end") || ends,
            cancel_at: time(object, &["/cancel_at"]).or(scheduled),
            ended_at: time(object, &["/ended_at", "/canceled_at"]),
            trial_end: time(object, &["/trial_end"]),
            pause_collection: pause.is_some_and(|pause| !pause.is_null()),
            currency: lower(text(object, &["/currency", "/currency_code"])),
            metadata: metadata(object, &["/metadata", "/custom_data"]),
        }
    }
}

impl Subscription {
    /// When it will end, where that is decided.
    #[must_use]
    pub fn ends_at(&self) -> Option<Timestamp> {
        match self.cancel_at {
            Some(at) => Some(at),
            None if self.cancel_at_period_end => self.period_end,
            None => None,
        }
    }

    /// Prices, products and lookup keys of all items.
    pub(crate) fn names(&self) -> Vec<Box<str>> {
        let of_items = self.items.iter().flat_map(|item| {
            let of_item = [&item.price, &item.product, &item.lookup_key];
            of_item.into_iter().flatten().cloned()
        });
        of_items.collect()
    }
}

impl SubscriptionItem {
    fn read(item: &Value) -> Self {
        Self {
            price: id(item, &["/price", "/plan"]),
            product: id(
                item,
                &["/price/product", "/price/product_id", "/plan/product"],
            ),
            lookup_key: text(item, &["/price/lookup_key"]),
            quantity: integer(item, &["/quantity"]),
            period_end: time(item, &["/current_period_end"]),
        }
    }
}
