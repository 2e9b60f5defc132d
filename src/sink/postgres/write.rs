//! The transaction that writes a batch.

use std::collections::HashSet;

use sqlx::PgConnection;

use super::{
    CLOSING_LOCK, Inner, PostgresSink,
    batch::{Judged, id_of, sums},
    corrections,
    days::day_of,
    fault::{is_about_data, is_about_memory, unavailable},
};
use crate::{
    clock::Timestamp,
    meter::{EventId, UsageEvent},
    postgres_support::Claimed,
    sink::{SinkError, Verdict},
    usage::UsageKey,
};

/// Shared with whoever else counts. The commit waits for the disk, whatever the server's setting is.
const BEGIN: &str = "SELECT pg_advisory_xact_lock_shared($1),
    CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'local', true) END";

const EVENTS: &str = "INSERT INTO tollgate.usage_events (day, id, tenant, time, event)
    SELECT date '1970-01-01' + day, id::uuid, tenant, timestamptz 'epoch' + micros * interval '1 microsecond', event::jsonb
    FROM unnest($1::int[], $2::text[], $3::text[], $4::bigint[], $5::text[]) AS t(day, id, tenant, micros, event)
    ON CONFLICT DO NOTHING
    RETURNING uuid_send(id)";

const POSITION: &str = "INSERT INTO tollgate.usage_positions AS p
        (stream, entry_millis, entry_sequence, events, duplicates)
    VALUES ($1, $2, $3::numeric, $4, $5)
    ON CONFLICT (stream) DO UPDATE SET
        events = p.events + excluded.events,
        duplicates = p.duplicates + excluded.duplicates,
        entry_millis = CASE WHEN (excluded.entry_millis, excluded.entry_sequence) > (p.entry_millis, p.entry_sequence)
            THEN excluded.entry_millis ELSE p.entry_millis END,
        entry_sequence = CASE WHEN (excluded.entry_millis, excluded.entry_sequence) > (p.entry_millis, p.entry_sequence)
            THEN excluded.entry_sequence ELSE p.entry_sequence END,
        updated_at = now()";

/// How far a stream was read with a batch.
#[derive(Clone, Debug)]
pub(crate) struct Position {
    pub(crate) stream: String,
    pub(crate) millis: i64,
    pub(crate) sequence: u64,
}

impl PostgresSink {
    /// Writes a batch and, in the same transaction, how far a stream was read with it.
    pub(crate) async fn count(
        &self,
        batch: &[UsageEvent],
        position: Option<&Position>,
    ) -> Result<Vec<Verdict>, SinkError> {
        let inner = &*self.inner;
        let now = inner.clock.now().wall();
        let mut judged = Judged::new(batch, now);
        let days = judged.days(batch);
        if !days.is_empty() {
            let dropped = inner.days.make(&inner.pool, days, day_of(now)).await;
            judged.reject_days(batch, &dropped.map_err(unavailable)?);
        }
        // Halves of what the server refuses, until the event is found that it is about.
        let mut parts = vec![judged.open(batch)];
        while let Some(mut part) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            let events: Vec<_> = part.iter().filter_map(|place| batch.get(*place)).collect();
            match inner.write(&events, position).await {
                Ok(new) => {
                    for place in part {
                        let id = batch.get(place).map(|event| event.id);
                        let is_new = id.is_some_and(|id| new.contains(&id));
                        let verdict = if is_new {
                            Verdict::Accepted
                        } else {
                            Verdict::Duplicate
                        };
                        judged.set(place, verdict);
                    }
                }
                Err(error) if is_about_data(&error) => {
                    if let [place] = part.as_slice() {
                        tracing::error!(target: "tollgate::usage", %error, "PostgreSQL cannot store a usage event");
                        let reason = "PostgreSQL cannot store the event";
                        judged.set(*place, Verdict::Rejected { reason });
                        continue;
                    }
                    let rest = part.split_off(part.len() / 2);
                    parts.push(rest);
                    parts.push(part);
                }
                Err(error) => {
                    if is_about_memory(&error) {
                        inner.days.clear();
                        inner.series.clear();
                    }
                    return Err(unavailable(error));
                }
            }
        }
        let verdicts = judged.verdicts.into_iter();
        let retry = Verdict::Retry {
            after: std::time::Duration::ZERO,
        };
        Ok(verdicts.map(|verdict| verdict.unwrap_or(retry)).collect())
    }
}

impl Inner {
    /// Writes events and counts those that are new, all or none; answers the new ones.
    async fn write(
        &self,
        events: &[&UsageEvent],
        position: Option<&Position>,
    ) -> Result<HashSet<EventId>, sqlx::Error> {
        let keys: HashSet<UsageKey> = events.iter().map(|event| UsageKey::of(event)).collect();
        let mut claimed = Claimed::from(&self.pool).await?;
        let series = self.series.of(claimed.connection()?, &keys).await?;

        let mut transaction = claimed.begin().await?;
        sqlx::query(BEGIN)
            .bind(CLOSING_LOCK)
            .execute(&mut *transaction)
            .await?;
        let new = self.insert(&mut transaction, events).await?;
        let (minutes, hours) = sums(
            events
                .iter()
                .copied()
                .filter(|event| new.contains(&event.id)),
        );
        self.statements
            .minutes
            .add(&mut transaction, &minutes, &series)
            .await?;
        self.statements
            .hours
            .add(&mut transaction, &hours, &series)
            .await?;
        if !minutes.is_empty() {
            corrections::note(&mut transaction, &minutes, &series).await?;
        }
        if let Some(position) = position {
            let n_new = i64::try_from(new.len()).unwrap_or(i64::MAX);
            let n_events = i64::try_from(events.len()).unwrap_or(i64::MAX);
            sqlx::query(POSITION)
                .bind(&position.stream)
                .bind(position.millis)
                .bind(position.sequence.to_string())
                .bind(n_new)
                .bind(n_events.saturating_sub(n_new))
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        claimed.done();
        Ok(new)
    }

    async fn insert(
        &self,
        connection: &mut PgConnection,
        events: &[&UsageEvent],
    ) -> Result<HashSet<EventId>, sqlx::Error> {
        let days: Vec<_> = events.iter().map(|event| day_of(event.time)).collect();
        let ids: Vec<_> = events.iter().map(|event| event.id.to_string()).collect();
        let tenants: Vec<_> = events.iter().map(|event| event.tenant.as_str()).collect();
        let times: Vec<_> = events.iter().map(|event| micros(event.time)).collect();
        let mut texts: Vec<Option<String>> = Vec::with_capacity(events.len());
        for event in events {
            let text = self.keeps_events.then(|| serde_json::to_string(event));
            texts.push(
                text.transpose()
                    .map_err(|error| sqlx::Error::Encode(error.into()))?,
            );
        }
        let new: Vec<(Vec<u8>,)> = sqlx::query_as(EVENTS)
            .bind(days)
            .bind(ids)
            .bind(tenants)
            .bind(times)
            .bind(texts)
            .fetch_all(connection)
            .await?;
        Ok(new.iter().filter_map(|(id,)| id_of(id)).collect())
    }
}

pub(super) fn micros(time: Timestamp) -> i64 {
    // The last time that there is lies far below.
    i64::try_from(time.as_unix_micros()).unwrap_or(i64::MAX)
}
