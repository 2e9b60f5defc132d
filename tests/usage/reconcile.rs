//! Real-time counters beside the events, and events from a log.

use std::{collections::BTreeMap, io::BufReader, sync::Arc};

use proptest::prelude::*;
use tollgate::{
    id::{Environment, PlanName},
    meter::{CallOutcome, EventId, UsageEvent},
    usage::{CallsByDay, Replay, TenantDay, Tolerance, calls_by_day, reconcile},
};

use super::minutes::{at, minute, tenant};

const NOON: u64 = 1_768_478_400;

fn day(who: &str, n: u64) -> TenantDay {
    TenantDay::new(tenant(who), "default", at(NOON + n * 86_400))
}

#[test]
fn days_that_differ_are_told_with_what_each_side_says() {
    let counters = CallsByDay::from([
        (day("acme", 0), 100),
        (day("acme", 1), 90),
        (day("bolt", 0), 7),
    ]);
    let events = CallsByDay::from([
        (day("acme", 0), 100),
        (day("acme", 1), 100),
        (day("c", 0), 30),
    ]);
    let report = reconcile(&counters, &events, Tolerance::exact());
    let drifts: Vec<_> = report
        .drifts
        .iter()
        .map(|it| {
            (
                it.of.tenant.to_string(),
                it.counted,
                it.told,
                it.is_unbilled(),
            )
        })
        .collect();
    assert_eq!(
        drifts,
        [
            ("c".to_owned(), None, Some(30), false),
            ("acme".to_owned(), Some(90), Some(100), false),
            ("bolt".to_owned(), Some(7), None, true),
        ]
    );
    assert_eq!((report.days, report.counted, report.told), (4, 197, 230));
    // Ten of a hundred is a tenth of the larger count.
    let tenth = Tolerance::exact().per_million(100_000);
    assert_eq!(reconcile(&counters, &events, tenth).drifts.len(), 2);
    let all = Tolerance::exact().calls(30);
    assert!(reconcile(&counters, &events, all).is_clean());
    assert!(
        Tolerance::exact()
            .per_million(u32::MAX)
            .accepts(0, u64::MAX)
    );
}

#[test]
fn minutes_fall_into_their_day_in_utc() {
    let midnight = NOON + 43_200;
    let minutes = [
        minute("acme", "/a", at(midnight - 60), 3, 0, 1),
        minute("acme", "/b", at(midnight), 5, 0, 1),
        minute("acme", "/c", at(midnight + 60), 7, 0, 1),
    ];
    let days = calls_by_day(&minutes);
    assert_eq!(days.values().copied().collect::<Vec<_>>(), [3, 12]);
    let first = days.keys().next().unwrap();
    assert_eq!(first.day.to_string(), "2026-01-15T00:00:00Z");
    assert_eq!(first.date().to_string(), "2026-01-15");
}

fn event(n: u64) -> UsageEvent {
    let plan = PlanName::new("pro").unwrap();
    let mut event = UsageEvent::new(EventId::new(7, n), at(NOON + n), tenant("acme"), plan);
    event.route = Arc::from(format!("/v1/{}", n % 3));
    event.latency_micros = n * 1_000;
    event.quantities.insert(Arc::from("tokens"), n);
    if n.is_multiple_of(5) {
        event.outcome = CallOutcome::Refused;
    }
    if n.is_multiple_of(7) {
        event.environment = Environment::Test;
    }
    event
}

#[test]
fn a_log_is_replayed_once_whatever_else_is_in_it() {
    let events: Vec<_> = (0..200).map(event).collect();
    let line = |event: &UsageEvent| serde_json::to_string(event).unwrap();
    let mut log = String::new();
    for event in &events {
        log.push_str(&line(event));
        log.push('\n');
    }
    log.push_str("\r\n\n   \nplain text\n{\"schema\":1}\n");
    let mut newer = event(999);
    newer.schema = UsageEvent::SCHEMA + 1;
    log.push_str(&line(&newer));
    log.push('\n');
    log.push_str(&"x".repeat(3 << 20));
    log.push('\n');
    log.push_str(
        &log.clone()[..4_000]
            .split_inclusive('\n')
            .take(3)
            .collect::<String>(),
    );
    // The last line has no end.
    log.push_str(&line(&events[3]));

    let mut replay = Replay::new();
    // A reader that gives little at once.
    replay
        .read(BufReader::with_capacity(7, log.as_bytes()))
        .unwrap();
    assert_eq!((replay.events(), replay.duplicates()), (200, 4));
    assert_eq!(replay.unreadable(), 4);
    let lines: Vec<_> = replay.unreadable_lines().iter().map(|it| it.line).collect();
    assert_eq!(lines, [204, 205, 206, 207]);
    assert!(replay.unreadable_lines()[2].reason.contains("schema 2"));

    let mut model = BTreeMap::new();
    for event in &events {
        let of = tollgate::usage::UsageMinute::of(event);
        model
            .entry((of.minute, of.key.clone()))
            .and_modify(|it: &mut tollgate::usage::UsageMinute| it.merge(&of).unwrap())
            .or_insert(of);
    }
    let told: Vec<_> = replay.minutes().cloned().collect();
    assert_eq!(told, model.into_values().collect::<Vec<_>>());
}

proptest! {
    #[test]
    fn any_bytes_are_read_to_their_end(mut log in prop::collection::vec(any::<u8>(), 0..400), cut in 1_usize..20) {
        log.extend_from_slice(b"\n");
        log.extend_from_slice(serde_json::to_string(&event(1)).unwrap().as_bytes());
        let mut replay = Replay::new();
        replay.read(BufReader::with_capacity(cut, &*log)).unwrap();
        prop_assert_eq!(replay.events(), 1);
    }

    #[test]
    fn a_report_is_that_of_a_plain_comparison(
        counters in prop::collection::btree_map((0_u8..4, 0_u64..3), 0_u64..1_000, 0..9),
        events in prop::collection::btree_map((0_u8..4, 0_u64..3), 0_u64..1_000, 0..9),
        calls in 0_u64..50, share in 0_u32..200_000,
    ) {
        let side = |side: &BTreeMap<(u8, u64), u64>| -> CallsByDay {
            side.iter().map(|((who, n), calls)| (day(&who.to_string(), *n), *calls)).collect()
        };
        let tolerance = Tolerance::exact().calls(calls).per_million(share);
        let report = reconcile(&side(&counters), &side(&events), tolerance);
        let mut expected = Vec::new();
        for who in 0..4 {
            for n in 0..3 {
                let counted = counters.get(&(who, n)).copied().unwrap_or(0);
                let told = events.get(&(who, n)).copied().unwrap_or(0);
                let apart = counted.abs_diff(told);
                if apart > calls && apart * 1_000_000 > counted.max(told) * u64::from(share) {
                    expected.push((day(&who.to_string(), n), apart));
                }
            }
        }
        expected.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let told: Vec<_> = report.drifts.iter().map(|it| (it.of.clone(), it.calls())).collect();
        prop_assert_eq!(told, expected);
    }
}
