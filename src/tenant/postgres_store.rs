use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::{Map, Value};
use sqlx::{Row, postgres::PgRow};

use super::{TenantListener, TenantRecord, TenantStore, TenantStoreError};
use crate::{
    error::ConfigError,
    id::TenantId,
    listeners::Listeners,
    postgres_support::{Fault, Hears, Postgres, PostgresStartError, Store},
};

/// The fields of a record that have a column; the others are one JSON value.
const COLUMNS: [&str; 4] = ["id", "plan", "access", "version"];
/// The fields that this version knows of the others: a replacement without one takes it away, and leaves what a later
/// version has written.
const KNOWN: [&str; 3] = ["billing_anchor", "pay_url", "route_hint"];
const CHANNEL: &str = "tollgate.tenants";

/// Tenants in the table `tollgate.tenants` of PostgreSQL, shared by all processes.
///
/// [`replace`](TenantStore::replace) is one statement that compares the version and sets it. Changes are pushed: each
/// store listens with one connection of its pool, from the first [`subscribe`](TenantStore::subscribe) on, so a
/// tenant that another process suspends is suspended here at once. A change made by hand in the table counts the
/// version and is heard too.
///
/// # Cancel safety
///
/// A look-up may be given up. A change that is given up, or is late, may have been made all the same: look, then
/// repeat it.
#[derive(Debug)]
pub struct PostgresTenantStore(Store<Changes>);

#[derive(Default)]
struct Changes(Listeners<dyn TenantListener>);

impl Changes {
    fn tell(&self, id: &TenantId) {
        self.0.tell(|listener| listener.tenant_changed(id));
    }
}

impl Hears for Changes {
    fn heard(&self, text: &str) {
        match TenantId::new(text) {
            Ok(id) => self.tell(&id),
            // No tenant of this version's: something has changed.
            Err(_) => self.lost(),
        }
    }

    fn lost(&self) {
        self.0.tell(|listener| listener.tenants_lost());
    }
}

impl PostgresTenantStore {
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
}

const BY_ID: &str = "SELECT id, plan, access, version, rest FROM tollgate.tenants WHERE id = $1";
const CREATE: &str =
    "INSERT INTO tollgate.tenants (id, plan, access, version, rest) VALUES ($1, $2, $3, 1, $4)";
const REPLACE: &str = "UPDATE tollgate.tenants
    SET plan = $2, access = $3, version = version + 1, rest = (rest - $6::text[]) || $4
    WHERE id = $1 AND version = $5
    RETURNING id, plan, access, version, rest";

/// A record's access and its fields without a column, as JSON.
fn json(record: &TenantRecord) -> Result<(Value, Value), Fault> {
    let access = serde_json::to_value(record.access).map_err(Fault::corrupt)?;
    let mut fields = serde_json::to_value(record).map_err(Fault::corrupt)?;
    if let Value::Object(fields) = &mut fields {
        fields.retain(|name, _| !COLUMNS.contains(&name.as_str()));
    }
    Ok((access, fields))
}

/// The record of a row. Fields that a later version of the crate has written are ignored, and kept in the table.
fn record(row: &PgRow) -> Result<Arc<TenantRecord>, Fault> {
    let mut fields: sqlx::types::Json<Map<String, Value>> = row.try_get("rest")?;
    for name in ["id", "plan"] {
        fields.insert(name.into(), row.try_get::<String, _>(name)?.into());
    }
    let version: i64 = row.try_get("version")?;
    fields.insert("version".into(), version.into());
    fields.insert("access".into(), row.try_get("access")?);
    let record = serde_json::from_value(Value::Object(fields.0)).map_err(Fault::corrupt)?;
    Ok(Arc::new(record))
}

#[async_trait]
impl TenantStore for PostgresTenantStore {
    async fn find(&self, id: &TenantId) -> Result<Option<Arc<TenantRecord>>, TenantStoreError> {
        let row = sqlx::query(BY_ID)
            .bind(id.as_ref())
            .fetch_optional(self.0.pool());
        let row = self.0.done(row).await?;
        Ok(row.as_ref().map(record).transpose()?)
    }

    async fn create(
        &self,
        mut record: TenantRecord,
    ) -> Result<Arc<TenantRecord>, TenantStoreError> {
        record.version = 1;
        let (access, rest) = json(&record)?;
        let insert = sqlx::query(CREATE)
            .bind(record.id.as_ref())
            .bind(record.plan.as_ref())
            .bind(access)
            .bind(rest)
            .execute(self.0.pool());
        self.0.done(insert).await?;
        self.0.changes.tell(&record.id);
        Ok(Arc::new(record))
    }

    async fn replace(&self, new: TenantRecord) -> Result<Arc<TenantRecord>, TenantStoreError> {
        let (access, rest) = json(&new)?;
        let replace = sqlx::query(REPLACE)
            .bind(new.id.as_ref())
            .bind(new.plan.as_ref())
            .bind(access)
            .bind(rest)
            // A version beyond the column's range is no row's.
            .bind(i64::try_from(new.version).unwrap_or(i64::MAX))
            .bind(KNOWN.map(String::from).to_vec())
            .fetch_optional(self.0.pool());
        let Some(row) = self.0.done(replace).await? else {
            return Err(match self.find(&new.id).await? {
                Some(_) => TenantStoreError::Conflict,
                None => TenantStoreError::NotFound,
            });
        };
        self.0.changes.tell(&new.id);
        Ok(record(&row)?)
    }

    fn subscribe(&self, listener: Weak<dyn TenantListener>) {
        self.0.changes.0.add(listener);
        self.0.listen(CHANNEL);
    }
}

impl From<Fault> for TenantStoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Exists => Self::AlreadyExists,
            Fault::Corrupt(cause) => Self::Corrupt(cause),
            Fault::ReadOnly(cause) | Fault::Unavailable(cause) => Self::Unavailable(cause),
        }
    }
}
