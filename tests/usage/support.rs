//! Events of all kinds, what they must add up to, and what the tables say.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::SystemTime,
};

use sqlx::{PgPool, Row};
use tollgate::{
    clock::Timestamp,
    id::{Environment, PlanName, TenantId},
    meter::{CallOutcome, EventId, UsageEvent},
    sink::{UsageSink, Verdict, Verdicts},
    usage::{LatencySketch, UsageKey, UsageTotals},
};

/// Numbers that look random and are the same for the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1);
            items.swap(last, usize::try_from(other).expect("a place"));
        }
    }
}

pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970");
    Timestamp::from_unix_micros(u64::try_from(since.as_micros()).expect("this age"))
}

pub(crate) fn event(sequence: u64, time: Timestamp) -> UsageEvent {
    UsageEvent::new(
        EventId::new(7, sequence),
        time,
        TenantId::new("acme").expect("an id"),
        PlanName::new("pro").expect("a name"),
    )
}

/// Events of some tenants, routes and outcomes over the last three hours and a day before.
pub(crate) fn events(n: u64, seed: u64) -> Vec<UsageEvent> {
    let mut random = Random(seed);
    let now = now();
    (0..n)
        .map(|sequence| {
            let days = if random.below(20) == 0 { 86_400 } else { 0 };
            let age = random.below(3 * 3_600) + days;
            let time = Timestamp::from_unix_seconds(now.as_unix_seconds() - age);
            let mut event = event(sequence, time);
            event.tenant = TenantId::new(format!("t{}", random.below(3))).expect("an id");
            event.route = format!("/v1/{}", random.below(3)).into();
            event.latency_micros = random.below(5_000_000);
            event.request_bytes = random.below(1_000);
            event.overage = random.below(5) == 0;
            event.outcome = match random.below(6) {
                0 => CallOutcome::Refused,
                1 => CallOutcome::Failed,
                2 => CallOutcome::Aborted,
                _ => CallOutcome::Served,
            };
            if random.below(9) == 0 {
                event.environment = Environment::Test;
            }
            if random.below(7) == 0 {
                event.part_of = Some(EventId::new(9, sequence));
            }
            let tokens = match random.below(40) {
                0 => u64::MAX,
                _ => random.below(1_000),
            };
            event.quantities.insert(Arc::from("tokens"), tokens);
            event
        })
        .collect()
}

pub(crate) type Totals = BTreeMap<(UsageKey, Timestamp), UsageTotals>;

/// What events must add up to, each once; `length` is that of a minute or an hour in seconds.
pub(crate) fn expected<'a>(
    events: impl IntoIterator<Item = &'a UsageEvent>,
    length: u64,
) -> Totals {
    let mut seen = BTreeSet::new();
    let mut totals = Totals::new();
    for event in events {
        if seen.insert(event.id) {
            let seconds = event.time.as_unix_seconds();
            let start = Timestamp::from_unix_seconds(seconds - seconds % length);
            totals
                .entry((UsageKey::of(event), start))
                .or_default()
                .add(event);
        }
    }
    totals
}

/// What the tables of a length of time say.
pub(crate) async fn stored(pool: &PgPool, length: &str) -> Totals {
    let rows = sqlx::query(&format!(
        "SELECT s.tenant, s.environment, s.plan, s.api, s.method, s.route,
                (extract(epoch FROM m.start) * 1000000)::bigint AS start, m.calls, m.refused, m.failed, m.aborted,
                m.waived, m.overage, m.deprecated, m.status_1xx, m.status_2xx, m.status_3xx, m.status_4xx,
                m.status_5xx, m.request_bytes::text, m.response_bytes::text, m.cost_nanos::text, m.latency,
                coalesce((SELECT array_agg(q.name || '=' || q.amount || '=' || q.overage)
                 FROM tollgate.usage_{length}_quantities q
                 WHERE q.series = m.series AND q.start = m.start), '{{}}') AS quantities
         FROM tollgate.usage_{length}s m JOIN tollgate.usage_series s ON s.id = m.series"
    ))
    .fetch_all(pool)
    .await
    .expect("totals");
    let mut all = Totals::new();
    for row in rows {
        let text = |name: &str| row.get::<String, _>(name);
        let count = |name: &str| u64::try_from(row.get::<i64, _>(name)).expect("a count");
        let wide = |name: &str| text(name).parse::<u128>().expect("a sum");
        let mut key = UsageKey::new(
            TenantId::new(text("tenant")).expect("an id"),
            PlanName::new(text("plan")).expect("a name"),
            &text("api"),
            &text("method"),
            &text("route"),
        );
        if text("environment") == "test" {
            key.environment = Environment::Test;
        }
        let mut totals = UsageTotals::default();
        totals.calls = count("calls");
        totals.refused = count("refused");
        totals.failed = count("failed");
        totals.aborted = count("aborted");
        totals.waived = count("waived");
        totals.overage = count("overage");
        totals.deprecated = count("deprecated");
        for (class, own) in (1..=5).zip(&mut totals.statuses) {
            *own = count(&format!("status_{class}xx"));
        }
        totals.request_bytes = wide("request_bytes");
        totals.response_bytes = wide("response_bytes");
        totals.cost_nanos = wide("cost_nanos");
        totals.latency = LatencySketch::from_bytes(row.get("latency")).expect("a sketch");
        for quantity in row.get::<Vec<String>, _>("quantities") {
            let parts: Vec<_> = quantity.rsplitn(3, '=').collect();
            let [overage, amount, name] = parts.as_slice() else {
                panic!("{quantity}")
            };
            let total = totals.quantities.entry(Arc::from(*name)).or_default();
            total.amount = amount.parse().expect("a sum");
            total.overage = overage.parse().expect("a sum");
        }
        let start = Timestamp::from_unix_micros(count("start"));
        assert!(all.insert((key, start), totals).is_none(), "a row twice");
    }
    all
}

/// Each event once: in the table of events, in minutes and in hours.
pub(crate) async fn assert_exact(pool: &PgPool, events: &[UsageEvent]) {
    let (n_stored,): (i64,) = sqlx::query_as("SELECT count(*) FROM tollgate.usage_events")
        .fetch_one(pool)
        .await
        .expect("a count");
    let ids: BTreeSet<_> = events.iter().map(|event| event.id).collect();
    assert_eq!(usize::try_from(n_stored).expect("a count"), ids.len());
    assert!(
        stored(pool, "minute").await == expected(events, 60),
        "minutes"
    );
    assert!(
        stored(pool, "hour").await == expected(events, 3_600),
        "hours"
    );
}

pub(crate) fn each(verdicts: Verdicts, n: usize) -> Vec<Verdict> {
    match verdicts {
        Verdicts::Each(each) => {
            assert_eq!(each.len(), n, "one verdict for each event");
            each
        }
        _ => vec![Verdict::Accepted; n],
    }
}

/// Offers a batch as a recorder does until every event has its last word; says how often.
pub(crate) async fn deliver(sink: &dyn UsageSink, mut batch: Vec<UsageEvent>) -> usize {
    for offers in 1..2_000 {
        let verdicts = match sink.write(&batch).await {
            Ok(verdicts) => each(verdicts, batch.len()),
            Err(_) => {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                continue;
            }
        };
        let mut verdicts = verdicts.into_iter();
        batch.retain(|_| matches!(verdicts.next(), Some(Verdict::Retry { .. })));
        if batch.is_empty() {
            return offers;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("{} events have no last word", batch.len());
}
