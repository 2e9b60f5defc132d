//! Events of Stripe: the envelope with its object, and the thin one.

use std::sync::Arc;

use serde_json::Value;

use super::{
    BillingEvent, BillingObject, Checkout, Customer, Delivered, Dispute, EntitlementSummary,
    EventError, EventKind, Invoice, RelatedObject, Shared, Subscription, Thin, ThinEvent,
    reading::{name, required_flag, required_time, text},
};

pub(super) fn read(raw: Value) -> Result<Delivered, EventError> {
    match raw.get("object").and_then(Value::as_str) {
        Some("v2.core.event") => thin(raw),
        _ => event(raw),
    }
}

fn thin(raw: Value) -> Result<Delivered, EventError> {
    let related = raw.get("related_object").filter(|it| !it.is_null());
    let related = related.and_then(|related| {
        Some(RelatedObject {
            id: text(related, &["/id"])?,
            kind: text(related, &["/type"])?,
            url: text(related, &["/url"]),
        })
    });
    let thin = Thin {
        id: name(&raw, "id")?,
        name: name(&raw, "type")?,
        created: required_time(&raw, "created")?,
        livemode: required_flag(&raw, "livemode")?,
        related,
        raw,
    };
    let shared = Arc::new(thin);
    Ok(Delivered::Thin(ThinEvent { shared }))
}

fn event(raw: Value) -> Result<Delivered, EventError> {
    let id = name(&raw, "id")?;
    let name = name(&raw, "type")?;
    let created = required_time(&raw, "created")?;
    let livemode = required_flag(&raw, "livemode")?;
    let object = raw
        .pointer("/data/object")
        .ok_or(EventError::MissingField {
            field: "data.object",
        })?;
    if !object.is_object() {
        return Err(EventError::InvalidField {
            field: "data.object",
            expected: "an object",
        });
    }
    let (kind, object) = typed(&name, object);
    let shared = Shared {
        id,
        name,
        kind,
        created,
        livemode: Some(livemode),
        account: text(&raw, &["/account"]),
        object,
        raw,
        varies: Some("pending_webhooks"),
    };
    Ok(Delivered::Event(BillingEvent {
        shared: Arc::new(shared),
    }))
}

/// What a type of Stripe's means, with its object.
pub(super) fn typed(name: &str, object: &Value) -> (EventKind, BillingObject) {
    use EventKind as Kind;
    let checkout = |kind| (kind, BillingObject::Checkout(Checkout::read(object)));
    let customer = |kind| (kind, BillingObject::Customer(Customer::read(object)));
    let invoice = |kind| (kind, BillingObject::Invoice(Invoice::read(object)));
    let subscription = |kind| {
        (
            kind,
            BillingObject::Subscription(Subscription::read(object)),
        )
    };
    if let Some(what) = name.strip_prefix("customer.subscription.") {
        return match what {
            "created" => subscription(Kind::SubscriptionCreated),
            "deleted" => subscription(Kind::SubscriptionEnded),
            _ => subscription(Kind::SubscriptionChanged),
        };
    }
    if let Some(what) = name.strip_prefix("invoice.") {
        return match what {
            "paid" | "payment_succeeded" => invoice(Kind::InvoicePaid),
            "payment_failed"
            | "payment_action_required"
            | "payment_attempt_required"
            | "overdue"
            | "marked_uncollectible" => invoice(Kind::InvoicePaymentFailed),
            "voided" => invoice(Kind::InvoiceVoided),
            _ => invoice(Kind::InvoiceChanged),
        };
    }
    match name {
        "checkout.session.completed" if is_unpaid(object) => checkout(Kind::CheckoutNotPaid),
        "checkout.session.completed" | "checkout.session.async_payment_succeeded" => {
            checkout(Kind::CheckoutCompleted)
        }
        "checkout.session.async_payment_failed" => checkout(Kind::CheckoutNotPaid),
        "checkout.session.expired" => checkout(Kind::CheckoutExpired),
        "customer.created" | "customer.updated" => customer(Kind::CustomerChanged),
        "customer.deleted" => customer(Kind::CustomerDeleted),
        "entitlements.active_entitlement_summary.updated" => {
            let summary = EntitlementSummary::read(object);
            (
                Kind::EntitlementsChanged,
                BillingObject::Entitlements(summary),
            )
        }
        _ if name.starts_with("charge.dispute.") => {
            let dispute = Dispute::read(object);
            (Kind::DisputeChanged, BillingObject::Dispute(dispute))
        }
        _ => (Kind::Other, BillingObject::Unknown),
    }
}

/// The buyer chose a way to pay that takes days: another event will say how it ended.
fn is_unpaid(object: &Value) -> bool {
    object.get("payment_status").and_then(Value::as_str) == Some("unpaid")
}
