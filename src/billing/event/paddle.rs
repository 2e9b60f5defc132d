//! Events of Paddle Billing.

use std::sync::Arc;

use serde_json::Value;

use super::{
    BillingEvent, BillingObject, Checkout, Customer, Delivered, EventError, EventKind, Invoice,
    Shared, Subscription,
    reading::{name, required_time, text},
};

pub(super) fn read(raw: Value) -> Result<Delivered, EventError> {
    let id = name(&raw, "event_id")?;
    let name = name(&raw, "event_type")?;
    let created = required_time(&raw, "occurred_at")?;
    let data = raw
        .get("data")
        .ok_or(EventError::MissingField { field: "data" })?;
    if !data.is_object() {
        return Err(EventError::InvalidField {
            field: "data",
            expected: "an object",
        });
    }
    let (kind, object) = typed(&name, data);
    let shared = Shared {
        id,
        name,
        kind,
        created,
        livemode: None,
        account: None,
        object,
        raw,
        varies: Some("notification_id"),
    };
    Ok(Delivered::Event(BillingEvent {
        shared: Arc::new(shared),
    }))
}

fn typed(name: &str, data: &Value) -> (EventKind, BillingObject) {
    use EventKind as Kind;
    if let Some(what) = name.strip_prefix("subscription.") {
        let kind = match what {
            "created" => Kind::SubscriptionCreated,
            "canceled" => Kind::SubscriptionEnded,
            _ => Kind::SubscriptionChanged,
        };
        return (kind, BillingObject::Subscription(Subscription::read(data)));
    }
    let invoice = |kind| (kind, BillingObject::Invoice(Invoice::read(data)));
    match name {
        // Paddle has no event of a checkout: the first payment of one is it, and `web` says where it was made.
        "transaction.completed" if text(data, &["/origin"]).as_deref() == Some("web") => {
            let checkout = Checkout::read(data);
            (Kind::CheckoutCompleted, BillingObject::Checkout(checkout))
        }
        "transaction.completed" | "transaction.paid" => invoice(Kind::InvoicePaid),
        "transaction.payment_failed" | "transaction.past_due" => {
            invoice(Kind::InvoicePaymentFailed)
        }
        "transaction.canceled" => invoice(Kind::InvoiceVoided),
        "customer.created" | "customer.updated" => {
            let customer = Customer::read(data);
            (Kind::CustomerChanged, BillingObject::Customer(customer))
        }
        _ if name.starts_with("transaction.") => invoice(Kind::InvoiceChanged),
        _ => (Kind::Other, BillingObject::Unknown),
    }
}
