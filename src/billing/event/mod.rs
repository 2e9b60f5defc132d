//! What the payment provider says, in one form whatever provider and version of its API says it.
//!
//! A [`BillingEvent`] has an id, a time, a [kind](EventKind) and, where this crate knows it, a typed
//! [object](BillingObject). Everything that was sent stands in [`BillingEvent::raw`], for what the types leave out. A field
//! that an API version moved is found where it was and where it is: `current_period_end` of a subscription or of its
//! items, `subscription` of an invoice or of its `parent`, `price` of a line or of its `pricing`.
//!
//! ```
//! use tollgate::billing::{BillingObject, Delivered, EventKind, SubscriptionStatus};
//!
//! let body = br#"{"id":"evt_1","object":"event","type":"customer.subscription.updated","created":1763769590,
//!     "livemode":false,"data":{"object":{"id":"sub_1","object":"subscription","customer":"cus_1","status":"past_due",
//!     "items":{"data":[{"price":{"id":"price_pro"},"current_period_end":1766361590}]}}}}"#;
//! let Delivered::Event(event) = Delivered::from_stripe(body)? else { panic!("not a thin event") };
//! assert_eq!(event.kind(), EventKind::SubscriptionChanged);
//! let BillingObject::Subscription(subscription) = event.object() else { panic!("a subscription") };
//! assert_eq!(subscription.status, SubscriptionStatus::PastDue);
//! assert_eq!(subscription.items[0].price.as_deref(), Some("price_pro"));
//!
//! let error = Delivered::from_stripe(br#"{"id":"evt_1","id":"evt_2"}"#).unwrap_err();
//! assert_eq!(error.to_string(), "the field `id` is there twice");
//! # Ok::<(), tollgate::billing::EventError>(())
//! ```

mod json;
mod object;
mod paddle;
mod reading;
mod standard;
mod stripe;

use std::{fmt, sync::Arc};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

pub use self::object::{
    BillingObject, Checkout, Customer, Dispute, EntitlementSummary, Invoice, PriceRef,
    Subscription, SubscriptionItem, SubscriptionStatus,
};
use crate::clock::Timestamp;

/// A delivery is signed, and is no event.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// The body is not one JSON document.
    #[error("the body is not JSON")]
    NotJson(#[source] serde_json::Error),
    /// A key stands twice in one object, so that two readers could read two events.
    #[error("the field `{field}` is there twice")]
    DuplicateField {
        /// The key.
        field: String,
    },
    /// Objects lie more than 64 deep in each other.
    #[error("the body is nested too deep")]
    TooDeep,
    /// A field that every event has is missing.
    #[error("the field `{field}` is missing")]
    MissingField {
        /// The field's path.
        field: &'static str,
    },
    /// A field that every event has is not what it must be.
    #[error("the field `{field}` must be {expected}")]
    InvalidField {
        /// The field's path.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
    },
}

impl EventError {
    /// The field's path, where the error is about one.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::DuplicateField { field } => Some(field),
            Self::MissingField { field } | Self::InvalidField { field, .. } => Some(field),
            Self::NotJson(_) | Self::TooDeep => None,
        }
    }
}

/// What an event says happened, whatever the provider calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// A checkout is over and paid, or needs no payment.
    CheckoutCompleted,
    /// A checkout ended without a purchase.
    CheckoutExpired,
    /// A checkout is over, and its payment failed later or is still under way.
    CheckoutNotPaid,
    /// A customer was made or changed.
    CustomerChanged,
    /// A customer was deleted at the provider.
    CustomerDeleted,
    /// A dispute was opened, changed or closed.
    DisputeChanged,
    /// The features that a customer has a right to.
    EntitlementsChanged,
    /// An invoice was made or changed, which changes nothing for access.
    InvoiceChanged,
    /// An invoice is paid.
    InvoicePaid,
    /// An invoice could not be collected, is overdue, or waits for its payer.
    InvoicePaymentFailed,
    /// An invoice is void: nothing is owed for it any more.
    InvoiceVoided,
    /// Something that this crate does not know. It has the raw JSON.
    Other,
    /// A subscription changed.
    SubscriptionChanged,
    /// A subscription was made.
    SubscriptionCreated,
    /// A subscription has ended for good.
    SubscriptionEnded,
}

/// One event of the payment provider. Cloning is cheap.
#[derive(Clone)]
pub struct BillingEvent {
    shared: Arc<Shared>,
}

struct Shared {
    id: Box<str>,
    name: Box<str>,
    kind: EventKind,
    created: Timestamp,
    livemode: Option<bool>,
    account: Option<Box<str>>,
    object: BillingObject,
    raw: Value,
    /// A field that another delivery of the same event has otherwise.
    varies: Option<&'static str>,
}

impl BillingEvent {
    /// The event's id, the same whenever it is delivered again.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// The provider's name for what happened, such as `customer.subscription.updated`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// What happened.
    #[must_use]
    pub fn kind(&self) -> EventKind {
        self.shared.kind
    }

    /// When it happened, by the provider's clock. Stripe's has whole seconds.
    #[must_use]
    pub fn created(&self) -> Timestamp {
        self.shared.created
    }

    /// Whether real money is meant; `None` of a provider whose events do not say.
    #[must_use]
    pub fn livemode(&self) -> Option<bool> {
        self.shared.livemode
    }

    /// The connected account that the event is about.
    #[must_use]
    pub fn account(&self) -> Option<&str> {
        self.shared.account.as_deref()
    }

    /// The object that the event is about, as it was then.
    #[must_use]
    pub fn object(&self) -> &BillingObject {
        &self.shared.object
    }

    /// All that was sent.
    #[must_use]
    pub fn raw(&self) -> &Value {
        &self.shared.raw
    }
}

/// What is in an event is the customers' business: only what it is called shows.
impl fmt::Debug for BillingEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BillingEvent")
            .field("id", &self.id())
            .field("name", &self.name())
            .field("created", &self.created())
            .finish_non_exhaustive()
    }
}

/// An event that only says which object to look up (Stripe's `v2.core.event`).
#[derive(Clone)]
pub struct ThinEvent {
    shared: Arc<Thin>,
}

struct Thin {
    id: Box<str>,
    name: Box<str>,
    created: Timestamp,
    livemode: bool,
    related: Option<RelatedObject>,
    raw: Value,
}

/// What a thin event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelatedObject {
    /// The object's id.
    pub id: Box<str>,
    /// The object's type, such as `billing.meter`.
    pub kind: Box<str>,
    /// The path under the provider's API where it can be read.
    pub url: Option<Box<str>>,
}

impl ThinEvent {
    /// The event's id, the same whenever it is delivered again.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// The provider's name for what happened, such as `v1.billing.meter.error_report_triggered`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// When it happened, by the provider's clock.
    #[must_use]
    pub fn created(&self) -> Timestamp {
        self.shared.created
    }

    /// Whether real money is meant.
    #[must_use]
    pub fn livemode(&self) -> bool {
        self.shared.livemode
    }

    /// The connected account that it is about, where one is: the last step of its `context`.
    #[must_use]
    pub fn account(&self) -> Option<&str> {
        let context = self.shared.raw.get("context")?.as_str()?;
        context.rsplit('/').next()
    }

    /// What the event is about.
    #[must_use]
    pub fn related(&self) -> Option<&RelatedObject> {
        self.shared.related.as_ref()
    }

    /// All that was sent.
    #[must_use]
    pub fn raw(&self) -> &Value {
        &self.shared.raw
    }
}

impl fmt::Debug for ThinEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThinEvent")
            .field("id", &self.id())
            .field("name", &self.name())
            .field("created", &self.created())
            .finish_non_exhaustive()
    }
}

/// What the body of a delivery holds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Delivered {
    /// An event with its object.
    Event(BillingEvent),
    /// An event that only says which object to look up.
    Thin(ThinEvent),
}

impl Delivered {
    /// Reads an event of Stripe's. Verify its signature before.
    ///
    /// # Errors
    ///
    /// [`EventError`] names the field that is wrong.
    pub fn from_stripe(body: &[u8]) -> Result<Self, EventError> {
        stripe::read(json::read(body)?)
    }

    /// Reads an event of Paddle's. Verify its signature before.
    ///
    /// # Errors
    ///
    /// [`EventError`] names the field that is wrong.
    pub fn from_paddle(body: &[u8]) -> Result<Self, EventError> {
        paddle::read(json::read(body)?)
    }

    /// Reads an event in the form that Standard Webhooks recommends: `type`, `timestamp` and `data`. Its id is that of the
    /// delivery, and its time the signed one where it has none; but what a tenant's access follows from must have a
    /// `timestamp`, as each retry is signed anew and would seem the newest. Types and fields that are named as Stripe names them are
    /// understood; the rest is [`EventKind::Other`]. Verify its signature before.
    ///
    /// # Errors
    ///
    /// [`EventError`] names the field that is wrong.
    pub fn from_standard_webhooks(
        id: &str,
        signed_at: Timestamp,
        body: &[u8],
    ) -> Result<Self, EventError> {
        standard::read(id, signed_at, json::read(body)?)
    }

    /// The event's id.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Event(event) => event.id(),
            Self::Thin(thin) => thin.id(),
        }
    }

    /// The provider's name for what happened.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Event(event) => event.name(),
            Self::Thin(thin) => thin.name(),
        }
    }

    /// When it happened, by the provider's clock.
    #[must_use]
    pub fn created(&self) -> Timestamp {
        match self {
            Self::Event(event) => event.created(),
            Self::Thin(thin) => thin.created(),
        }
    }

    /// Whether real money is meant; `None` where the provider does not say.
    #[must_use]
    pub fn livemode(&self) -> Option<bool> {
        match self {
            Self::Event(event) => event.livemode(),
            Self::Thin(thin) => Some(thin.livemode()),
        }
    }

    /// A digest of what the event says. Two deliveries of one event have the same: `pending_webhooks`, which counts down
    /// while Stripe delivers, and `notification_id`, which is new for each replay of Paddle's, are left out.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        let (raw, varies) = match self {
            Self::Event(event) => (event.raw(), event.shared.varies),
            Self::Thin(thin) => (thin.raw(), None),
        };
        let mut digest = Sha256::new();
        match raw {
            Value::Object(fields) => {
                for (name, value) in fields
                    .iter()
                    .filter(|(name, _)| Some(name.as_str()) != varies)
                {
                    // The JSON of a value ends by itself, so that no two sequences of fields read the same.
                    digest.update(Value::from(name.as_str()).to_string());
                    digest.update(value.to_string());
                }
            }
            other => digest.update(other.to_string()),
        }
        digest.finalize().into()
    }
}
