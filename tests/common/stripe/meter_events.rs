//! `POST /v1/billing/meter_events` (docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api).

use std::{collections::HashMap, time::Duration};

use serde_json::json;
use tollgate::clock::Timestamp;

use super::{Form, Reply};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A meter event that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MeterEvent {
    pub(crate) event_name: String,
    pub(crate) customer: String,
    pub(crate) value: u64,
    pub(crate) identifier: String,
    pub(crate) timestamp: u64,
}

#[derive(Debug, Default)]
pub(crate) struct MeterEvents {
    pub(crate) accepted: Vec<MeterEvent>,
    /// Identifiers are unique within a day and not longer.
    identifiers: HashMap<String, Timestamp>,
}

impl MeterEvents {
    /// One call at a time for each customer and meter.
    pub(crate) fn lock_of(form: &Form) -> String {
        let field = |name| form.get(name).map_or("", String::as_str);
        format!(
            "{}\n{}",
            field("event_name"),
            field("payload[stripe_customer_id]")
        )
    }

    pub(crate) fn create(&mut self, form: &Form, now: Timestamp) -> Reply {
        let invalid = |code: &str, message: &str| Reply::error(400, code, message);
        let field = |name| {
            form.get(name)
                .map(String::as_str)
                .filter(|text| !text.is_empty())
        };
        let known = [
            "event_name",
            "identifier",
            "payload[stripe_customer_id]",
            "payload[value]",
            "timestamp",
        ];
        if let Some(unknown) = form.keys().find(|name| !known.contains(&name.as_str())) {
            return invalid(
                "parameter_unknown",
                &format!("Received unknown parameter: {unknown}"),
            );
        }
        let (Some(event_name), Some(customer), Some(value)) = (
            field("event_name"),
            field("payload[stripe_customer_id]"),
            field("payload[value]"),
        ) else {
            return invalid("parameter_missing", "Missing required param");
        };
        if !customer.starts_with("cus_") {
            return invalid("resource_missing", "No such customer");
        }
        let Ok(value) = value.parse::<u64>().map_err(drop).and_then(|n| {
            // Digits only: no sign, no point.
            if value.bytes().all(|digit| digit.is_ascii_digit()) {
                Ok(n)
            } else {
                Err(())
            }
        }) else {
            return invalid("meter_event_invalid_value", "The value is no whole number");
        };
        if value >= 1_000_000_000_000_000 {
            return invalid(
                "meter_event_value_too_many_digits",
                "The value has more than 15 digits",
            );
        }
        let at = match field("timestamp").map(str::parse::<u64>) {
            None => now,
            Some(Ok(seconds)) => Timestamp::from_unix_seconds(seconds),
            Some(Err(_)) => {
                return invalid("parameter_invalid_integer", "Invalid integer: timestamp");
            }
        };
        if now.saturating_since(at) > 35 * DAY {
            return invalid(
                "timestamp_too_far_in_past",
                "The timestamp is over 35 days old",
            );
        }
        if at.saturating_since(now) > Duration::from_secs(300) {
            return invalid(
                "timestamp_in_future",
                "The timestamp is over 5 minutes ahead",
            );
        }
        let made_up = format!("made-up-{}", self.accepted.len());
        let identifier = field("identifier").unwrap_or(&made_up);
        if identifier.chars().count() > 100 || event_name.chars().count() > 100 {
            return invalid(
                "parameter_invalid_string",
                "Invalid string: at most 100 characters",
            );
        }
        let seen = self.identifiers.get(identifier);
        if seen.is_some_and(|seen| now.saturating_since(*seen) < DAY) {
            let message = format!("An event already exists with identifier {identifier}.");
            return invalid("duplicate_meter_event", &message);
        }
        self.identifiers.insert(identifier.to_owned(), now);
        let event = MeterEvent {
            event_name: event_name.to_owned(),
            customer: customer.to_owned(),
            value,
            identifier: identifier.to_owned(),
            timestamp: at.as_unix_seconds(),
        };
        let reply = json!({
            "object": "billing.meter_event",
            "event_name": event.event_name,
            "identifier": event.identifier,
            "payload": {"stripe_customer_id": event.customer, "value": event.value.to_string()},
            "timestamp": event.timestamp,
            "created": now.as_unix_seconds(),
            "livemode": false,
        });
        self.accepted.push(event);
        Reply::ok(reply)
    }
}
