use std::{fmt, time::Duration};

use async_trait::async_trait;

use super::{AlertError, AlertMemory, Breach};
use crate::{
    clock::Timestamp,
    postgres_support::{PgMicros, Postgres},
};

/// How long whoever claimed a breach has to tell of it before another may.
const CLAIM: Duration = Duration::from_secs(60);

/// Remembers in the table `tollgate.usage_alerts` which breaches were told: of several processes that check the same
/// objectives one tells, and a restart tells nothing twice.
#[derive(Clone)]
pub struct PostgresAlertMemory {
    postgres: Postgres,
}

impl PostgresAlertMemory {
    /// A memory in the schema of `postgres`, which must have been [migrated](Postgres::migrate).
    #[must_use]
    pub fn new(postgres: &Postgres) -> Self {
        Self {
            postgres: postgres.clone(),
        }
    }

    async fn run(&self, sql: &str, breach: &Breach<'_>) -> Result<(), AlertError> {
        sqlx::query(sql)
            .bind(breach.objective)
            .bind(breach.tenant)
            .bind(breach.promise.as_str())
            .execute(self.postgres.pool())
            .await?;
        Ok(())
    }
}

const CLAIMED: &str = "INSERT INTO tollgate.usage_alerts (objective, tenant, promise, claimed_at)
    VALUES ($1, $2, $3, $4)
    ON CONFLICT (objective, tenant, promise) DO UPDATE SET claimed_at = $4
    WHERE NOT usage_alerts.told AND usage_alerts.claimed_at <= $5";
const TOLD: &str = "UPDATE tollgate.usage_alerts SET told = true
    WHERE objective = $1 AND tenant = $2 AND promise = $3";
const END: &str = "DELETE FROM tollgate.usage_alerts
    WHERE objective = $1 AND tenant = $2 AND promise = $3";

#[async_trait]
impl AlertMemory for PostgresAlertMemory {
    async fn claim(&self, breach: &Breach<'_>, now: Timestamp) -> Result<bool, AlertError> {
        let claimed = sqlx::query(CLAIMED)
            .bind(breach.objective)
            .bind(breach.tenant)
            .bind(breach.promise.as_str())
            .bind(PgMicros(now))
            .bind(PgMicros(now.saturating_sub(CLAIM)))
            .execute(self.postgres.pool())
            .await?;
        Ok(claimed.rows_affected() > 0)
    }

    async fn told(&self, breach: &Breach<'_>) -> Result<(), AlertError> {
        self.run(TOLD, breach).await
    }

    async fn end(&self, breach: &Breach<'_>) -> Result<(), AlertError> {
        self.run(END, breach).await
    }
}

impl fmt::Debug for PostgresAlertMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresAlertMemory")
            .field("postgres", &self.postgres)
            .finish()
    }
}
