//! Usage events in the form of CloudEvents 1.0, byte for byte.

use std::{collections::BTreeMap, sync::Arc};

use serde::Deserialize;
use serde_json::Value;
use tollgate::{
    clock::Timestamp,
    id::{Environment, KeyId, PlanName, TenantId},
    meter::{CallCost, CallOutcome, CostRates, EventId, UsageEvent},
    sink::CloudEvents,
};

fn minimal() -> UsageEvent {
    UsageEvent::new(
        EventId::new(0x0123_4567_89ab_cdef, 7),
        Timestamp::from_unix_micros(1_768_478_400_000_001),
        TenantId::new("acme").expect("an id"),
        PlanName::new("free").expect("a name"),
    )
}

fn full() -> UsageEvent {
    let mut event = minimal();
    event.id = EventId::new(0x0123_4567_89ab_cdef, 8);
    event.source = Arc::from("gate 1");
    event.key = Some(KeyId::new("key-1").expect("an id"));
    event.environment = Environment::Test;
    event.api = Arc::from("chat");
    event.route = Arc::from("/v1/chat/{id}");
    event.method = Arc::from("POST");
    event.status = 429;
    event.outcome = CallOutcome::Refused;
    event.refused = Some(Arc::from("rate_limited"));
    event.latency_micros = 1_234;
    event.request_bytes = 56;
    event.response_bytes = 78;
    event.quantities = BTreeMap::from([(Arc::from("tokens"), u64::MAX), (Arc::from("images"), 2)]);
    event.overage = true;
    event.deprecated = true;
    event.request_id = Some(Arc::from("req-1"));
    event.trace_id = Some(Arc::from("4bf92f3577b34da6a3ce929d0e0e4736"));
    let mut spent = CallCost::default();
    (spent.compute_micros, spent.upstream_nanos) = (2_000, 9);
    event.cost = Some(spent);
    event.cost = Some(
        CostRates::new()
            .call(1)
            .compute_second(3_000)
            .tokens("images", 5)
            .price(&event),
    );
    event.country = Some(Arc::from("NL"));
    event
}

fn golden(name: &str) -> String {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).expect("a golden file")
}

#[test]
fn the_bytes_of_a_line_of_usage_do_not_change() {
    let lines: Vec<_> = [minimal(), full()]
        .iter()
        .map(|event| serde_json::to_string(event).expect("json") + "\n")
        .collect();
    assert_eq!(lines.concat(), golden("usage_events.jsonl"));
    for (line, event) in lines.iter().zip([minimal(), full()]) {
        assert_eq!(
            serde_json::from_str::<UsageEvent>(line).expect("an event"),
            event
        );
    }
}

#[test]
fn the_bytes_of_a_cloud_event_do_not_change() {
    let json = serde_json::to_string(&CloudEvents::new().one(&full())).expect("json");
    assert_eq!(json + "\n", golden("cloud_event.json"));
}

#[test]
fn the_bytes_of_a_batch_do_not_change() {
    let events = [minimal(), full()];
    let json = serde_json::to_string(&CloudEvents::new().batch(&events)).expect("json");
    assert_eq!(json + "\n", golden("cloud_events_batch.json"));
    let empty = serde_json::to_string(&CloudEvents::new().batch(&[])).expect("json");
    assert_eq!(empty, "[]");
}

/// What a reader of another make expects (CloudEvents 1.0, JSON event format section 3).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    specversion: String,
    id: String,
    source: String,
    r#type: String,
    subject: String,
    time: Timestamp,
    datacontenttype: String,
    data: Value,
}

#[test]
fn another_reader_finds_the_event_again() {
    let event = full();
    let json = serde_json::to_vec(&CloudEvents::new().event_type("tollgate.call").one(&event));
    let read: Envelope = serde_json::from_slice(&json.expect("json")).expect("an envelope");
    assert_eq!(
        (&*read.specversion, &*read.r#type),
        ("1.0", "tollgate.call")
    );
    assert_eq!(
        (read.id, &*read.source),
        (event.id.to_string(), "tollgate/gate%201")
    );
    assert_eq!(
        (&*read.subject, read.time),
        (event.tenant.as_str(), event.time)
    );
    assert_eq!(read.datacontenttype, "application/json");
    assert_eq!(read.data["value"], "1");
    let tokens = read.data["quantities"]["tokens"].as_str().expect("a text");
    assert_eq!(tokens.parse(), Ok(u64::MAX), "above 2^53 and exact");
    assert_eq!(read.data["cost"]["total_nanos"], "26");
    assert!(!has_number(&read.data), "{}", read.data);
}

fn has_number(value: &Value) -> bool {
    match value {
        Value::Number(_) => true,
        Value::Array(values) => values.iter().any(has_number),
        Value::Object(fields) => fields.values().any(has_number),
        _ => false,
    }
}

#[test]
fn the_content_types_have_no_parameters() {
    assert_eq!(CloudEvents::CONTENT_TYPE, "application/cloudevents+json");
    assert_eq!(
        CloudEvents::BATCH_CONTENT_TYPE,
        "application/cloudevents-batch+json"
    );
}

#[test]
fn a_text_from_a_request_cannot_leave_its_field() {
    let mut event = minimal();
    event.route = Arc::from("/a\",\"value\":\"999");
    event.source = Arc::from("x\"y\u{2028}");
    let json = serde_json::to_string(&CloudEvents::new().one(&event)).expect("json");
    let read: Envelope = serde_json::from_str(&json).expect("an envelope");
    assert_eq!(read.data["value"], "1");
    assert_eq!(read.data["route"], "/a\",\"value\":\"999");
    assert_eq!(read.source, "tollgate/x%22y%E2%80%A8");
}
