//! Periods that were invoiced, and what came too late for them.

use std::{collections::BTreeMap, fmt};

use sqlx::{FromRow, PgPool, Row, postgres::PgRow};

use super::QuantityTotal;
use crate::{
    clock::Timestamp,
    id::TenantId,
    postgres_support::{Claimed, Postgres},
    sink::{CLOSING_LOCK, SinkError, unavailable},
};

/// Closes periods when they are invoiced, and lists what was counted for them afterwards.
///
/// ```no_run
/// use tollgate::{clock::Timestamp, id::TenantId, postgres_support::Postgres, usage::UsagePeriods};
///
/// # async fn example(postgres: &Postgres) -> Result<(), Box<dyn std::error::Error>> {
/// let periods = UsagePeriods::new(postgres);
/// let (acme, july) = (TenantId::new("acme")?, Timestamp::from_unix_seconds(1_782_864_000));
/// periods.close(&acme, july).await?;
/// // Sum June's minutes for the invoice now: no later event changes them unseen.
///
/// // With the next invoice: what came too late for this one.
/// for line in periods.corrections(&acme, 0, 1_000).await? {
///     println!("{}: {} calls more", line.minute, line.billable_calls);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct UsagePeriods {
    pool: PgPool,
}

impl fmt::Debug for UsagePeriods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsagePeriods").finish_non_exhaustive()
    }
}

/// Usage that was counted for a minute after its period was closed: what to add to the next invoice.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Correction {
    /// The line's number; later lines have greater ones.
    pub id: i64,
    /// The minute, which lies in the closed period.
    pub minute: Timestamp,
    /// `live`, or `test`, which is never billed.
    pub environment: String,
    /// The plan that governed the calls.
    pub plan: String,
    /// The API.
    pub api: String,
    /// The method.
    pub method: String,
    /// The route template.
    pub route: String,
    /// All calls, however they ended.
    pub calls: u64,
    /// Those that a price per call applies to.
    pub billable_calls: u64,
    /// Calls above a limit that prices overage.
    pub overage: u64,
    /// Named quantities.
    pub quantities: BTreeMap<String, QuantityTotal>,
}

impl UsagePeriods {
    /// In the database where usage is counted.
    #[must_use]
    pub fn new(postgres: &Postgres) -> Self {
        Self {
            pool: postgres.pool().clone(),
        }
    }

    /// Closes a tenant's usage before `until`. Waits for what is being written; when it returns, the sums of the minutes
    /// before `until` are final but for what [`corrections`](Self::corrections) lists. A period is never opened again:
    /// an earlier `until` than before changes nothing.
    ///
    /// # Errors
    ///
    /// [`SinkError::Unavailable`] when the server cannot be asked.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have closed the period; closing it again does no harm.
    pub async fn close(&self, tenant: &TenantId, until: Timestamp) -> Result<(), SinkError> {
        let closing = async {
            let mut claimed = Claimed::from(&self.pool).await?;
            let mut transaction = claimed.begin().await?;
            sqlx::query("SELECT pg_advisory_xact_lock($1)")
                .bind(CLOSING_LOCK)
                .execute(&mut *transaction)
                .await?;
            sqlx::query(
                "INSERT INTO tollgate.usage_closings AS c (tenant, closed_until)
                 VALUES ($1, timestamptz 'epoch' + $2 * interval '1 microsecond')
                 ON CONFLICT (tenant) DO UPDATE SET closed_until = greatest(c.closed_until, excluded.closed_until)",
            )
            .bind(tenant.as_str())
            .bind(i64::try_from(until.as_unix_micros()).unwrap_or(i64::MAX))
            .execute(&mut *transaction)
            .await?;
            transaction.commit().await?;
            claimed.done();
            Ok(())
        };
        closing.await.map_err(unavailable)
    }

    /// The corrections of a tenant after the line `after` (0 for all), at most `limit`, in their order.
    ///
    /// # Errors
    ///
    /// [`SinkError::Unavailable`] when the server cannot be asked.
    pub async fn corrections(
        &self,
        tenant: &TenantId,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Correction>, SinkError> {
        sqlx::query_as(
            "SELECT c.id, (extract(epoch FROM c.start) * 1000000)::bigint, s.environment, s.plan, s.api, s.method,
                    s.route, c.calls, c.billable_calls, c.overage, c.quantities::text
             FROM tollgate.usage_corrections c JOIN tollgate.usage_series s ON s.id = c.series
             WHERE c.tenant = $1 AND c.id > $2 ORDER BY c.id LIMIT $3",
        )
        .bind(tenant.as_str())
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(unavailable)
    }
}

/// A number as the table has it: JSON's numbers would not hold all of its digits.
#[derive(serde::Deserialize)]
struct StoredQuantity {
    amount: String,
    overage: String,
}

impl FromRow<'_, PgRow> for Correction {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let number = |place: usize| -> Result<u64, sqlx::Error> {
            let number: i64 = row.try_get(place)?;
            u64::try_from(number).map_err(|error| sqlx::Error::Decode(error.into()))
        };
        let wide = |text: &str| {
            text.parse::<u128>()
                .map_err(|error| sqlx::Error::Decode(error.into()))
        };
        let stored: BTreeMap<String, StoredQuantity> =
            serde_json::from_str(row.try_get::<&str, _>(10)?)
                .map_err(|error| sqlx::Error::Decode(error.into()))?;
        let mut quantities = BTreeMap::new();
        for (name, stored) in stored {
            let total = QuantityTotal {
                amount: wide(&stored.amount)?,
                overage: wide(&stored.overage)?,
            };
            quantities.insert(name, total);
        }
        Ok(Self {
            id: row.try_get(0)?,
            minute: Timestamp::from_unix_micros(number(1)?),
            environment: row.try_get(2)?,
            plan: row.try_get(3)?,
            api: row.try_get(4)?,
            method: row.try_get(5)?,
            route: row.try_get(6)?,
            calls: number(7)?,
            billable_calls: number(8)?,
            overage: number(9)?,
            quantities,
        })
    }
}
