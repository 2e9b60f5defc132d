//! From a question to a statement, and from its rows to totals.

use sqlx::{Row, postgres::PgRow};

use super::segments::{Segment, Step};
use crate::{
    clock::Timestamp,
    id::Environment,
    postgres_support::{Fault, PgMicros},
    sink::{COUNTS, SUMS},
    usage::{LatencySketch, UsageFilter, UsageTotals},
};

/// What rows are put together by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// All of them.
    Nothing,
    Country,
    Route,
    Start,
    Tenant,
    TenantApiStart,
    /// Of calls to deprecated versions alone.
    TenantRoute,
}

impl Group {
    /// The columns, of the series (`s`) or of the row (`m`).
    const fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Nothing => &[],
            Self::Country => &["s.country"],
            Self::Route => &["s.api", "s.method", "s.route"],
            Self::Start => &["m.start"],
            Self::Tenant => &["s.tenant"],
            Self::TenantApiStart => &["s.tenant", "s.api", "m.start"],
            Self::TenantRoute => &["s.tenant", "s.api", "s.method", "s.route"],
        }
    }
}

/// A statement, whose parameters are the filter's tenant, API and environment and then the bounds of each part.
pub(super) struct Statement {
    sql: String,
    bounds: Vec<Timestamp>,
}

const fn table(step: Step) -> &'static str {
    match step {
        Step::Minute => "tollgate.usage_minutes",
        Step::Hour => "tollgate.usage_hours",
        Step::Day => "tollgate.usage_days",
    }
}

const SERIES: &str = "SELECT id, tenant, api, method, route, country FROM tollgate.usage_series
    WHERE ($1::text IS NULL OR tenant = $1) AND ($2::text IS NULL OR api = $2)
    AND ($3::text IS NULL OR environment = $3)";

impl Statement {
    /// Sums by group over all parts, with the latencies where they are wanted.
    pub(super) fn sums(parts: &[Segment], group: Group, latencies: bool) -> Self {
        let mut columns: Vec<String> = group.columns().iter().map(ToString::to_string).collect();
        // Sums of 64-bit numbers have more digits than their column.
        let most = i64::MAX;
        columns.extend(
            COUNTS.map(|it| format!("LEAST(COALESCE(sum(m.{it}), 0), {most})::bigint AS {it}")),
        );
        columns.extend(SUMS.map(|it| format!("COALESCE(sum(m.{it}), 0)::text AS {it}")));
        columns.push("max(m.start) AS last_start".to_owned());
        if latencies {
            columns.push("array_agg(m.latency) FILTER (WHERE m.latency <> '') AS latencies".into());
        }
        let mut statement = Self::over(parts, "*");
        let group_by = match group.columns() {
            [] => String::new(),
            columns => format!(" GROUP BY {}", columns.join(", ")),
        };
        let only = if group == Group::TenantRoute {
            " WHERE m.deprecated > 0"
        } else {
            ""
        };
        statement.sql = format!(
            "WITH s AS ({SERIES}) SELECT {} FROM s CROSS JOIN LATERAL ({} OFFSET 0) AS m{only}{group_by}",
            columns.join(", "),
            statement.sql,
        );
        statement
    }

    /// Named quantities over all parts.
    pub(super) fn quantities(parts: &[Segment]) -> Self {
        let mut statement = Self::over(parts, "series, name, amount, overage");
        let quantities = statement
            .sql
            .replace("usage_minutes", "usage_minute_quantities")
            .replace("usage_hours", "usage_hour_quantities");
        statement.sql = format!(
            "WITH s AS ({SERIES}) SELECT name, sum(amount)::text AS amount, sum(overage)::text AS overage
            FROM s CROSS JOIN LATERAL ({quantities} OFFSET 0) AS m GROUP BY name"
        );
        statement
    }

    /// The rows of one series `s` after the other, as `OFFSET` keeps the planner from joining them otherwise: it would read
    /// the hours of all tenants for the edges of one tenant's time.
    fn over(parts: &[Segment], columns: &str) -> Self {
        let mut bounds = Vec::with_capacity(2 * parts.len());
        let mut unions = Vec::with_capacity(parts.len());
        for part in parts {
            let first = 4 + bounds.len();
            unions.push(format!(
                "SELECT {columns} FROM {} WHERE series = s.id AND start >= ${first} AND start < ${}",
                table(part.step),
                first + 1
            ));
            bounds.extend([part.from, part.until]);
        }
        Self {
            sql: unions.join(" UNION ALL "),
            bounds,
        }
    }

    pub(super) async fn rows(
        &self,
        filter: &UsageFilter,
        executor: &sqlx::PgPool,
    ) -> Result<Vec<PgRow>, Fault> {
        // A statement with parts that differ is planned anew each time; a plan that ignores the bounds is a bad one.
        let mut query = sqlx::query(&self.sql)
            .persistent(false)
            .bind(filter.tenant.as_ref().map(AsRef::<str>::as_ref))
            .bind(filter.api.as_deref())
            .bind(filter.environment.map(environment));
        for bound in &self.bounds {
            query = query.bind(PgMicros(*bound));
        }
        Ok(query.fetch_all(executor).await?)
    }
}

pub(super) fn environment(environment: Environment) -> String {
    environment.to_string()
}

fn count(row: &PgRow, name: &str) -> Result<u64, Fault> {
    let n: i64 = row.try_get(name)?;
    u64::try_from(n).map_err(Fault::corrupt)
}

/// A sum in digits. One of more than 128 bits is told as the greatest number.
pub(super) fn wide(row: &PgRow, name: &str) -> Result<u128, Fault> {
    let digits: String = row.try_get(name)?;
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(Fault::corrupt(NotAnAmount));
    }
    Ok(digits.parse().unwrap_or(u128::MAX))
}

#[derive(Debug, thiserror::Error)]
#[error("an amount is a whole number that is not below zero")]
struct NotAnAmount;

/// The totals of a row of [`Statement::sums`].
pub(super) fn totals(row: &PgRow, latencies: bool) -> Result<UsageTotals, Fault> {
    let mut latency = LatencySketch::new();
    if latencies {
        let sketches: Option<Vec<Vec<u8>>> = row.try_get("latencies")?;
        for sketch in sketches.iter().flatten() {
            latency.merge(&LatencySketch::from_bytes(sketch).map_err(Fault::corrupt)?);
        }
    }
    Ok(UsageTotals {
        calls: count(row, "calls")?,
        refused: count(row, "refused")?,
        failed: count(row, "failed")?,
        aborted: count(row, "aborted")?,
        waived: count(row, "waived")?,
        overage: count(row, "overage")?,
        deprecated: count(row, "deprecated")?,
        statuses: [
            count(row, "status_1xx")?,
            count(row, "status_2xx")?,
            count(row, "status_3xx")?,
            count(row, "status_4xx")?,
            count(row, "status_5xx")?,
        ],
        request_bytes: wide(row, "request_bytes")?,
        response_bytes: wide(row, "response_bytes")?,
        cost_nanos: wide(row, "cost_nanos")?,
        latency,
        ..UsageTotals::default()
    })
}
