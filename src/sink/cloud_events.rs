use std::fmt::Display;

use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::meter::{CallCost, UsageEvent};

/// Usage events in the JSON form of CloudEvents 1.0, for OpenMeter and whatever else takes them over HTTP.
///
/// Pure: what sends them is a sink. Attributes: `id` is the event's own, `source` is `tollgate/` and the event's
/// source, so that both together name the event for ever; `subject` is the tenant; `time` is RFC 3339; `type` is
/// `api-calls` unless set. In `data` the field `value` is `"1"`, for a count of calls, and every number is text,
/// as readers keep numbers in floating point. What an event leaves out, `data` leaves out.
///
/// ```
/// use tollgate::{
///     clock::Timestamp,
///     id::{PlanName, TenantId},
///     meter::{EventId, UsageEvent},
///     sink::CloudEvents,
/// };
///
/// let time = Timestamp::from_unix_seconds(1_768_478_400);
/// let event = UsageEvent::new(EventId::new(1, 1), time, TenantId::new("acme")?, PlanName::new("pro")?);
/// let encoder = CloudEvents::new();
/// let body = serde_json::to_value(encoder.batch(std::slice::from_ref(&event)))?;
/// assert_eq!(body[0]["subject"], "acme");
/// assert_eq!(body[0]["time"], "2026-01-15T12:00:00Z");
/// assert_eq!(body[0]["data"]["value"], "1");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct CloudEvents {
    kind: Box<str>,
}

impl CloudEvents {
    /// The `Content-Type` of one event, to be sent exactly so: OpenMeter refuses one with parameters.
    pub const CONTENT_TYPE: &'static str = "application/cloudevents+json";
    /// The `Content-Type` of a batch, to be sent exactly so.
    pub const BATCH_CONTENT_TYPE: &'static str = "application/cloudevents-batch+json";

    /// Encodes events of the type `api-calls`.
    pub fn new() -> Self {
        Self {
            kind: Box::from("api-calls"),
        }
    }

    /// The `type` of the events; `api-calls` unless set.
    pub fn event_type(mut self, kind: impl Into<Box<str>>) -> Self {
        self.kind = kind.into();
        self
    }

    /// One event, to be serialised as JSON under [`CONTENT_TYPE`](Self::CONTENT_TYPE).
    pub const fn one<'a>(&'a self, event: &'a UsageEvent) -> CloudEvent<'a> {
        CloudEvent {
            kind: &self.kind,
            event,
        }
    }

    /// Several events, to be serialised as JSON under [`BATCH_CONTENT_TYPE`](Self::BATCH_CONTENT_TYPE).
    pub const fn batch<'a>(&'a self, events: &'a [UsageEvent]) -> CloudEventBatch<'a> {
        CloudEventBatch {
            encoder: self,
            events,
        }
    }
}

impl Default for CloudEvents {
    fn default() -> Self {
        Self::new()
    }
}

/// One event in the form of [`CloudEvents`].
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct CloudEvent<'a> {
    kind: &'a str,
    event: &'a UsageEvent,
}

/// A batch of events in the form of [`CloudEvents`].
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct CloudEventBatch<'a> {
    encoder: &'a CloudEvents,
    events: &'a [UsageEvent],
}

impl Serialize for CloudEventBatch<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.events.iter().map(|event| self.encoder.one(event)))
    }
}

impl Serialize for CloudEvent<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let event = self.event;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("specversion", "1.0")?;
        map.serialize_entry("id", &event.id)?;
        map.serialize_entry("source", &source(&event.source))?;
        map.serialize_entry("type", self.kind)?;
        map.serialize_entry("subject", &event.tenant)?;
        map.serialize_entry("time", &event.time)?;
        map.serialize_entry("datacontenttype", "application/json")?;
        map.serialize_entry("data", &Data(event))?;
        map.end()
    }
}

/// The source as a URI reference (RFC 3986): what may not stand in a path segment is percent-encoded.
fn source(name: &str) -> String {
    let mut source = String::from("tollgate/");
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            source.push(char::from(byte));
        } else {
            let digit = |n: u8| {
                char::from_digit(n.into(), 16)
                    .unwrap_or('0')
                    .to_ascii_uppercase()
            };
            source.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    source
}

struct Data<'a>(&'a UsageEvent);

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let event = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("value", "1")?;
        map.serialize_entry("schema", &Text(event.schema))?;
        some(&mut map, "key", event.key.as_ref())?;
        map.serialize_entry("plan", &event.plan)?;
        map.serialize_entry("environment", &event.environment)?;
        map.serialize_entry("api", &*event.api)?;
        map.serialize_entry("route", &*event.route)?;
        map.serialize_entry("method", &*event.method)?;
        map.serialize_entry("status", &Text(event.status))?;
        map.serialize_entry("outcome", &event.outcome)?;
        some(&mut map, "refused", event.refused.as_deref())?;
        map.serialize_entry("latency_micros", &Text(event.latency_micros))?;
        map.serialize_entry("request_bytes", &Text(event.request_bytes))?;
        map.serialize_entry("response_bytes", &Text(event.response_bytes))?;
        if !event.quantities.is_empty() {
            map.serialize_entry("quantities", &Quantities(event))?;
        }
        some(&mut map, "overage", event.overage.then_some(true))?;
        some(&mut map, "deprecated", event.deprecated.then_some(true))?;
        some(&mut map, "request_id", event.request_id.as_deref())?;
        some(&mut map, "trace_id", event.trace_id.as_deref())?;
        some(&mut map, "cost", event.cost.as_ref().map(Cost))?;
        some(&mut map, "country", event.country.as_deref())?;
        map.end()
    }
}

fn some<M: SerializeMap>(
    map: &mut M,
    name: &'static str,
    value: Option<impl Serialize>,
) -> Result<(), M::Error> {
    value.map_or(Ok(()), |value| map.serialize_entry(name, &value))
}

/// A number as text: a reader that keeps numbers in floating point would round one above 2^53.
struct Text<T>(T);

impl<T: Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

struct Quantities<'a>(&'a UsageEvent);

impl Serialize for Quantities<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.quantities.iter().map(|(name, n)| (&**name, Text(n))))
    }
}

struct Cost<'a>(&'a CallCost);

impl Serialize for Cost<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let cost = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("total_nanos", &Text(cost.total_nanos))?;
        for (name, n) in [
            ("call_nanos", cost.call_nanos),
            ("compute_nanos", cost.compute_nanos),
            ("bytes_nanos", cost.bytes_nanos),
            ("upstream_nanos", cost.upstream_nanos),
            ("tokens_nanos", cost.tokens_nanos),
            ("compute_micros", cost.compute_micros),
        ] {
            some(&mut map, name, (n != 0).then_some(Text(n)))?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::source;

    #[test]
    fn a_source_is_one_segment_of_a_path() {
        assert_eq!(source("gate-1.eu"), "tollgate/gate-1.eu");
        assert_eq!(source("a b/ä"), "tollgate/a%20b%2F%C3%A4");
    }
}
