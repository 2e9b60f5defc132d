use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::CallCost;
use crate::{
    clock::Timestamp,
    id::{Environment, KeyId, PlanName, TenantId},
};

/// Names one usage event for ever: 8 random bytes of the process's start and a sequence number of 8.
///
/// Made once when the call is admitted and never remade, so that every sink can tell a repeated event from a
/// new one. Written as 32 hexadecimal digits. A client cannot influence it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(u128);

impl EventId {
    /// An id from the process's boot number and the event's place in its sequence.
    #[must_use]
    pub const fn new(boot: u64, sequence: u64) -> Self {
        Self((boot as u128) << 64 | sequence as u128)
    }

    /// The id of a number, unless it is zero.
    pub(super) const fn from_u128(id: u128) -> Option<Self> {
        if id == 0 { None } else { Some(Self(id)) }
    }

    /// The id as one number.
    #[must_use]
    pub const fn as_u128(self) -> u128 {
        self.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'_, str>::deserialize(deserializer)?;
        if text.len() != 32 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(D::Error::custom("an event id is 32 hexadecimal digits"));
        }
        u128::from_str_radix(&text, 16)
            .map(Self)
            .map_err(D::Error::custom)
    }
}

/// How a call ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CallOutcome {
    /// The service answered below 500, or by a gRPC status that is no failure of its own, and the whole answer was handed to the connection.
    #[default]
    Served,
    /// A limit, an access state or a route layer refused the call.
    Refused,
    /// The service answered with a 5xx status, or by a gRPC status [of that
    /// kind](crate::guide::grpc#how-a-call-ends), or its response body ended with an error.
    Failed,
    /// The client left before the answer was complete.
    Aborted,
    /// The service panicked.
    Panicked,
}

/// One metered call.
///
/// Serialises with a `schema` number. Within one number a field is only ever added, never renamed or removed,
/// and a reader ignores fields that it does not know: what a newer process writes, an older one reads. A new
/// [`CallOutcome`] or any other change that an older reader would misunderstand gets a new number.
///
/// Texts that come from a request (route, method, request id) hold no control characters: those are written as
/// escapes, `\u{1b}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UsageEvent {
    /// The version of this form; [`UsageEvent::SCHEMA`].
    pub schema: u16,
    /// Names the event for ever.
    pub id: EventId,
    /// Names the call that this event is a part of, by the id of its last event; only on the reports of a call
    /// that goes on, see [`RecorderBuilder::report_every`](super::RecorderBuilder::report_every).
    ///
    /// A part tells what was used since the report before it, at its own time, and the last event tells the rest:
    /// quantities and bytes add up over all of them. Count as calls the events without this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_of: Option<EventId>,
    /// The instance that metered the call.
    pub source: Arc<str>,
    /// When the call was admitted or refused; decides the billing period, so a retry cannot move it.
    pub time: Timestamp,
    /// Who pays.
    pub tenant: TenantId,
    /// The key that called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    /// The plan that governed the call.
    pub plan: PlanName,
    /// Test events are never billed.
    pub environment: Environment,
    /// The API, as the gate was told.
    pub api: Arc<str>,
    /// The route template, such as `/v1/chat/{id}`; `unmatched` where none is known.
    pub route: Arc<str>,
    /// The request's method.
    pub method: Arc<str>,
    /// The answer's status; 499 when the client left before there was one, 500 when the service panicked or
    /// failed before there was one. Of a gRPC call that the gate refused, the status in plain HTTP.
    pub status: u16,
    /// The `grpc-status` that the caller of a gRPC call was told, 0 to 16: 2 (`UNKNOWN`) where the answer ended
    /// without one; `None` where the client left before the end, in the report of a call that goes on, and without the
    /// `grpc` feature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u8>,
    /// How the call ended.
    pub outcome: CallOutcome,
    /// The code of the refusal, when this crate refused the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Arc<str>>,
    /// From the request's arrival at the meter to the end of its answer, or to the report, in microseconds.
    pub latency_micros: u64,
    /// Bytes of request content: those that were read, behind a
    /// [`CountRequestBodyLayer`](super::CountRequestBodyLayer); else its `Content-Length`, 0 when unknown.
    pub request_bytes: u64,
    /// Bytes of response content handed to the connection.
    pub response_bytes: u64,
    /// Whole numbers of what the call used, by name; of a call whose client left, what counts by the
    /// [`AbortPolicy`](super::AbortPolicy).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub quantities: BTreeMap<Arc<str>, u64>,
    /// The call was above a limit that prices overage.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overage: bool,
    /// The call is not to be paid for, not as a call either: its client left before the first byte of content,
    /// under [`AbortPolicy::NothingBeforeFirstByte`](super::AbortPolicy::NothingBeforeFirstByte).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waived: bool,
    /// The call used a version of the API that is deprecated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deprecated: bool,
    /// The request id that the answer carried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Arc<str>>,
    /// The trace that the call belonged to, 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<Arc<str>>,
    /// What the call cost whoever runs the service, where rates are set or the handler named a cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<CallCost>,
    /// The caller's country, ISO 3166-1 alpha-2, where a [`GeoResolver`](super::GeoResolver) tells it. The address is
    /// in no event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<Arc<str>>,
}

impl UsageEvent {
    /// The version of the serialised form.
    pub const SCHEMA: u16 = 1;

    /// A served `GET` of nothing, to be filled in: for tests of sinks and for events that a service makes
    /// itself.
    #[must_use]
    pub fn new(id: EventId, time: Timestamp, tenant: TenantId, plan: PlanName) -> Self {
        Self {
            schema: Self::SCHEMA,
            id,
            part_of: None,
            source: Arc::from("tollgate"),
            time,
            tenant,
            key: None,
            plan,
            environment: Environment::Live,
            api: Arc::from("default"),
            route: Arc::from("unmatched"),
            method: Arc::from("GET"),
            status: 200,
            grpc_status: None,
            outcome: CallOutcome::Served,
            refused: None,
            latency_micros: 0,
            request_bytes: 0,
            response_bytes: 0,
            quantities: BTreeMap::new(),
            overage: false,
            waived: false,
            deprecated: false,
            request_id: None,
            trace_id: None,
            cost: None,
            country: None,
        }
    }

    /// About how many bytes the event takes as JSON: its texts as they are, and the rest at its usual length.
    pub(super) fn about_bytes(&self) -> usize {
        const REST: usize = 420;
        let texts = [&self.source, &self.api, &self.route, &self.method];
        let more = [&self.refused, &self.request_id, &self.trace_id];
        REST + self.tenant.as_str().len()
            + self.plan.as_str().len()
            + texts.iter().map(|text| text.len()).sum::<usize>()
            + more
                .into_iter()
                .flatten()
                .map(|text| text.len())
                .sum::<usize>()
            + self
                .quantities
                .keys()
                .map(|name| name.len() + 12)
                .sum::<usize>()
    }
}

/// Whether a character could forge a line of a log or steer a terminal.
pub(crate) fn forges_a_line(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

/// The text with such characters escaped.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(forges_a_line) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if forges_a_line(c) {
            escaped.extend(c.escape_unicode());
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}
