//! Questions to minutes in PostgreSQL, beside the same minutes in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tollgate::{
    clock::Timestamp,
    id::{Environment, PlanName},
    meter::{EventId, UsageEvent},
    postgres_support::Postgres,
    sink::{PostgresSink, UsageSink},
    usage::{
        DeprecationReport, PostgresUsage, Step, UsageFilter, UsageMinute, UsageQueryError,
        UsageTotals, calls_by_day,
    },
};

use super::minutes::{Numbers, at, minute, sum, tenant, write};
use crate::common::{fault_proxy::FaultProxy, postgres::PostgresServer};

const DAY: u64 = 86_400;
/// 2026-01-10T00:00:00Z.
const START: u64 = 1_768_003_200;
const TENANTS: [&str; 3] = ["acme", "bolt", "c'e"];
const ROUTES: [&str; 4] = ["/v1/a", "/v1/b", "/v0/a", "/v1/{id}"];

/// Usage of eight days, dense here and there, of every kind that is counted.
fn some_usage(numbers: &mut Numbers, n: usize) -> Vec<UsageMinute> {
    let random = |numbers: &mut Numbers| {
        let time = at(START + 60 * numbers.below(8 * DAY / 60));
        let who = TENANTS[usize::try_from(numbers.below(3)).unwrap()];
        let route = ROUTES[usize::try_from(numbers.below(4)).unwrap()];
        let calls = numbers.below(5);
        let failed = numbers.below(calls + 1);
        let mut minute = minute(who, route, time, calls, failed, 1 << numbers.below(30));
        if numbers.below(3) == 0 {
            minute.key.api = Arc::from("other");
        }
        if numbers.below(4) == 0 {
            minute.key.environment = Environment::Test;
        }
        minute.key.country = [None, Some("DE"), Some("FR")]
            [usize::try_from(numbers.below(3)).unwrap()]
        .map(Arc::from);
        let totals = &mut minute.totals;
        totals.refused = numbers.below(3);
        totals.calls += totals.refused;
        totals.request_bytes = u128::from(numbers.below(1 << 40));
        if route == "/v0/a" {
            totals.deprecated = totals.calls;
        }
        if numbers.below(2) == 0 {
            let tokens = totals.quantities.entry(Arc::from("tokens")).or_default();
            tokens.amount = u128::from(u64::MAX);
            tokens.overage = u128::from(numbers.below(9));
        }
        minute
    };
    (0..n).map(|_| random(numbers)).collect()
}

fn some_filter(numbers: &mut Numbers) -> UsageFilter {
    let from = START + numbers.below(6 * DAY);
    let until = from + numbers.below(START + 9 * DAY - from);
    let mut filter = UsageFilter::new(at(from), at(until));
    if numbers.below(2) == 0 {
        filter = filter.tenant(tenant(TENANTS[usize::try_from(numbers.below(3)).unwrap()]));
    }
    if numbers.below(2) == 0 {
        filter = filter.api("default");
    }
    if numbers.below(3) == 0 {
        filter = filter.environment(None);
    }
    filter
}

/// Without what a question leaves out.
fn plain(mut totals: UsageTotals) -> UsageTotals {
    totals.quantities.clear();
    totals
}

/// All answers to one filter are those that the minutes in memory give.
async fn agree(usage: &PostgresUsage, all: &[UsageMinute], filter: &UsageFilter) {
    let of = |filter: &UsageFilter| -> Vec<&UsageMinute> {
        all.iter().filter(|minute| filter.matches(minute)).collect()
    };
    let wanted = of(filter);
    let total = sum(wanted.iter().copied());
    assert_eq!(
        usage.totals(filter).await.unwrap(),
        plain(total.clone()),
        "{filter:?}"
    );
    assert_eq!(
        usage.quantities(filter).await.unwrap(),
        total.quantities,
        "{filter:?}"
    );

    let mut routes: BTreeMap<_, UsageTotals> = BTreeMap::new();
    let mut countries: BTreeMap<_, UsageTotals> = BTreeMap::new();
    let mut curve: BTreeMap<Timestamp, UsageTotals> = BTreeMap::new();
    for minute in &wanted {
        let (key, totals) = (&minute.key, plain(minute.totals.clone()));
        routes
            .entry((&key.api, &key.route))
            .or_default()
            .merge(&totals);
        countries.entry(&key.country).or_default().merge(&totals);
        curve.entry(minute.minute).or_default().merge(&totals);
    }
    let told = usage.top_routes(filter, 100).await.unwrap();
    assert!(told.is_sorted_by(|a, b| a.totals.calls >= b.totals.calls));
    let told: BTreeMap<_, _> = told
        .iter()
        .map(|it| ((&it.api, &it.route), it.totals.clone()))
        .collect();
    assert_eq!(told, routes, "{filter:?}");
    let told = usage.countries(filter).await.unwrap();
    let told: BTreeMap<_, _> = told
        .iter()
        .map(|it| (&it.country, it.totals.clone()))
        .collect();
    assert_eq!(told, countries, "{filter:?}");
    let told = usage.curve(filter, Step::Minute).await.unwrap();
    let told: BTreeMap<_, _> = told.into_iter().map(|it| (it.start, it.totals)).collect();
    assert_eq!(told, curve, "{filter:?}");

    let trends = usage.trends(filter).await.unwrap();
    let before = filter.before();
    let names: BTreeSet<_> = trends.iter().map(|it| it.tenant.clone()).collect();
    let expected = of(filter).into_iter().chain(of(&before));
    assert_eq!(names, expected.map(|it| it.key.tenant.clone()).collect());
    for trend in trends {
        let own = |filter: &UsageFilter| {
            sum(of(filter)
                .into_iter()
                .filter(|it| it.key.tenant == trend.tenant))
        };
        assert_eq!(
            (trend.calls, trend.calls_before),
            (own(filter).calls, own(&before).calls)
        );
    }
    let report = usage.deprecated(filter).await.unwrap();
    let expected = DeprecationReport::of(wanted.iter().copied());
    assert_eq!(report.to_notify(1), expected.to_notify(1));
    let days = usage.calls_by_day(filter).await.unwrap();
    assert_eq!(days, calls_by_day(wanted.iter().copied()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_that_of_the_minutes_whether_days_are_made_or_not() {
    let server = PostgresServer::start();
    let postgres = server.migrated("api").await;
    let usage = PostgresUsage::new(&postgres);
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut all = some_usage(&mut numbers, 300);
    write(&postgres, &all).await;
    for _ in 0..3 {
        agree(&usage, &all, &some_filter(&mut numbers)).await;
    }
    // Day by day, with the last two not over.
    let now = at(START + 6 * DAY + 5);
    assert_eq!(usage.make_days(now, 2).await.unwrap().made, 2);
    agree(&usage, &all, &some_filter(&mut numbers)).await;
    assert_eq!(usage.make_days(now, 100).await.unwrap().made, 4);
    assert_eq!(
        usage.make_days(now, 100).await.unwrap().made,
        0,
        "they are made once"
    );
    for _ in 0..3 {
        agree(&usage, &all, &some_filter(&mut numbers)).await;
    }
    // What comes late for a day that was made counts at once, and the day is made again.
    let late = some_usage(&mut numbers, 40);
    write(&postgres, &late).await;
    all.extend(late);
    let whole = UsageFilter::new(at(START), at(START + 9 * DAY));
    agree(&usage, &all, &whole).await;
    assert!(usage.make_days(now, 100).await.unwrap().made > 0);
    agree(&usage, &all, &whole).await;
    for step in [Step::Hour, Step::Day] {
        let mut curve: BTreeMap<Timestamp, UsageTotals> = BTreeMap::new();
        for minute in all.iter().filter(|minute| whole.matches(minute)) {
            let point = curve.entry(step.start_of(minute.minute)).or_default();
            point.merge(&plain(minute.totals.clone()));
        }
        let told = usage.curve(&whole, step).await.unwrap();
        let told: BTreeMap<_, _> = told.into_iter().map(|it| (it.start, it.totals)).collect();
        assert_eq!(told, curve);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_that_are_made_while_usage_comes_in_miss_nothing() {
    let server = PostgresServer::start();
    let postgres = server.migrated("api").await;
    let usage = PostgresUsage::new(&postgres);
    let mut numbers = Numbers(77);
    let all: Vec<_> = (0..240)
        .map(|_| {
            let time = at(START + 60 * numbers.below(DAY / 60));
            let route = ROUTES[usize::try_from(numbers.below(4)).unwrap()];
            minute("acme", route, time, 1, 0, 1_000)
        })
        .collect();
    let writer = {
        let (postgres, all) = (postgres.clone(), all.clone());
        tokio::spawn(async move {
            for some in all.chunks(6) {
                write(&postgres, some).await;
            }
        })
    };
    let now = at(START + DAY);
    let mut rounds = 0;
    while !writer.is_finished() {
        let other = PostgresUsage::new(&postgres);
        let (here, there) = tokio::join!(usage.make_days(now, 1), other.make_days(now, 1));
        here.and(there).expect("made, or changed meanwhile");
        rounds += 1;
    }
    writer.await.unwrap();
    assert!(rounds > 1, "days were made beside the writing");
    usage.make_days(now, 1).await.unwrap();
    assert_eq!(usage.make_days(now, 1).await.unwrap().made, 0);
    let whole = UsageFilter::new(at(START), now);
    assert_eq!(usage.totals(&whole).await.unwrap(), sum(&all));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_usage_is_no_error_and_a_bad_row_is() {
    let server = PostgresServer::start();
    let postgres = server.migrated("api").await;
    let usage = PostgresUsage::new(&postgres);
    for filter in [
        UsageFilter::new(at(START), at(START + DAY)),
        UsageFilter::new(at(START), at(START)),
        UsageFilter::new(at(START + DAY), at(START)),
        UsageFilter::new(Timestamp::UNIX_EPOCH, Timestamp::MAX).tenant(tenant("x")),
    ] {
        assert_eq!(
            usage.totals(&filter).await.unwrap(),
            UsageTotals::default(),
            "{filter:?}"
        );
        assert!(usage.quantities(&filter).await.unwrap().is_empty());
        assert!(usage.top_routes(&filter, 3).await.unwrap().is_empty());
        assert!(usage.curve(&filter, Step::Hour).await.unwrap().is_empty());
        assert!(usage.trends(&filter).await.unwrap().is_empty());
    }
    write(&postgres, &[minute("acme", "/v1/a", at(START), 3, 1, 500)]).await;
    let filter = UsageFilter::new(at(START), at(START + 60));
    let corrupt = async |sql: &str| {
        sqlx::query(sql).execute(postgres.pool()).await.expect(sql);
        let told = usage.totals(&filter).await;
        assert!(
            matches!(told, Err(UsageQueryError::Corrupt(_))),
            "{sql}: {told:?}"
        );
    };
    corrupt("UPDATE tollgate.usage_minutes SET latency = 'nonsense'").await;
    corrupt("UPDATE tollgate.usage_minutes SET latency = '', calls = -1").await;
    corrupt("UPDATE tollgate.usage_minutes SET calls = 1, cost_nanos = -1").await;
    corrupt("UPDATE tollgate.usage_minutes SET cost_nanos = 0.5").await;
    let sql = "UPDATE tollgate.usage_minutes SET cost_nanos = 1e60, calls = 9223372036854775807";
    sqlx::query(sql).execute(postgres.pool()).await.unwrap();
    let told = usage.totals(&filter).await.unwrap();
    assert_eq!(
        (told.cost_nanos, told.calls),
        (u128::MAX, i64::MAX.unsigned_abs())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_is_not_waited_for() {
    let server = PostgresServer::start();
    server.migrated("api").await;
    let proxy = FaultProxy::before(server.port).await;
    let url = format!("postgres://tollgate@{}/api", proxy.addr);
    let postgres = Postgres::connect(&url).await.unwrap();
    let usage = PostgresUsage::new(&postgres)
        .deadline(Duration::from_millis(50))
        .unwrap();
    proxy.set(crate::common::fault_proxy::Fault::Hold);
    let filter = UsageFilter::new(at(START), at(START + 60));
    let told = usage.totals(&filter).await;
    assert!(
        matches!(told, Err(UsageQueryError::Unavailable(_))),
        "{told:?}"
    );
}

#[test]
fn what_totals_come_to() {
    let mut totals = UsageTotals::default();
    assert_eq!(totals.failed_per_million(), None);
    assert_eq!(totals.errors_per_million(), None);
    (totals.calls, totals.refused, totals.failed) = (1_000, 100, 1);
    totals.statuses = [0, 899, 0, 100, 1];
    assert_eq!(totals.failed_per_million(), Some(1_112), "rounded up");
    assert_eq!(totals.errors_per_million(), Some(101_000));
    let hour = Duration::from_secs(3_600);
    assert_eq!(totals.calls_per_minute_thousandths(hour), Some(16_666));
    assert_eq!(totals.calls_per_minute_thousandths(Duration::ZERO), None);
    (totals.calls, totals.failed) = (u64::MAX, u64::MAX);
    assert_eq!(totals.failed_per_million(), Some(1_000_000));
    assert_eq!(
        totals.calls_per_minute_thousandths(Duration::from_millis(1)),
        Some(u64::MAX)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_sink_counts_is_what_questions_answer_also_when_it_comes_late() {
    let server = PostgresServer::start();
    let postgres = server.migrated("api").await;
    let sink = PostgresSink::connect(&postgres).await.unwrap();
    let usage = PostgresUsage::new(&postgres);
    let event = |n: u64| {
        let time = at(START + n * 1_801);
        let plan = PlanName::new("pro").unwrap();
        let mut event = UsageEvent::new(EventId::new(3, n), time, tenant("acme"), plan);
        event.route = Arc::from(ROUTES[usize::try_from(n % 4).unwrap()]);
        event.latency_micros = 1_000 * n;
        event.country = (n.is_multiple_of(2)).then(|| Arc::from("DE"));
        event.deprecated = n % 4 == 2;
        event.quantities.insert(Arc::from("tokens"), n);
        event
    };
    let events: Vec<_> = (0..150).map(event).collect();
    let minutes = |events: &[UsageEvent]| events.iter().map(UsageMinute::of).collect::<Vec<_>>();
    let whole = UsageFilter::new(at(START), at(START + 9 * DAY));
    sink.write(&events[..100]).await.unwrap();
    agree(&usage, &minutes(&events[..100]), &whole).await;
    assert!(
        usage
            .make_days(at(START + 9 * DAY), 100)
            .await
            .unwrap()
            .made
            >= 2
    );
    agree(&usage, &minutes(&events[..100]), &whole).await;
    // The second half of it again, and what came late for days that were made.
    sink.write(&events[50..]).await.unwrap();
    agree(&usage, &minutes(&events), &whole).await;
    usage.make_days(at(START + 9 * DAY), 100).await.unwrap();
    agree(&usage, &minutes(&events), &whole).await;
}
