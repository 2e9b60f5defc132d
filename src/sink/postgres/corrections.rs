//! What was counted for periods that were closed.

use std::collections::{HashMap, HashSet};

use sqlx::PgConnection;

use super::{batch::Sums, write::micros};
use crate::usage::{UsageKey, UsageTotals};

const CLOSINGS: &str = "SELECT tenant, (extract(epoch FROM closed_until) * 1000000)::bigint
    FROM tollgate.usage_closings WHERE tenant = ANY($1)";

const NOTE: &str = "INSERT INTO tollgate.usage_corrections
        (tenant, series, start, calls, billable_calls, overage, request_bytes, response_bytes, cost_nanos, quantities)
    SELECT tenant, series, timestamptz 'epoch' + micros * interval '1 microsecond', calls, billable_calls, overage,
        request_bytes::numeric, response_bytes::numeric, cost_nanos::numeric, quantities::jsonb
    FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
            $7::text[], $8::text[], $9::text[], $10::text[])
        AS t(tenant, series, micros, calls, billable_calls, overage, request_bytes, response_bytes, cost_nanos, quantities)";

/// Usage of a minute that was closed.
struct Late<'a> {
    tenant: &'a str,
    series: i64,
    minute: i64,
    totals: &'a UsageTotals,
}

/// Notes what of these minutes was closed before.
pub(super) async fn note(
    connection: &mut PgConnection,
    minutes: &Sums,
    series: &HashMap<UsageKey, i64>,
) -> Result<(), sqlx::Error> {
    let tenants: HashSet<_> = minutes.keys().map(|(key, _)| key.tenant.as_str()).collect();
    let closings: Vec<(String, i64)> = sqlx::query_as(CLOSINGS)
        .bind(tenants.into_iter().collect::<Vec<_>>())
        .fetch_all(&mut *connection)
        .await?;
    let closed: HashMap<_, _> = closings.into_iter().collect();
    let late: Vec<_> = minutes
        .iter()
        .filter_map(|((key, minute), totals)| {
            let (tenant, minute) = (key.tenant.as_str(), micros(*minute));
            let is_closed = closed.get(tenant).is_some_and(|until| minute < *until);
            let series = *series.get(key)?;
            is_closed.then_some(Late {
                tenant,
                series,
                minute,
                totals,
            })
        })
        .collect();
    if late.is_empty() {
        return Ok(());
    }
    insert(connection, &late).await
}

async fn insert(connection: &mut PgConnection, late: &[Late<'_>]) -> Result<(), sqlx::Error> {
    let counts = |each: fn(&UsageTotals) -> u64| -> Vec<i64> {
        late.iter()
            .map(|late| i64::try_from(each(late.totals)).unwrap_or(i64::MAX))
            .collect()
    };
    let sums = |each: fn(&UsageTotals) -> u128| -> Vec<String> {
        late.iter()
            .map(|late| each(late.totals).to_string())
            .collect()
    };
    let quantities: Vec<_> = late.iter().map(|late| quantities(late.totals)).collect();
    sqlx::query(NOTE)
        .bind(late.iter().map(|late| late.tenant).collect::<Vec<_>>())
        .bind(late.iter().map(|late| late.series).collect::<Vec<_>>())
        .bind(late.iter().map(|late| late.minute).collect::<Vec<_>>())
        .bind(counts(|totals| totals.calls))
        .bind(counts(UsageTotals::billable_calls))
        .bind(counts(|totals| totals.overage))
        .bind(sums(|totals| totals.request_bytes))
        .bind(sums(|totals| totals.response_bytes))
        .bind(sums(|totals| totals.cost_nanos))
        .bind(quantities)
        .execute(connection)
        .await
        .map(drop)
}

/// As JSON; amounts are text, as not every reader's numbers have their digits.
fn quantities(totals: &UsageTotals) -> String {
    let all: serde_json::Map<_, _> = totals
        .quantities
        .iter()
        .map(|(name, total)| {
            let total = serde_json::json!({
                "amount": total.amount.to_string(),
                "overage": total.overage.to_string(),
            });
            (name.to_string(), total)
        })
        .collect();
    serde_json::Value::Object(all).to_string()
}
