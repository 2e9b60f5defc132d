//! The numbers of usage keys.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest, Sha256};
use sqlx::PgConnection;

use crate::usage::UsageKey;

/// As many as a process remembers; with more it starts anew.
const MAX_SERIES: usize = 65_536;

const INSERT: &str = "INSERT INTO tollgate.usage_series
        (digest, tenant, environment, plan, api, method, route, country)
    SELECT digest, tenant, environment, plan, api, method, route, country
    FROM unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[])
        AS t(digest, tenant, environment, plan, api, method, route, country)
    ORDER BY digest
    ON CONFLICT DO NOTHING";

#[derive(Debug, Default)]
pub(super) struct SeriesIds(Mutex<HashMap<UsageKey, i64>>);

/// Different keys have different digests: each part is led by its length.
fn digest(key: &UsageKey) -> Vec<u8> {
    let mut digest = Sha256::new();
    for part in columns(key) {
        // An absent part is no empty one.
        let length = part.map_or(u64::MAX, |part| part.len() as u64);
        digest.update(length.to_be_bytes());
        digest.update(part.unwrap_or_default());
    }
    digest.finalize().to_vec()
}

fn columns(key: &UsageKey) -> [Option<&str>; 7] {
    [
        Some(key.tenant.as_str()),
        Some(key.environment.as_str()),
        Some(key.plan.as_str()),
        Some(&key.api),
        Some(&key.method),
        Some(&key.route),
        key.country.as_deref(),
    ]
}

impl SeriesIds {
    fn known(&self) -> MutexGuard<'_, HashMap<UsageKey, i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn clear(&self) {
        self.known().clear();
    }

    /// The numbers of these keys, given to those that have none. Outside of the batch's transaction, so that a new
    /// route makes nobody wait.
    pub(super) async fn of(
        &self,
        connection: &mut PgConnection,
        keys: impl IntoIterator<Item = &UsageKey>,
    ) -> Result<HashMap<UsageKey, i64>, sqlx::Error> {
        let mut ids = HashMap::new();
        let mut unknown = HashMap::new();
        {
            let known = self.known();
            for key in keys {
                match known.get(key) {
                    Some(id) => drop(ids.insert(key.clone(), *id)),
                    None => drop(unknown.insert(digest(key), key)),
                }
            }
        }
        if unknown.is_empty() {
            return Ok(ids);
        }
        let digests: Vec<Vec<u8>> = unknown.keys().cloned().collect();
        let column = |place: usize| -> Vec<Option<&str>> {
            let keys = unknown.values();
            keys.map(|key| columns(key).get(place).copied().flatten())
                .collect()
        };
        let mut insert = sqlx::query(INSERT).bind(&digests);
        for place in 0..7 {
            insert = insert.bind(column(place));
        }
        insert.execute(&mut *connection).await?;
        let found: Vec<(Vec<u8>, i64)> =
            sqlx::query_as("SELECT digest, id FROM tollgate.usage_series WHERE digest = ANY($1)")
                .bind(&digests)
                .fetch_all(&mut *connection)
                .await?;
        let mut known = self.known();
        if known.len() + found.len() > MAX_SERIES {
            known.clear();
        }
        for (digest, id) in found {
            if let Some(key) = unknown.get(&digest) {
                known.insert((*key).clone(), id);
                ids.insert((*key).clone(), id);
            }
        }
        Ok(ids)
    }
}
