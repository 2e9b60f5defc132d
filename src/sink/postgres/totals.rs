//! Totals of minutes and hours, added to what is there.

use std::collections::HashMap;

use sqlx::PgConnection;

use super::batch::Sums;
use crate::usage::{LatencySketch, UsageKey, UsageTotals};

/// The columns of counts and of wide sums.
pub(crate) const COUNTS: [&str; 12] = [
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
];
pub(crate) const SUMS: [&str; 3] = ["request_bytes", "response_bytes", "cost_nanos"];
/// A point of time from microseconds since 1970; exact, as a whole number of them is.
const START: &str = "timestamptz 'epoch' + micros * interval '1 microsecond'";

pub(super) struct Statements {
    pub(super) minutes: Grain,
    pub(super) hours: Grain,
}

/// The statements for one length of time.
pub(super) struct Grain {
    add: String,
    sketches: String,
    quantities: String,
}

impl Statements {
    pub(super) fn new() -> Self {
        Self {
            minutes: Grain::new("usage_minutes", "usage_minute_quantities"),
            hours: Grain::new("usage_hours", "usage_hour_quantities"),
        }
    }
}

/// One total, and the number of its series.
struct Row<'a> {
    series: i64,
    micros: i64,
    totals: &'a UsageTotals,
}

impl Grain {
    fn new(table: &str, quantities: &str) -> Self {
        let all = || COUNTS.iter().chain(&SUMS);
        let join = |each: &dyn Fn(&str) -> String| {
            let all: Vec<_> = all().map(|name| each(name)).collect();
            all.join(", ")
        };
        let names = join(&|name| name.to_owned());
        let values = join(&|name| {
            let cast = if SUMS.contains(&name) {
                "::numeric"
            } else {
                ""
            };
            format!("t.{name}{cast}")
        });
        let added = join(&|name| format!("{name} = m.{name} + excluded.{name}"));
        let counts: Vec<_> = (3..15).map(|n| format!("${n}::bigint[]")).collect();
        let counts = counts.join(", ");
        Self {
            // In the order of their keys, as every process locks them. A row that was there keeps its latencies for
            // now: they are merged here, as the server cannot.
            add: format!(
                "INSERT INTO tollgate.{table} AS m (series, start, {names}, latency)
                 SELECT series, {START}, {values}, latency
                 FROM unnest($1::bigint[], $2::bigint[], {counts}, $15::text[], $16::text[], $17::text[], $18::bytea[])
                    AS t(series, micros, {names}, latency)
                 ORDER BY series, micros
                 ON CONFLICT (series, start) DO UPDATE SET {added}
                 RETURNING series, (extract(epoch FROM start) * 1000000)::bigint, latency, xmax <> 0"
            ),
            sketches: format!(
                "UPDATE tollgate.{table} AS m SET latency = t.latency
                 FROM unnest($1::bigint[], $2::bigint[], $3::bytea[]) AS t(series, micros, latency)
                 WHERE m.series = t.series AND m.start = {START}"
            ),
            quantities: format!(
                "INSERT INTO tollgate.{quantities} AS m (series, start, name, amount, overage)
                 SELECT series, {START}, name, amount::numeric, overage::numeric
                 FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[])
                    AS t(series, micros, name, amount, overage)
                 ORDER BY series, micros, name
                 ON CONFLICT (series, start, name)
                 DO UPDATE SET amount = m.amount + excluded.amount, overage = m.overage + excluded.overage"
            ),
        }
    }

    /// Adds the sums to those that are there.
    pub(super) async fn add(
        &self,
        connection: &mut PgConnection,
        sums: &Sums,
        series: &HashMap<UsageKey, i64>,
    ) -> Result<(), sqlx::Error> {
        let rows = rows(sums, series);
        if rows.is_empty() {
            return Ok(());
        }
        let changed = self.add_counts(connection, &rows).await?;
        self.merge_sketches(connection, &rows, changed).await?;
        self.add_quantities(connection, &rows).await
    }

    /// Answers the rows that were there before, with their latencies.
    async fn add_counts(
        &self,
        connection: &mut PgConnection,
        rows: &[Row<'_>],
    ) -> Result<Vec<(i64, i64, Vec<u8>)>, sqlx::Error> {
        let (series, micros) = keys(rows);
        let mut add = sqlx::query_as(&self.add).bind(series).bind(micros);
        for place in 0..COUNTS.len() {
            let counts = rows
                .iter()
                .map(|row| counts(row.totals).get(place).copied());
            let counts: Vec<i64> = counts
                .map(|n| i64::try_from(n.unwrap_or(0)).unwrap_or(i64::MAX))
                .collect();
            add = add.bind(counts);
        }
        for place in 0..SUMS.len() {
            let wide = rows.iter().map(|row| {
                let totals = row.totals;
                let sums = [
                    totals.request_bytes,
                    totals.response_bytes,
                    totals.cost_nanos,
                ];
                sums.get(place).copied().unwrap_or(0).to_string()
            });
            add = add.bind(wide.collect::<Vec<_>>());
        }
        let latencies: Vec<_> = rows
            .iter()
            .map(|row| row.totals.latency.to_bytes())
            .collect();
        let all: Vec<(i64, i64, Vec<u8>, bool)> =
            add.bind(latencies).fetch_all(&mut *connection).await?;
        let changed = all.into_iter().filter(|(.., was_there)| *was_there);
        Ok(changed
            .map(|(series, micros, latency, _)| (series, micros, latency))
            .collect())
    }

    async fn merge_sketches(
        &self,
        connection: &mut PgConnection,
        rows: &[Row<'_>],
        changed: Vec<(i64, i64, Vec<u8>)>,
    ) -> Result<(), sqlx::Error> {
        let own: HashMap<_, _> = rows
            .iter()
            .map(|row| ((row.series, row.micros), &row.totals.latency))
            .collect();
        let (mut series, mut micros, mut latencies) = (Vec::new(), Vec::new(), Vec::new());
        for (row_series, row_micros, latency) in changed {
            let new = own
                .get(&(row_series, row_micros))
                .filter(|new| !new.is_empty());
            let Some(new) = new else { continue };
            let mut merged = LatencySketch::from_bytes(&latency).unwrap_or_else(|error| {
                // Somebody else wrote it. Calls are money and latencies are not: the counts are kept.
                tracing::error!(
                    target: "tollgate::usage",
                    series = row_series,
                    %error,
                    "latencies that cannot be read are replaced"
                );
                LatencySketch::new()
            });
            merged.merge(new);
            series.push(row_series);
            micros.push(row_micros);
            latencies.push(merged.to_bytes());
        }
        if series.is_empty() {
            return Ok(());
        }
        sqlx::query(&self.sketches)
            .bind(series)
            .bind(micros)
            .bind(latencies)
            .execute(connection)
            .await
            .map(drop)
    }

    async fn add_quantities(
        &self,
        connection: &mut PgConnection,
        rows: &[Row<'_>],
    ) -> Result<(), sqlx::Error> {
        let (mut series, mut micros) = (Vec::new(), Vec::new());
        let (mut names, mut amounts, mut overages) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            for (name, total) in &row.totals.quantities {
                series.push(row.series);
                micros.push(row.micros);
                names.push(&**name);
                amounts.push(total.amount.to_string());
                overages.push(total.overage.to_string());
            }
        }
        if series.is_empty() {
            return Ok(());
        }
        sqlx::query(&self.quantities)
            .bind(series)
            .bind(micros)
            .bind(names)
            .bind(amounts)
            .bind(overages)
            .execute(connection)
            .await
            .map(drop)
    }
}

fn rows<'a>(sums: &'a Sums, series: &HashMap<UsageKey, i64>) -> Vec<Row<'a>> {
    let rows = sums.iter().filter_map(|((key, start), totals)| {
        Some(Row {
            series: *series.get(key)?,
            micros: i64::try_from(start.as_unix_micros()).ok()?,
            totals,
        })
    });
    rows.collect()
}

fn keys(rows: &[Row<'_>]) -> (Vec<i64>, Vec<i64>) {
    rows.iter().map(|row| (row.series, row.micros)).unzip()
}

const fn counts(totals: &UsageTotals) -> [u64; COUNTS.len()] {
    let [one, two, three, four, five] = totals.statuses;
    [
        totals.calls,
        totals.refused,
        totals.failed,
        totals.aborted,
        totals.waived,
        totals.overage,
        totals.deprecated,
        one,
        two,
        three,
        four,
        five,
    ]
}
