//! The days whose partitions are there.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use sqlx::PgPool;

use super::fault::is_day_dropped;
use crate::{clock::Timestamp, postgres_support::Claimed};

const SECONDS_PER_DAY: u64 = 86_400;
/// Only the days around today are asked for; whoever asks for more starts anew.
const MAX_DAYS: usize = 1_000;
/// The lock of the function `usage_day`.
const DAYS_LOCK: i64 = 8_390_322_045_806_929_252;

/// A day in UTC, counted from 1970-01-01.
pub(super) type Day = i32;

pub(super) fn day_of(time: Timestamp) -> Day {
    // Until the year 9999 there are fewer than three million.
    Day::try_from(time.as_unix_seconds() / SECONDS_PER_DAY).unwrap_or(Day::MAX)
}

#[derive(Debug, Default)]
pub(super) struct Days(Mutex<BTreeSet<Day>>);

impl Days {
    fn known(&self) -> MutexGuard<'_, BTreeSet<Day>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn clear(&self) {
        self.known().clear();
    }

    /// Makes the partitions of these days, and that of the day after the last, before it is needed. Answers the days
    /// that have none, as they were dropped.
    pub(super) async fn make(
        &self,
        pool: &PgPool,
        mut wanted: BTreeSet<Day>,
        today: Day,
    ) -> Result<BTreeSet<Day>, sqlx::Error> {
        wanted.insert(today);
        wanted.insert(today.saturating_add(1));
        wanted.retain({
            let known = self.known();
            move |day| !known.contains(day)
        });
        let mut dropped = BTreeSet::new();
        for day in wanted {
            let mut claimed = Claimed::from(pool).await?;
            let made = sqlx::query("SELECT tollgate.usage_day(date '1970-01-01' + $1)")
                .bind(day)
                .execute(claimed.connection()?)
                .await;
            match made {
                Ok(_) => {
                    let mut known = self.known();
                    if known.len() >= MAX_DAYS {
                        known.clear();
                    }
                    known.insert(day);
                }
                Err(error) if is_day_dropped(&error) => {
                    dropped.insert(day);
                }
                Err(error) => return Err(error),
            }
            claimed.done();
        }
        Ok(dropped)
    }

    pub(super) async fn forget_before(
        &self,
        pool: &PgPool,
        time: Timestamp,
    ) -> Result<u64, sqlx::Error> {
        let first = day_of(time);
        let mut claimed = Claimed::from(pool).await?;
        let mut noting = claimed.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(DAYS_LOCK)
            .execute(&mut *noting)
            .await?;
        sqlx::query(
            "UPDATE tollgate.usage_retention SET first_day = greatest(first_day, date '1970-01-01' + $1)",
        )
        .bind(first)
        .execute(&mut *noting)
        .await?;
        noting.commit().await?;
        self.clear();
        let partitions: Vec<(String,)> = sqlx::query_as(
            "SELECT format('%I.%I', 'tollgate', c.relname) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
             WHERE i.inhparent = 'tollgate.usage_events'::regclass AND c.relname ~ '^usage_events_[0-9]{8}$'
               AND to_date(right(c.relname, 8), 'YYYYMMDD') < date '1970-01-01' + $1
             ORDER BY c.relname",
        )
        .bind(first)
        .fetch_all(claimed.connection()?)
        .await?;
        let mut n_days = 0;
        for (partition,) in partitions {
            sqlx::query(&format!("DROP TABLE IF EXISTS {partition}"))
                .execute(claimed.connection()?)
                .await?;
            n_days += 1;
        }
        claimed.done();
        Ok(n_days)
    }
}
