use std::time::Duration;

use async_trait::async_trait;
use sqlx::{PgExecutor, Row as _, postgres::PgRow, types::Json};

use super::{
    Account, AccountStore, Claim, Claimed, DeadLetter, EventKey, EventLedger, LedgerError,
    MIN_RETENTION, Try,
    ledger::{check_retention, token},
};
use crate::{
    clock::Timestamp,
    error::ConfigError,
    postgres_support::{Postgres, begin},
};

/// Events and accounts in PostgreSQL, in the tables `tollgate.billing_*`: the ledger for whoever has more than one process,
/// or must not forget.
///
/// Leases run by the server's clock. Nothing is deleted by itself; [`purge`](Self::purge) forgets events that are older
/// than the retention. [`Postgres::migrate`] makes the tables.
#[derive(Clone, Debug)]
pub struct PostgresLedger {
    postgres: Postgres,
    retention: Duration,
}

impl PostgresLedger {
    /// A ledger that remembers events for 30 days at least.
    #[must_use]
    pub fn new(postgres: &Postgres) -> Self {
        Self {
            postgres: postgres.clone(),
            retention: MIN_RETENTION,
        }
    }

    /// How long events are remembered.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when it is less than 30 days.
    pub fn retention(mut self, retention: Duration) -> Result<Self, ConfigError> {
        self.retention = check_retention(retention)?;
        Ok(self)
    }

    /// Forgets events that are done and older than the retention; answers how many. Run it daily. The role needs `DELETE`
    /// on `tollgate.billing_events`.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Unavailable`].
    pub async fn purge(&self) -> Result<u64, LedgerError> {
        let seconds = i64::try_from(self.retention.as_secs()).unwrap_or(i64::MAX);
        let purged = sqlx::query(
            "DELETE FROM tollgate.billing_events
             WHERE state = 'done' AND first_seen < now() - $1::bigint * interval '1 second'",
        )
        .bind(seconds)
        .execute(self.postgres.pool())
        .await;
        Ok(purged.map_err(unavailable)?.rows_affected())
    }

    /// Moves the event of a claim that holds to another state.
    async fn settle(
        executor: impl PgExecutor<'_>,
        claim: &Claim,
        state: &str,
        forgiven: i32,
    ) -> Result<bool, LedgerError> {
        let settled = sqlx::query(
            "UPDATE tollgate.billing_events SET state = $4, attempts = attempts - $5, claimed_until = NULL
             WHERE endpoint = $1 AND event_id = $2 AND state = 'claimed' AND token = $3",
        )
        .bind(&*claim.key.endpoint)
        .bind(&*claim.key.id)
        .bind(to_bigint(claim.token))
        .bind(state)
        .bind(forgiven)
        .execute(executor)
        .await;
        Ok(settled.map_err(unavailable)?.rows_affected() == 1)
    }
}

/// Tokens have 53 bits.
fn to_bigint(token: u64) -> i64 {
    i64::try_from(token).unwrap_or(i64::MAX)
}

fn unavailable(error: sqlx::Error) -> LedgerError {
    match error {
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
            LedgerError::Corrupt(error.into())
        }
        error => LedgerError::Unavailable(error.into()),
    }
}

fn account(row: &PgRow) -> Result<Account, LedgerError> {
    let version: i64 = row.try_get("version").map_err(unavailable)?;
    let Json(account): Json<Account> = row.try_get("account").map_err(unavailable)?;
    Ok(account.at_version(u64::try_from(version).unwrap_or(0)))
}

#[async_trait]
impl EventLedger for PostgresLedger {
    async fn claim(
        &self,
        key: &EventKey,
        fingerprint: &[u8; 32],
        lease: Duration,
    ) -> Result<Claimed, LedgerError> {
        let token = token()?;
        let micros = i64::try_from(lease.as_micros()).unwrap_or(i64::MAX);
        // One statement: either the row is taken, or nothing is changed. `clock_timestamp` moves on while it waits for the
        // row's lock.
        let claimed = sqlx::query(
            "INSERT INTO tollgate.billing_events AS e
                 (endpoint, event_id, content, state, token, attempts, claimed_until)
             VALUES ($1, $2, $3, 'claimed', $4, 1, clock_timestamp() + $5::bigint * interval '1 microsecond')
             ON CONFLICT (endpoint, event_id) DO UPDATE SET
                 state = 'claimed', token = excluded.token, attempts = e.attempts + 1,
                 claimed_until = clock_timestamp() + $5::bigint * interval '1 microsecond'
             WHERE e.content = excluded.content
                 AND (e.state = 'free' OR (e.state = 'claimed' AND e.claimed_until <= clock_timestamp()))
             RETURNING e.attempts",
        )
        .bind(&*key.endpoint)
        .bind(&*key.id)
        .bind(fingerprint.as_slice())
        .bind(to_bigint(token))
        .bind(micros)
        .fetch_optional(self.postgres.pool())
        .await
        .map_err(unavailable)?;
        if let Some(row) = claimed {
            let attempts: i32 = row.try_get("attempts").map_err(unavailable)?;
            let attempt = u32::try_from(attempts).unwrap_or(0);
            return Ok(Claimed::New(Claim::new(key.clone(), token, attempt)));
        }
        let row = sqlx::query(
            "SELECT content = $3 AS is_same, state,
                 (extract(epoch FROM coalesce(claimed_until, clock_timestamp())) * 1000000)::bigint AS until
             FROM tollgate.billing_events WHERE endpoint = $1 AND event_id = $2",
        )
        .bind(&*key.endpoint)
        .bind(&*key.id)
        .bind(fingerprint.as_slice())
        .fetch_optional(self.postgres.pool())
        .await
        .map_err(unavailable)?;
        let Some(row) = row else {
            // Purged in between: it is old, and was done.
            return Ok(Claimed::Done);
        };
        let is_same: bool = row.try_get("is_same").map_err(unavailable)?;
        let state: String = row.try_get("state").map_err(unavailable)?;
        let until: i64 = row.try_get("until").map_err(unavailable)?;
        Ok(match state.as_str() {
            _ if !is_same => Claimed::OtherContent,
            "done" => Claimed::Done,
            // Or it has become free this instant, and the next try gets it.
            _ => Claimed::InProgress {
                until: Timestamp::from_unix_micros(u64::try_from(until).unwrap_or(0)),
            },
        })
    }

    async fn complete(&self, claim: &Claim) -> Result<(), LedgerError> {
        if Self::settle(self.postgres.pool(), claim, "done", 0).await? {
            return Ok(());
        }
        Err(LedgerError::ClaimLost)
    }

    async fn release(&self, claim: &Claim, outcome: Try) -> Result<(), LedgerError> {
        let forgiven = i32::from(outcome == Try::Forgiven);
        Self::settle(self.postgres.pool(), claim, "free", forgiven).await?;
        Ok(())
    }

    async fn bury(&self, claim: &Claim, letter: DeadLetter) -> Result<(), LedgerError> {
        let mut transaction = begin(self.postgres.pool()).await.map_err(unavailable)?;
        if !Self::settle(&mut *transaction, claim, "done", 0).await? {
            return Err(LedgerError::ClaimLost);
        }
        let micros = i64::try_from(letter.buried_at.as_unix_micros()).unwrap_or(i64::MAX);
        sqlx::query(
            "INSERT INTO tollgate.billing_dead_letters (endpoint, event_id, letter, buried_at)
             VALUES ($1, $2, $3, 'epoch'::timestamptz + $4::bigint * interval '1 microsecond')
             ON CONFLICT (endpoint, event_id) DO UPDATE SET letter = excluded.letter, buried_at = excluded.buried_at",
        )
        .bind(&*claim.key.endpoint)
        .bind(&*claim.key.id)
        .bind(Json(&letter))
        .bind(micros)
        .execute(&mut *transaction)
        .await
        .map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)
    }

    async fn dead_letters(
        &self,
        endpoint: &str,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, LedgerError> {
        let rows = sqlx::query(
            "SELECT letter FROM tollgate.billing_dead_letters WHERE endpoint = $1
             ORDER BY buried_at, event_id COLLATE \"C\" LIMIT $2",
        )
        .bind(endpoint)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(self.postgres.pool())
        .await
        .map_err(unavailable)?;
        rows.iter()
            .map(|row| {
                let letter: Json<DeadLetter> = row.try_get("letter").map_err(unavailable)?;
                Ok(letter.0)
            })
            .collect()
    }

    async fn reopen(&self, key: &EventKey) -> Result<DeadLetter, LedgerError> {
        let mut transaction = begin(self.postgres.pool()).await.map_err(unavailable)?;
        let row = sqlx::query(
            "SELECT letter FROM tollgate.billing_dead_letters WHERE endpoint = $1 AND event_id = $2 FOR UPDATE",
        )
        .bind(&*key.endpoint)
        .bind(&*key.id)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(unavailable)?
        .ok_or(LedgerError::NotFound)?;
        let letter: Json<DeadLetter> = row.try_get("letter").map_err(unavailable)?;
        sqlx::query(
            "UPDATE tollgate.billing_events SET state = 'free', attempts = 0
             WHERE endpoint = $1 AND event_id = $2 AND state = 'done'",
        )
        .bind(&*key.endpoint)
        .bind(&*key.id)
        .execute(&mut *transaction)
        .await
        .map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)?;
        Ok(letter.0)
    }

    async fn discard(&self, key: &EventKey) -> Result<(), LedgerError> {
        let discarded = sqlx::query(
            "DELETE FROM tollgate.billing_dead_letters WHERE endpoint = $1 AND event_id = $2",
        )
        .bind(&*key.endpoint)
        .bind(&*key.id)
        .execute(self.postgres.pool())
        .await
        .map_err(unavailable)?;
        if discarded.rows_affected() == 0 {
            return Err(LedgerError::NotFound);
        }
        Ok(())
    }
}

#[async_trait]
impl AccountStore for PostgresLedger {
    async fn load(&self, customer: &str) -> Result<Option<Account>, LedgerError> {
        let row = sqlx::query(
            "SELECT version, account FROM tollgate.billing_accounts WHERE customer = $1",
        )
        .bind(customer)
        .fetch_optional(self.postgres.pool())
        .await
        .map_err(unavailable)?;
        row.as_ref().map(account).transpose()
    }

    async fn save(&self, account: &Account) -> Result<(), LedgerError> {
        let version = i64::try_from(account.version()).unwrap_or(i64::MAX);
        let saved = sqlx::query(
            "INSERT INTO tollgate.billing_accounts AS a (customer, version, account)
             SELECT $1::text, 1, $3::jsonb WHERE $2::bigint = 0
             ON CONFLICT (customer) DO NOTHING",
        );
        let replaced = sqlx::query(
            "UPDATE tollgate.billing_accounts SET version = version + 1, account = $3
             WHERE customer = $1 AND version = $2",
        );
        let query = if version == 0 { saved } else { replaced };
        let saved = query
            .bind(account.customer())
            .bind(version)
            .bind(Json(account))
            .execute(self.postgres.pool())
            .await
            .map_err(unavailable)?;
        if saved.rows_affected() == 0 {
            return Err(LedgerError::Conflict);
        }
        Ok(())
    }

    async fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<Account>, LedgerError> {
        let rows = sqlx::query(
            "SELECT version, account FROM tollgate.billing_accounts WHERE customer > $1
             ORDER BY customer LIMIT $2",
        )
        .bind(after.unwrap_or_default())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(self.postgres.pool())
        .await
        .map_err(unavailable)?;
        rows.iter().map(account).collect()
    }
}
