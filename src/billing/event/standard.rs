//! Events in the form that Standard Webhooks recommends.

use std::{borrow::Cow, sync::Arc};

use serde_json::Value;

use super::{
    BillingEvent, BillingObject, Delivered, EventError, Shared,
    reading::{as_time, name},
    stripe,
};
use crate::clock::Timestamp;

pub(super) fn read(id: &str, signed_at: Timestamp, raw: Value) -> Result<Delivered, EventError> {
    let name = name(&raw, "type")?;
    let told_at = match raw.get("timestamp") {
        None | Some(Value::Null) => None,
        Some(time) => Some(as_time(time).ok_or(EventError::InvalidField {
            field: "timestamp",
            expected: "a time of RFC 3339",
        })?),
    };
    let data = raw
        .get("data")
        .ok_or(EventError::MissingField { field: "data" })?;
    let object = data.get("object").filter(|object| object.is_object());
    let (kind, object) = match object.unwrap_or(data) {
        object @ Value::Object(_) => stripe::typed(&as_stripe_says(&name), object),
        _ => (super::EventKind::Other, BillingObject::Unknown),
    };
    // The signed time is new for each retry: a late one would seem the newest state of its object.
    let created = match (told_at, &object) {
        (Some(told_at), _) => told_at,
        (
            None,
            BillingObject::Checkout(_)
            | BillingObject::Entitlements(_)
            | BillingObject::Invoice(_)
            | BillingObject::Subscription(_),
        ) => return Err(EventError::MissingField { field: "timestamp" }),
        (None, _) => signed_at,
    };
    let shared = Shared {
        id: id.into(),
        name,
        kind,
        created,
        livemode: raw.get("livemode").and_then(Value::as_bool),
        account: None,
        object,
        raw,
        varies: None,
    };
    Ok(Delivered::Event(BillingEvent {
        shared: Arc::new(shared),
    }))
}

/// The names that others have for the same.
fn as_stripe_says(name: &str) -> Cow<'_, str> {
    match name {
        "checkout.completed" => "checkout.session.completed".into(),
        "checkout.expired" => "checkout.session.expired".into(),
        "subscription.canceled" | "subscription.cancelled" | "subscription.ended" => {
            "customer.subscription.deleted".into()
        }
        _ if name.starts_with("subscription.") => format!("customer.{name}").into(),
        _ => name.into(),
    }
}
