//! The serialised form of an event.

use std::{collections::BTreeMap, sync::Arc};

use tollgate::{
    clock::Timestamp,
    id::{Environment, KeyId, PlanName, TenantId},
    meter::{CallOutcome, EventId, UsageEvent},
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
    event.source = Arc::from("gate-1");
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
    event.country = Some(Arc::from("NL"));
    event
}

#[test]
fn the_bytes_of_a_minimal_event_do_not_change() {
    assert_eq!(
        serde_json::to_string(&minimal()).expect("json"),
        concat!(
            r#"{"schema":1,"id":"0123456789abcdef0000000000000007","source":"tollgate","#,
            r#""time":"2026-01-15T12:00:00.000001Z","tenant":"acme","plan":"free","environment":"live","#,
            r#""api":"default","route":"unmatched","method":"GET","status":200,"outcome":"served","#,
            r#""latency_micros":0,"request_bytes":0,"response_bytes":0}"#,
        )
    );
}

#[test]
fn the_bytes_of_a_full_event_do_not_change() {
    assert_eq!(
        serde_json::to_string(&full()).expect("json"),
        concat!(
            r#"{"schema":1,"id":"0123456789abcdef0000000000000007","source":"gate-1","#,
            r#""time":"2026-01-15T12:00:00.000001Z","tenant":"acme","key":"key-1","plan":"free","#,
            r#""environment":"test","api":"chat","route":"/v1/chat/{id}","method":"POST","status":429,"#,
            r#""outcome":"refused","refused":"rate_limited","latency_micros":1234,"request_bytes":56,"#,
            r#""response_bytes":78,"quantities":{"images":2,"tokens":18446744073709551615},"#,
            r#""overage":true,"deprecated":true,"request_id":"req-1","#,
            r#""trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","country":"NL"}"#,
        )
    );
}

#[test]
fn an_event_reads_back_as_it_was_written() {
    for event in [minimal(), full()] {
        let json = serde_json::to_string(&event).expect("json");
        assert_eq!(
            serde_json::from_str::<UsageEvent>(&json).expect("an event"),
            event
        );
    }
}

#[test]
fn a_reader_ignores_fields_of_a_newer_writer() {
    let json = serde_json::to_string(&full()).expect("json");
    let newer = json.replacen(
        '{',
        r#"{"colour":"blue","cost_of_tomorrow":{"nanos":3},"#,
        1,
    );
    assert_eq!(
        serde_json::from_str::<UsageEvent>(&newer).expect("an event"),
        full()
    );
}

#[test]
fn an_event_without_a_tenant_or_with_a_bad_id_is_refused() {
    let json = serde_json::to_string(&minimal()).expect("json");
    let without_tenant = json.replace(r#""tenant":"acme","#, "");
    assert!(serde_json::from_str::<UsageEvent>(&without_tenant).is_err());
    let empty_tenant = json.replace(r#""acme""#, r#""""#);
    assert!(serde_json::from_str::<UsageEvent>(&empty_tenant).is_err());
    let bad_id = json.replace(
        "0123456789abcdef0000000000000007",
        "+123456789abcdef0000000000000007",
    );
    assert!(serde_json::from_str::<UsageEvent>(&bad_id).is_err());
}
