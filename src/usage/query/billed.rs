//! What a tenant is billed for, from the events themselves.

use std::collections::BTreeMap;

use sqlx::{Row, types::Json};

use super::{PostgresUsage, UsageQueryError};
use crate::{
    clock::Timestamp,
    id::{PlanName, TenantId},
    meter::UsageEvent,
    postgres_support::{Fault, PgMicros, within},
    pricing::UsageTotals,
};

/// What is read at once.
const PAGE: i64 = 5_000;

/// The next events after an instant and an id.
const EVENTS: &str = "SELECT time, id::text AS id, event FROM tollgate.usage_events
    WHERE tenant = $1 AND time >= $2 AND time < $3 AND (time, id) > ($4, $5::uuid)
        AND day BETWEEN ($2 AT TIME ZONE 'UTC')::date AND ($3 AT TIME ZONE 'UTC')::date
    ORDER BY time, id LIMIT $6";

/// Whether events of the period's beginning have been dropped.
const IS_DROPPED: &str =
    "SELECT first_day > ($1 AT TIME ZONE 'UTC')::date FROM tollgate.usage_retention";

#[derive(Debug, thiserror::Error)]
#[error("events of the period were dropped: bill before `forget_days_before` forgets them")]
struct DaysDropped;

#[derive(Debug, thiserror::Error)]
#[error("only totals were kept of these events: let the sink keep events to bill by them")]
struct TotalsOnly;

impl PostgresUsage {
    /// What a tenant pays for in a period, from `from` on and before `until`, by the plan that governed each call: the
    /// input of an [`InvoiceDraft`](crate::pricing::InvoiceDraft).
    ///
    /// Added up from the events that the sink keeps, each of them once, by the rules of
    /// [`UsageTotals::record`](crate::pricing::UsageTotals::record). It reads them all, page by page, each within the
    /// deadline: for the end of a month, not for a page that a customer waits for.
    ///
    /// # Errors
    ///
    /// [`UsageQueryError`]; `Corrupt` also where only totals were kept, or days of the period were dropped.
    pub async fn billed(
        &self,
        tenant: &TenantId,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<BTreeMap<PlanName, UsageTotals>, UsageQueryError> {
        let mut billed = BTreeMap::<_, UsageTotals>::new();
        let mut after = (from, "00000000-0000-0000-0000-000000000000".to_owned());
        loop {
            let query = sqlx::query(EVENTS)
                .bind(tenant.as_str())
                .bind(PgMicros(from))
                .bind(PgMicros(until))
                .bind(PgMicros(after.0))
                .bind(&after.1)
                .bind(PAGE);
            let read = async { Ok(query.fetch_all(self.postgres.pool()).await?) };
            let rows = within(self.deadline, read).await?;
            for row in &rows {
                let event: Option<Json<UsageEvent>> = row.try_get("event").map_err(Fault::from)?;
                let event = event.ok_or_else(|| UsageQueryError::Corrupt(TotalsOnly.into()))?;
                if let Some(used) = billed.get_mut(&event.0.plan) {
                    used.record(&event.0);
                } else {
                    let mut used = UsageTotals::new();
                    used.record(&event.0);
                    if !used.is_empty() {
                        billed.insert(event.0.plan.clone(), used);
                    }
                }
            }
            let Some(last) = rows.last() else { break };
            let time: PgMicros = last.try_get("time").map_err(Fault::from)?;
            after = (time.0, last.try_get("id").map_err(Fault::from)?);
        }
        // Asked last, so that what is dropped meanwhile is noticed.
        let is_dropped = sqlx::query_scalar::<_, bool>(IS_DROPPED).bind(PgMicros(from));
        let read = async { Ok(is_dropped.fetch_one(self.postgres.pool()).await?) };
        if within(self.deadline, read).await? {
            return Err(UsageQueryError::Corrupt(DaysDropped.into()));
        }
        Ok(billed)
    }
}
