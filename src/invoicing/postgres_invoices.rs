use async_trait::async_trait;

use super::{InvoiceSink, InvoiceSinkError, Issued};
use crate::{
    clock::Timestamp,
    id::TenantId,
    postgres_support::Postgres,
    pricing::{BillingPeriod, InvoiceDraft},
};

/// Keeps drafts in the table `tollgate.invoices`, as the JSON that they are, each once.
///
/// A draft is committed when it is issued, in one statement: it is there whole or not at all. Tenant, period, version,
/// id, currency and total are columns of their own, so that reports need not read documents.
#[derive(Clone, Debug)]
pub struct PostgresInvoices {
    postgres: Postgres,
}

impl PostgresInvoices {
    /// Invoices of a database, whose schema [`Postgres::migrate`] made.
    #[must_use]
    pub fn new(postgres: &Postgres) -> Self {
        Self {
            postgres: postgres.clone(),
        }
    }

    /// The last version of a tenant's period: what the next one corrects.
    ///
    /// # Errors
    ///
    /// [`InvoiceSinkError::Unavailable`] when the database does not answer, [`InvoiceSinkError::Corrupt`] when the
    /// document cannot be read.
    pub async fn latest(
        &self,
        tenant: &TenantId,
        period: BillingPeriod,
    ) -> Result<Option<InvoiceDraft>, InvoiceSinkError> {
        let (start, end) = seconds(period);
        let row: Option<(String,)> = sqlx::query_as(
            "SELECT document::text FROM tollgate.invoices
             WHERE tenant = $1 AND period_start = to_timestamp($2) AND period_end = to_timestamp($3)
             ORDER BY version DESC LIMIT 1",
        )
        .bind(tenant.as_str())
        .bind(start)
        .bind(end)
        .fetch_optional(self.postgres.pool())
        .await
        .map_err(InvoiceSinkError::unavailable)?;
        let draft = row.map(|(text,)| serde_json::from_str(&text));
        draft
            .transpose()
            .map_err(|source| InvoiceSinkError::Corrupt(source.into()))
    }

    async fn document(&self, draft: &InvoiceDraft) -> Result<Option<String>, sqlx::Error> {
        let row: Option<(String,)> =
            sqlx::query_as("SELECT document::text FROM tollgate.invoices WHERE id = $1")
                .bind(&*draft.id)
                .fetch_optional(self.postgres.pool())
                .await?;
        Ok(row.map(|(text,)| text))
    }

    /// Whether the draft is there now and was not before.
    async fn insert(&self, draft: &InvoiceDraft, document: &str) -> Result<bool, sqlx::Error> {
        let (start, end) = seconds(draft.period);
        let done = sqlx::query(
            "INSERT INTO tollgate.invoices
                 (tenant, period_start, period_end, version, id, currency, total_minor, document)
             VALUES ($1, to_timestamp($2), to_timestamp($3), $4, $5, $6, $7::numeric, $8::json)
             ON CONFLICT DO NOTHING",
        )
        .bind(draft.tenant.as_str())
        .bind(start)
        .bind(end)
        .bind(i64::from(draft.version))
        .bind(&*draft.id)
        .bind(draft.currency.code())
        .bind(draft.total.minor().to_string())
        .bind(document)
        .execute(self.postgres.pool())
        .await?;
        Ok(done.rows_affected() > 0)
    }
}

/// Start and end, in seconds since 1970.
fn seconds(period: BillingPeriod) -> (i64, i64) {
    let seconds = |at: Timestamp| at.to_jiff().as_second();
    (seconds(period.start()), seconds(period.end()))
}

#[async_trait]
impl InvoiceSink for PostgresInvoices {
    async fn issue(&self, draft: &InvoiceDraft) -> Result<Issued, InvoiceSinkError> {
        let document = draft.to_json().map_err(InvoiceSinkError::refused)?;
        let unavailable = InvoiceSinkError::unavailable;
        if self.insert(draft, &document).await.map_err(unavailable)? {
            return Ok(Issued::Now);
        }
        match self.document(draft).await.map_err(unavailable)? {
            Some(known) if known == document => Ok(Issued::Already),
            _ => Err(InvoiceSinkError::Conflict),
        }
    }
}
