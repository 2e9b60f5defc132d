use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::{Map, Value};
use sqlx::{Row, postgres::PgRow};

use super::{KeyDigest, KeyListener, KeyRecord, KeyStore, KeyStoreError, KeyUse};
use crate::{
    clock::Timestamp,
    error::ConfigError,
    id::{KeyId, TenantId},
    listeners::Listeners,
    postgres_support::{Fault, Hears, PgMicros, Postgres, PostgresStartError, Store},
};

/// The fields of a record that have a column; the others are one JSON value.
const COLUMNS: [&str; 6] = [
    "id",
    "tenant",
    "created_at",
    "expires_at",
    "revoked_at",
    "version",
];
const CHANNEL: &str = "tollgate.keys";

/// Keys in the table `tollgate.keys` of PostgreSQL, shared by all processes.
///
/// Each change is one statement, so it is made whole or not at all. Changes are pushed: each store listens with one
/// connection of its pool, from the first [`subscribe`](KeyStore::subscribe) on, and a key that is revoked by
/// another process, or by hand in the table, stops working here at once. While that connection is lost, caches serve
/// what they hold until its lifetime ends; once it is back they forget everything.
///
/// ```no_run
/// use tollgate::{Tollgate, auth::PostgresKeyStore, postgres_support::Postgres};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let postgres = Postgres::connect("postgres://api:s3cret@db.internal/api").await?;
/// postgres.migrate().await?;
/// let gate = Tollgate::builder().keys(PostgresKeyStore::new(&postgres)).build()?;
/// # Ok(())
/// # }
/// ```
///
/// # Cancel safety
///
/// A look-up may be given up. A change that is given up, or is late, may have been made all the same: look, then
/// repeat it.
#[derive(Debug)]
pub struct PostgresKeyStore(Store<Changes>);

#[derive(Default)]
struct Changes(Listeners<dyn KeyListener>);

impl Changes {
    fn tell(&self, digest: &KeyDigest, version: u64) {
        self.0
            .tell(|listener| listener.key_changed(digest, version));
    }
}

impl Hears for Changes {
    fn heard(&self, text: &str) {
        let change = text.split_once(':').and_then(|(digest, version)| {
            Some((KeyDigest::from_hex(digest)?, version.parse().ok()?))
        });
        match change {
            Some((digest, version)) => self.tell(&digest, version),
            // Not of this version's form: something has changed.
            None => self.lost(),
        }
    }

    fn lost(&self) {
        self.0.tell(|listener| listener.keys_lost());
    }
}

impl PostgresKeyStore {
    /// A store in the schema of `postgres`, which must have been [migrated](Postgres::migrate).
    #[must_use]
    pub fn new(postgres: &Postgres) -> Self {
        Self(Store::new(postgres))
    }

    /// A store with a pool of its own. The schema must have been [migrated](Postgres::migrate) before the first call.
    ///
    /// # Errors
    ///
    /// As [`Postgres::connect`].
    pub async fn connect(url: impl AsRef<str>) -> Result<Self, PostgresStartError> {
        Ok(Self::new(&Postgres::connect(url).await?))
    }

    /// How long a call may take, the wait for a connection included; 2 seconds unless set. A gate's own deadline for
    /// look-ups, `store_deadline`, is shorter.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names `deadline` when it is zero.
    pub fn deadline(self, deadline: Duration) -> Result<Self, ConfigError> {
        self.0.deadline(deadline).map(Self)
    }

    /// The rows of a statement that takes a name.
    async fn rows(&self, sql: &str, bind: &str) -> Result<Vec<PgRow>, Fault> {
        let rows = sqlx::query(sql).bind(bind).fetch_all(self.0.pool());
        self.0.done(rows).await
    }

    async fn of_id(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, Fault> {
        let rows = self.rows(BY_ID, id.as_ref()).await?;
        rows.first().map(record).transpose()
    }
}

const BY_DIGEST: &str =
    "SELECT digest, id, tenant, created_at, expires_at, revoked_at, version, rest
    FROM tollgate.keys WHERE digest = $1";
const BY_ID: &str = "SELECT digest, id, tenant, created_at, expires_at, revoked_at, version, rest
    FROM tollgate.keys WHERE id = $1";
const OF_TENANT: &str =
    "SELECT digest, id, tenant, created_at, expires_at, revoked_at, version, rest
    FROM tollgate.keys WHERE tenant = $1 ORDER BY created_at, id";
const CREATE: &str = "INSERT INTO tollgate.keys
    (digest, id, tenant, created_at, expires_at, revoked_at, version, rest)
    VALUES ($1, $2, $3, $4, $5, $6, 1, $7)";
/// The successor is added for the row that was changed: for none, when the old key cannot be rotated. A digest or id
/// that exists fails the whole statement.
const ROTATE: &str = "WITH old AS (
        UPDATE tollgate.keys SET expires_at = LEAST(expires_at, $8), version = version + 1
        WHERE id = $9 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $10)
        RETURNING digest, version
    ), new AS (
        INSERT INTO tollgate.keys (digest, id, tenant, created_at, expires_at, revoked_at, version, rest)
        SELECT $1, $2, $3, $4, $5, $6, 1, $7 FROM old
    )
    SELECT digest, version FROM old";
const REVOKE: &str = "UPDATE tollgate.keys SET revoked_at = $2, version = version + 1
    WHERE id = $1 AND revoked_at IS NULL
    RETURNING digest, id, tenant, created_at, expires_at, revoked_at, version, rest";
/// Rows are locked in their order, so that two processes cannot wait for each other.
const TOUCH: &str = "WITH uses AS (
        SELECT digest, max(at) AS at FROM unnest($1::bytea[], $2::timestamptz[]) AS it (digest, at) GROUP BY digest
    ), found AS (
        SELECT digest, uses.at FROM tollgate.keys JOIN uses USING (digest)
        WHERE last_used_at IS NULL OR last_used_at < uses.at
        ORDER BY digest FOR NO KEY UPDATE OF keys
    )
    UPDATE tollgate.keys SET last_used_at = GREATEST(last_used_at, found.at)
    FROM found WHERE keys.digest = found.digest";
const LAST_USED: &str =
    "SELECT id, last_used_at FROM tollgate.keys WHERE tenant = $1 AND last_used_at IS NOT NULL";

/// The JSON of a record without what has a column.
fn rest(record: &KeyRecord) -> Result<Value, Fault> {
    let mut fields = serde_json::to_value(record).map_err(Fault::corrupt)?;
    if let Value::Object(fields) = &mut fields {
        fields.retain(|name, _| !COLUMNS.contains(&name.as_str()));
    }
    Ok(fields)
}

/// The record of a row. Fields that a later version of the crate has written are ignored, and kept in the table.
fn record(row: &PgRow) -> Result<Arc<KeyRecord>, Fault> {
    let mut fields: sqlx::types::Json<Map<String, Value>> = row.try_get("rest")?;
    let version: i64 = row.try_get("version")?;
    let created_at: PgMicros = row.try_get("created_at")?;
    fields.insert("id".into(), row.try_get::<String, _>("id")?.into());
    fields.insert("tenant".into(), row.try_get::<String, _>("tenant")?.into());
    fields.insert("version".into(), version.into());
    fields.insert("created_at".into(), created_at.0.to_string().into());
    for name in ["expires_at", "revoked_at"] {
        let time: Option<PgMicros> = row.try_get(name)?;
        fields.remove(name);
        if let Some(time) = time {
            fields.insert(name.into(), time.0.to_string().into());
        }
    }
    let record = serde_json::from_value(Value::Object(fields.0)).map_err(Fault::corrupt)?;
    Ok(Arc::new(record))
}

fn digest_of(row: &PgRow) -> Result<KeyDigest, Fault> {
    let bytes: Vec<u8> = row.try_get("digest")?;
    let bytes = bytes.try_into().map_err(|_| Fault::corrupt(NotADigest))?;
    Ok(KeyDigest::from_bytes(bytes))
}

#[derive(Debug, thiserror::Error)]
#[error("a digest has 32 bytes")]
struct NotADigest;

/// A statement with the columns of a new record as its first seven parameters.
fn with_record<'q>(
    sql: &'q str,
    digest: &'q KeyDigest,
    record: &'q KeyRecord,
) -> Result<sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>, Fault> {
    Ok(sqlx::query(sql)
        .bind(digest.as_bytes().as_slice())
        .bind(record.id.as_ref())
        .bind(record.tenant.as_ref())
        .bind(PgMicros(record.created_at))
        .bind(record.expires_at.map(PgMicros))
        .bind(record.revoked_at.map(PgMicros))
        .bind(rest(record)?))
}

#[async_trait]
impl KeyStore for PostgresKeyStore {
    async fn find(&self, digest: &KeyDigest) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
        let row = sqlx::query(BY_DIGEST)
            .bind(digest.as_bytes().as_slice())
            .fetch_optional(self.0.pool());
        let row = self.0.done(row).await?;
        Ok(row.as_ref().map(record).transpose()?)
    }

    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
        Ok(self.of_id(id).await?)
    }

    async fn list(&self, tenant: &TenantId) -> Result<Vec<Arc<KeyRecord>>, KeyStoreError> {
        let rows = self.rows(OF_TENANT, tenant.as_ref()).await?;
        Ok(rows.iter().map(record).collect::<Result<_, _>>()?)
    }

    async fn create(
        &self,
        digest: KeyDigest,
        mut record: KeyRecord,
    ) -> Result<Arc<KeyRecord>, KeyStoreError> {
        record.version = 1;
        let insert = with_record(CREATE, &digest, &record)?.execute(self.0.pool());
        self.0.done(insert).await?;
        self.0.changes.tell(&digest, record.version);
        Ok(Arc::new(record))
    }

    async fn rotate(
        &self,
        old: &KeyId,
        old_expires_at: Timestamp,
        digest: KeyDigest,
        mut record: KeyRecord,
        now: Timestamp,
    ) -> Result<Arc<KeyRecord>, KeyStoreError> {
        record.version = 1;
        let rotate = with_record(ROTATE, &digest, &record)?
            .bind(PgMicros(old_expires_at))
            .bind(old.as_ref())
            .bind(PgMicros(now))
            .fetch_optional(self.0.pool());
        let changed = self.0.done(rotate).await?;
        let Some(changed) = changed else {
            return Err(match self.of_id(old).await? {
                Some(_) => KeyStoreError::NotUsable,
                None => KeyStoreError::NotFound,
            });
        };
        let version: i64 = changed.try_get("version").map_err(Fault::from)?;
        self.0
            .changes
            .tell(&digest_of(&changed)?, version.unsigned_abs());
        self.0.changes.tell(&digest, record.version);
        Ok(Arc::new(record))
    }

    async fn revoke(&self, id: &KeyId, at: Timestamp) -> Result<Arc<KeyRecord>, KeyStoreError> {
        let revoke = sqlx::query(REVOKE)
            .bind(id.as_ref())
            .bind(PgMicros(at))
            .fetch_optional(self.0.pool());
        let Some(row) = self.0.done(revoke).await? else {
            // Revoked before, or never there.
            return self.of_id(id).await?.ok_or(KeyStoreError::NotFound);
        };
        let record = record(&row)?;
        self.0.changes.tell(&digest_of(&row)?, record.version);
        Ok(record)
    }

    async fn touch(&self, uses: &[KeyUse]) -> Result<(), KeyStoreError> {
        let digests: Vec<&[u8]> = uses
            .iter()
            .map(|used| used.digest.as_bytes().as_slice())
            .collect();
        let times: Vec<_> = uses.iter().map(|used| PgMicros(used.at)).collect();
        let touch = sqlx::query(TOUCH)
            .bind(digests)
            .bind(times)
            .execute(self.0.pool());
        self.0.done(touch).await?;
        Ok(())
    }

    async fn last_used(
        &self,
        tenant: &TenantId,
    ) -> Result<HashMap<KeyId, Timestamp>, KeyStoreError> {
        let rows = self.rows(LAST_USED, tenant.as_ref()).await?;
        let used = rows.iter().map(|row| {
            let id = KeyId::new(row.try_get::<String, _>("id")?).map_err(Fault::corrupt)?;
            let at: PgMicros = row.try_get("last_used_at")?;
            Ok((id, at.0))
        });
        Ok(used.collect::<Result<_, Fault>>()?)
    }

    fn subscribe(&self, listener: Weak<dyn KeyListener>) {
        self.0.changes.0.add(listener);
        self.0.listen(CHANNEL);
    }
}

impl From<Fault> for KeyStoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Exists => Self::AlreadyExists,
            Fault::ReadOnly(cause) => {
                tracing::warn!(%cause, "the server of the keys takes no changes");
                Self::ReadOnly
            }
            Fault::Corrupt(cause) => Self::Corrupt(cause),
            Fault::Unavailable(cause) => Self::Unavailable(cause),
        }
    }
}
