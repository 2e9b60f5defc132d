use std::borrow::Cow;

use sqlx::{PgPool, Postgres, Transaction};

use crate::{error::ConfigError, id::TenantId, postgres_support};

const SETTING: &str = "app.current_tenant";

/// Opens transactions that see one tenant's rows: PostgreSQL's row-level security, with the tenant set for the
/// transaction alone.
///
/// `SET` outlives a request: on a pooled connection the next one would see this tenant's rows. What
/// [`begin`](Self::begin) sets ends with the transaction, whether it is committed, rolled back or dropped with its
/// future or by a panic.
///
/// The table asks for the tenant by a policy:
///
/// ```sql
/// ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
/// ALTER TABLE orders FORCE ROW LEVEL SECURITY;
/// CREATE POLICY own ON orders USING (tenant = current_setting('app.current_tenant', true));
/// ```
///
/// A statement outside of such a transaction sees no row, as no tenant has an empty name.
///
/// ```no_run
/// use sqlx::PgPool;
/// use tollgate::tenant::{RowLevelSecurity, Tenant};
///
/// async fn orders(tenant: Tenant, pool: PgPool) -> Result<i64, sqlx::Error> {
///     let mut transaction = RowLevelSecurity::new().begin(&pool, tenant.id()).await?;
///     let (n,) = sqlx::query_as("SELECT count(*) FROM orders")
///         .fetch_one(&mut *transaction)
///         .await?;
///     transaction.commit().await?;
///     Ok(n)
/// }
/// ```
///
/// *Deployment*: the service's role must not be a superuser, nor have `BYPASSRLS`: policies do not hold for it. Nor do
/// they for the owner of a table without `FORCE ROW LEVEL SECURITY`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct RowLevelSecurity {
    setting: Cow<'static, str>,
}

impl RowLevelSecurity {
    /// Sets `app.current_tenant`.
    pub const fn new() -> Self {
        Self {
            setting: Cow::Borrowed(SETTING),
        }
    }

    /// Sets another setting than `app.current_tenant`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names `setting` when it is not two names of `a-z`, `0-9` and `_` with a point between: settings
    /// without one are PostgreSQL's own.
    pub fn setting(mut self, name: impl Into<Cow<'static, str>>) -> Result<Self, ConfigError> {
        let name = name.into();
        let is_name = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
                && part
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        let valid = name
            .split_once('.')
            .is_some_and(|(class, rest)| is_name(class) && is_name(rest));
        if !valid {
            return Err(ConfigError::new(
                "setting",
                "write two names of a-z, 0-9 and _ with a point between, such as app.current_tenant",
            ));
        }
        self.setting = name;
        Ok(self)
    }

    /// A transaction of the pool that sees the tenant's rows.
    ///
    /// # Errors
    ///
    /// Those of the pool and the server. No transaction is left open then.
    ///
    /// # Cancel safety
    ///
    /// A future or a transaction that is dropped rolls back, and the connection's next user finds no tenant.
    pub async fn begin(
        &self,
        pool: &PgPool,
        tenant: &TenantId,
    ) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        let mut transaction = postgres_support::begin(pool).await?;
        self.apply(&mut transaction, tenant).await?;
        Ok(transaction)
    }

    /// Sets the tenant for the rest of a transaction that was begun by other means, for example with an isolation
    /// level. A tenant that was set before gives way.
    ///
    /// # Errors
    ///
    /// Those of the server.
    pub async fn apply(
        &self,
        transaction: &mut Transaction<'_, Postgres>,
        tenant: &TenantId,
    ) -> Result<(), sqlx::Error> {
        sqlx::query("SELECT set_config($1, $2, true)")
            .bind(&*self.setting)
            .bind(tenant.as_ref())
            .execute(&mut **transaction)
            .await?;
        Ok(())
    }
}

impl Default for RowLevelSecurity {
    fn default() -> Self {
        Self::new()
    }
}
