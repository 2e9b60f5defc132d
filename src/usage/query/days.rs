//! Days that are over, put together from their hours.

use std::{collections::BTreeMap, time::Duration};

use sqlx::{PgConnection, Row, postgres::PgRow};

use super::{
    answer::UsageQueryError,
    questions::PostgresUsage,
    segments::{Segment, Step},
};
use crate::{
    clock::Timestamp,
    postgres_support::{Fault, PgMicros, begin},
    usage::LatencySketch,
};

const DAY: Duration = Duration::from_secs(86_400);
/// Any number, that of the migration: held by whoever changes hours, and alone for a moment by whoever makes a day.
const LOCK: i64 = 8_390_322_045_806_929_253;
/// How many series are read and written at once.
const BATCH: i64 = 500;

/// What [`PostgresUsage::make_days`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MadeDays {
    /// How many days were made.
    pub made: u32,
    /// How many days were changed while they were being made; they are made the next time.
    pub changed: u32,
}

/// Divides whole days into runs of those that were made, and of the others, which are read by their hours.
pub(super) fn split(days: Segment, made: &[Timestamp], parts: &mut Vec<Segment>) {
    let mut from = days.from;
    while from < days.until {
        let until = from.saturating_add(DAY).min(days.until);
        let step = if made.binary_search(&from).is_ok() {
            Step::Day
        } else {
            Step::Hour
        };
        match parts.last_mut() {
            Some(last) if last.step == step && last.until == from => last.until = until,
            _ => parts.push(Segment { step, from, until }),
        }
        from = until;
    }
}

const MADE: &str = "SELECT day FROM tollgate.usage_days_made
    WHERE ready AND day >= $1 AND day < $2 ORDER BY day";
const TO_MAKE: &str = "SELECT day FROM tollgate.usage_days_made
    WHERE NOT ready AND day < $1 ORDER BY day LIMIT $2";
const BEGIN: &str = "UPDATE tollgate.usage_days_made SET token = $2 WHERE day = $1 AND NOT ready";
const END: &str = "UPDATE tollgate.usage_days_made SET ready = true WHERE day = $1 AND token = $2";
const SERIES: &str = "SELECT id FROM tollgate.usage_series WHERE id > $1 ORDER BY id LIMIT $2";
const SKETCHES: &str = "SELECT series, latency FROM tollgate.usage_hours
    WHERE series = ANY($1) AND start >= $2 AND start < $3";
/// All numbers are summed by the server; the sketches come with the statement.
const WRITE: &str = "INSERT INTO tollgate.usage_days
    SELECT h.series, $1, sum(calls), sum(refused), sum(failed), sum(aborted), sum(waived), sum(overage),
        sum(deprecated), sum(status_1xx), sum(status_2xx), sum(status_3xx), sum(status_4xx), sum(status_5xx),
        sum(request_bytes), sum(response_bytes), sum(cost_nanos), it.latency
    FROM unnest($3::bigint[], $4::bytea[]) AS it (series, latency)
    JOIN tollgate.usage_hours AS h ON h.series = it.series AND h.start >= $1 AND h.start < $2
    GROUP BY h.series, it.latency";

impl PostgresUsage {
    /// Makes the rows of days that are over, oldest first, at most so many; call it every hour or so. Several
    /// processes may: a day is made whole by one of them or not at all.
    ///
    /// Usage that comes late for a day takes the day out again, until it is made the next time.
    ///
    /// # Errors
    ///
    /// [`UsageQueryError`]; the days that were made before stay.
    ///
    /// # Cancel safety
    ///
    /// A day that is given up is not made.
    pub async fn make_days(&self, now: Timestamp, most: u32) -> Result<MadeDays, UsageQueryError> {
        let today = Step::Day.start_of(now);
        let days = sqlx::query(TO_MAKE)
            .bind(PgMicros(today))
            .bind(i64::from(most))
            .fetch_all(self.postgres.pool())
            .await
            .map_err(Fault::from)?;
        let mut done = MadeDays::default();
        for row in &days {
            let day: PgMicros = row.try_get("day").map_err(Fault::from)?;
            // Whoever ends first has made it: the rows of the other cannot be written beside its own.
            let made = match self.make_day(day.0).await {
                Err(Fault::Exists) => false,
                made => made?,
            };
            if made {
                done.made += 1;
            } else {
                done.changed += 1;
            }
        }
        Ok(done)
    }

    pub(super) async fn made_days(
        &self,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<Timestamp>, Fault> {
        let rows = sqlx::query(MADE)
            .bind(PgMicros(from))
            .bind(PgMicros(until))
            .fetch_all(self.postgres.pool())
            .await?;
        let days = rows
            .iter()
            .map(|row| Ok(row.try_get::<PgMicros, _>("day")?.0));
        days.collect()
    }

    /// False when the day was changed meanwhile, or another process makes it.
    async fn make_day(&self, day: Timestamp) -> Result<bool, Fault> {
        let Some(token) = self.begin_day(day).await? else {
            return Ok(false);
        };
        let mut transaction = begin(self.postgres.pool()).await?;
        sqlx::query("DELETE FROM tollgate.usage_days WHERE start = $1")
            .bind(PgMicros(day))
            .execute(&mut *transaction)
            .await?;
        let mut after = i64::MIN;
        while let Some(last) = write_batch(&mut transaction, day, after).await? {
            after = last;
        }
        let ended = sqlx::query(END)
            .bind(PgMicros(day))
            .bind(token)
            .execute(&mut *transaction)
            .await?;
        if ended.rows_affected() == 0 {
            transaction.rollback().await?;
            return Ok(false);
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// From here on, whoever changes the day's hours takes the token away that this leaves. `None` when the day was made
    /// meanwhile.
    async fn begin_day(&self, day: Timestamp) -> Result<Option<i64>, Fault> {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(|error| Fault::Unavailable(error.into()))?;
        // Zero is nobody's.
        let token = i64::from_be_bytes(bytes) | 1;
        let mut transaction = begin(self.postgres.pool()).await?;
        // Waits for those who are changing hours now.
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(LOCK)
            .execute(&mut *transaction)
            .await?;
        let begun = sqlx::query(BEGIN)
            .bind(PgMicros(day))
            .bind(token)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok((begun.rows_affected() > 0).then_some(token))
    }
}

/// Writes the day of the next series, and gives the last of them.
async fn write_batch(
    connection: &mut PgConnection,
    day: Timestamp,
    after: i64,
) -> Result<Option<i64>, Fault> {
    let (from, until) = (PgMicros(day), PgMicros(day.saturating_add(DAY)));
    let next: Vec<i64> = sqlx::query_scalar(SERIES)
        .bind(after)
        .bind(BATCH)
        .fetch_all(&mut *connection)
        .await?;
    let Some(last) = next.last().copied() else {
        return Ok(None);
    };
    let rows = sqlx::query(SKETCHES)
        .bind(next)
        .bind(from)
        .bind(until)
        .fetch_all(&mut *connection)
        .await?;
    let (series, latencies): (Vec<i64>, Vec<Vec<u8>>) = merged(&rows)?
        .into_iter()
        .map(|(series, sketch)| (series, sketch.to_bytes()))
        .unzip();
    sqlx::query(WRITE)
        .bind(from)
        .bind(until)
        .bind(series)
        .bind(latencies)
        .execute(connection)
        .await?;
    Ok(Some(last))
}

fn merged(rows: &[PgRow]) -> Result<BTreeMap<i64, LatencySketch>, Fault> {
    let mut sketches: BTreeMap<i64, LatencySketch> = BTreeMap::new();
    for row in rows {
        let latency: Vec<u8> = row.try_get("latency")?;
        let sketch = sketches.entry(row.try_get("series")?).or_default();
        if !latency.is_empty() {
            sketch.merge(&LatencySketch::from_bytes(&latency).map_err(Fault::corrupt)?);
        }
    }
    Ok(sketches)
}
