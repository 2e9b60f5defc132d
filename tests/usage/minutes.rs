//! Minutes of usage for tests, and how they come into PostgreSQL without a rollup.

use std::collections::BTreeMap;

use sqlx::{PgConnection, Row};
use tollgate::{
    clock::Timestamp,
    id::{Environment, PlanName, TenantId},
    postgres_support::Postgres,
    usage::{Step, UsageKey, UsageMinute, UsageTotals},
};

/// xorshift64: the same numbers in each run of one seed.
#[derive(Debug)]
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

pub(crate) fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("an id")
}

pub(crate) fn at(unix_seconds: u64) -> Timestamp {
    Timestamp::from_unix_seconds(unix_seconds)
}

/// Usage of a route in a minute: calls of a latency, some of them failed.
pub(crate) fn minute(
    who: &str,
    route: &str,
    time: Timestamp,
    calls: u64,
    failed: u64,
    latency_micros: u64,
) -> UsageMinute {
    let plan = PlanName::new("pro").expect("a name");
    let key = UsageKey::new(tenant(who), plan, "default", "GET", route);
    let mut minute = UsageMinute::new(key, time);
    let totals = &mut minute.totals;
    (totals.calls, totals.failed) = (calls, failed);
    totals.statuses = [0, calls - failed, 0, 0, failed];
    totals.cost_nanos = u128::from(calls) * u128::from(u64::MAX);
    for _ in 0..calls {
        totals.latency.record(latency_micros);
    }
    minute
}

/// All of some totals.
pub(crate) fn sum<'a>(minutes: impl IntoIterator<Item = &'a UsageMinute>) -> UsageTotals {
    let mut sum = UsageTotals::default();
    for minute in minutes {
        sum.merge(&minute.totals);
    }
    sum
}

/// Adds minutes as a rollup does: to their minute and to their hour, in one transaction.
pub(crate) async fn write(postgres: &Postgres, minutes: &[UsageMinute]) {
    let mut transaction = postgres.pool().begin().await.expect("begun");
    let mut hours: BTreeMap<(UsageKey, Timestamp), UsageTotals> = BTreeMap::new();
    let mut series = BTreeMap::new();
    for minute in minutes {
        if !series.contains_key(&minute.key) {
            let id = series_of(&mut transaction, &minute.key).await;
            series.insert(minute.key.clone(), id);
        }
        let id = series[&minute.key];
        add(
            &mut transaction,
            "minute",
            id,
            minute.minute,
            &minute.totals,
        )
        .await;
        let hour = (minute.key.clone(), Step::Hour.start_of(minute.minute));
        hours.entry(hour).or_default().merge(&minute.totals);
    }
    for ((key, start), totals) in &hours {
        add(&mut transaction, "hour", series[key], *start, totals).await;
    }
    transaction.commit().await.expect("committed");
}

async fn series_of(connection: &mut PgConnection, key: &UsageKey) -> i64 {
    let environment = match key.environment {
        Environment::Test => "test",
        _ => "live",
    };
    let row = sqlx::query(
        "INSERT INTO tollgate.usage_series (digest, tenant, environment, plan, api, method, route, country)
         VALUES (sha256(convert_to($8, 'UTF8')), $1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (digest) DO UPDATE SET tenant = $1 RETURNING id",
    )
    .bind(key.tenant.as_ref())
    .bind(environment)
    .bind(key.plan.as_ref())
    .bind(&*key.api)
    .bind(&*key.method)
    .bind(&*key.route)
    .bind(key.country.as_deref())
    .bind(format!("{key:?}"))
    .fetch_one(connection)
    .await
    .expect("a series");
    row.get("id")
}

async fn add(
    connection: &mut PgConnection,
    step: &str,
    series: i64,
    start: Timestamp,
    totals: &UsageTotals,
) {
    let mut totals = totals.clone();
    let known = sqlx::query(&format!(
        "SELECT latency FROM tollgate.usage_{step}s WHERE series = $1 AND start = $2::text::timestamptz"
    ))
    .bind(series)
    .bind(start.to_string())
    .fetch_optional(&mut *connection)
    .await
    .expect("an answer");
    if let Some(known) = known {
        let bytes: Vec<u8> = known.get("latency");
        let known = tollgate::usage::LatencySketch::from_bytes(&bytes).expect("a sketch");
        totals.latency.merge(&known);
    }
    let counts = [
        totals.calls,
        totals.refused,
        totals.failed,
        totals.aborted,
        totals.waived,
        totals.overage,
        totals.deprecated,
    ];
    let counts = counts.into_iter().chain(totals.statuses);
    let numbers = counts.map(u128::from).chain([
        totals.request_bytes,
        totals.response_bytes,
        totals.cost_nanos,
    ]);
    let numbers: Vec<String> = numbers.map(|n| n.to_string()).collect();
    let columns = [
        "calls",
        "refused",
        "failed",
        "aborted",
        "waived",
        "overage",
        "deprecated",
        "status_1xx",
        "status_2xx",
        "status_3xx",
        "status_4xx",
        "status_5xx",
        "request_bytes",
        "response_bytes",
        "cost_nanos",
    ];
    let sums = columns
        .map(|it| format!("{it} = t.{it} + excluded.{it}"))
        .join(", ");
    let sql = format!(
        "INSERT INTO tollgate.usage_{step}s AS t (series, start, {}, latency)
         VALUES ($1, $2::text::timestamptz, {}, $3)
         ON CONFLICT (series, start) DO UPDATE SET {sums}, latency = excluded.latency",
        columns.join(", "),
        numbers.join(", "),
    );
    let insert = sqlx::query(&sql).bind(series).bind(start.to_string());
    insert
        .bind(totals.latency.to_bytes())
        .execute(&mut *connection)
        .await
        .expect("a row");
    for (name, total) in &totals.quantities {
        sqlx::query(&format!(
            "INSERT INTO tollgate.usage_{step}_quantities AS t VALUES
             ($1, $2::text::timestamptz, $3, $4::text::numeric, $5::text::numeric)
             ON CONFLICT (series, start, name) DO UPDATE
             SET amount = t.amount + excluded.amount, overage = t.overage + excluded.overage"
        ))
        .bind(series)
        .bind(start.to_string())
        .bind(&**name)
        .bind(total.amount.to_string())
        .bind(total.overage.to_string())
        .execute(&mut *connection)
        .await
        .expect("a row");
    }
}
