use clickhouse::Row;
use serde::Serialize;

use crate::{
    clock::Timestamp,
    meter::{CallOutcome, EventId, UsageEvent},
};

/// 2149-01-01: half a year before the type of the day ends.
pub(super) const END_OF_DAYS: Timestamp = Timestamp::from_unix_seconds(5_648_659_200);

/// An event as a row of `usage_events`.
#[derive(Debug, Row, Serialize)]
pub(super) struct EventRow<'a> {
    id: [u8; 32],
    part_of: String,
    schema: u16,
    source: &'a str,
    time: i64,
    tenant: &'a str,
    key_id: &'a str,
    plan: &'a str,
    environment: &'a str,
    api: &'a str,
    route: &'a str,
    method: &'a str,
    status: u16,
    grpc_status: Option<u8>,
    outcome: &'a str,
    refused: &'a str,
    latency_micros: u64,
    request_bytes: u64,
    response_bytes: u64,
    quantities: Vec<(&'a str, u64)>,
    overage: bool,
    waived: bool,
    deprecated: bool,
    request_id: &'a str,
    trace_id: &'a str,
    cost_nanos: Option<u64>,
    country: &'a str,
}

impl<'a> EventRow<'a> {
    pub(super) fn of(event: &'a UsageEvent) -> Self {
        let text = |text: &'a Option<std::sync::Arc<str>>| text.as_deref().unwrap_or_default();
        Self {
            id: digits(event.id),
            part_of: event.part_of.map(|id| id.to_string()).unwrap_or_default(),
            schema: event.schema,
            source: &event.source,
            time: i64::try_from(event.time.as_unix_micros()).unwrap_or(i64::MAX),
            tenant: event.tenant.as_str(),
            key_id: event
                .key
                .as_ref()
                .map(|key| key.as_str())
                .unwrap_or_default(),
            plan: event.plan.as_str(),
            environment: event.environment.as_str(),
            api: &event.api,
            route: &event.route,
            method: &event.method,
            status: event.status,
            grpc_status: event.grpc_status,
            outcome: name(event.outcome),
            refused: text(&event.refused),
            latency_micros: event.latency_micros,
            request_bytes: event.request_bytes,
            response_bytes: event.response_bytes,
            quantities: event
                .quantities
                .iter()
                .map(|(name, n)| (&**name, *n))
                .collect(),
            overage: event.overage,
            waived: event.waived,
            deprecated: event.deprecated,
            request_id: text(&event.request_id),
            trace_id: text(&event.trace_id),
            cost_nanos: event.cost.as_ref().map(|cost| cost.total_nanos),
            country: text(&event.country),
        }
    }
}

/// The id's 32 hexadecimal digits.
fn digits(id: EventId) -> [u8; 32] {
    let mut digits = [b'0'; 32];
    for (place, byte) in digits.iter_mut().zip(id.to_string().bytes()) {
        *place = byte;
    }
    digits
}

/// The outcome as in the JSON form.
const fn name(outcome: CallOutcome) -> &'static str {
    match outcome {
        CallOutcome::Served => "served",
        CallOutcome::Refused => "refused",
        CallOutcome::Failed => "failed",
        CallOutcome::Aborted => "aborted",
        CallOutcome::Panicked => "panicked",
    }
}
