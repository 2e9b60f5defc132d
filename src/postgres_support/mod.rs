//! What everything in PostgreSQL shares: a pool, and the schema `tollgate` with its migrations.
//!
//! 1. [`Postgres`] is a handle to a pool: one that it makes, or one that the service has already.
//! 2. [`Postgres::migrate`] brings the schema `tollgate` to this version of the crate. It may be run by every process
//!    at its start: one does the work and the others wait. Without it, whoever runs migrations applies
//!    [`Postgres::ddl`].
//! 3. Stores and sinks made from it use tables of that schema only, under their full names: no `search_path` is
//!    needed, and a table of yours is never touched.
//!
//! ```no_run
//! use tollgate::postgres_support::Postgres;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let postgres = Postgres::connect("postgres://api:s3cret@db.internal/api").await?;
//! postgres.migrate().await?;
//! # Ok(())
//! # }
//! ```
//!
//! *Deployment*: PostgreSQL 13 or newer. Migrations need the right to create a schema; afterwards a role with
//! `USAGE` on it and `SELECT`, `INSERT` and `UPDATE` on its tables suffices.

mod claimed;
mod fault;
mod migrations;
mod push;
mod store;
mod time;

use std::{fmt, str::FromStr, time::Duration};

use sqlx::{
    Executor, PgConnection, PgPool,
    migrate::{MigrateError, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
};

#[cfg(feature = "usage")]
pub(crate) use self::claimed::Claimed;
pub(crate) use self::{
    claimed::begin,
    fault::{Fault, checked_deadline, within},
    push::{Hears, Push},
    store::Store,
    time::PgMicros,
};
use crate::error::ConfigError;

const LEAST_VERSION: i32 = 130_000;
/// How long a statement waits for a connection of the pool.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Any number: the lock that processes which migrate at once take, one after the other.
const MIGRATION_LOCK: i64 = 0x746f_6c6c_6761_7465;

/// PostgreSQL cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostgresStartError {
    /// A setting cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No connection could be made, or the server refused the user.
    #[error("PostgreSQL cannot be reached")]
    Connect(#[source] sqlx::Error),
    /// The server lacks what is needed.
    #[error("PostgreSQL {version} is too old: 13 is the oldest version that works")]
    TooOld {
        /// The server's version.
        version: String,
    },
    /// The schema lacks tables that are needed.
    #[error(
        "the schema `tollgate` is at migration {found} and {needed} is needed: run `Postgres::migrate`"
    )]
    SchemaTooOld {
        /// The last migration that was applied; 0 where there is none.
        found: i64,
        /// The first that suffices.
        needed: i64,
    },
    /// A newer version of the crate has migrated the schema.
    #[error(
        "the schema `tollgate` is at migration {found} and this version of the crate knows {known}: use the newer version"
    )]
    SchemaTooNew {
        /// The last migration that was applied.
        found: i64,
        /// The last that this version knows.
        known: i64,
    },
    /// The schema could not be brought to this version, or is newer than it.
    #[error("the schema `tollgate` could not be migrated")]
    Migrate(#[source] MigrateError),
}

/// A pool of connections to one database, with the schema `tollgate` in it.
///
/// Cloning gives another handle to the same pool. Passwords show neither in `Debug` nor in errors.
#[derive(Clone)]
pub struct Postgres {
    pool: PgPool,
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres")
            .field("connections", &self.pool.size())
            .finish_non_exhaustive()
    }
}

impl Postgres {
    /// Connects with a pool of at most ten connections, and checks the server.
    ///
    /// A URL is `postgres://[user[:password]@]host[:port]/database`, with `?sslmode=require` and the like after it.
    ///
    /// # Errors
    ///
    /// [`PostgresStartError`] when the URL cannot be read, or the server cannot be reached or used.
    pub async fn connect(url: impl AsRef<str>) -> Result<Self, PostgresStartError> {
        // The text of an error about a URL may hold the URL, and so a password: it is left out.
        let options = PgConnectOptions::from_str(url.as_ref()).map_err(|_| {
            ConfigError::new(
                "url",
                "this is not a PostgreSQL URL: write postgres://user:password@host:port/database",
            )
        })?;
        let pool = PgPoolOptions::new()
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options)
            .await
            .map_err(PostgresStartError::Connect)?;
        let postgres = Self::from_pool(pool);
        postgres.check().await?;
        Ok(postgres)
    }

    /// Takes a pool that the service has already, unchecked.
    #[must_use]
    pub const fn from_pool(pool: PgPool) -> Self {
        Self { pool }
    }

    /// The pool.
    #[must_use]
    pub const fn pool(&self) -> &PgPool {
        &self.pool
    }

    async fn check(&self) -> Result<(), PostgresStartError> {
        let (number, version): (i32, String) = sqlx::query_as(
            "SELECT current_setting('server_version_num')::int, current_setting('server_version')",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(PostgresStartError::Connect)?;
        if number < LEAST_VERSION {
            return Err(PostgresStartError::TooOld { version });
        }
        Ok(())
    }

    /// Brings the schema `tollgate` to this version of the crate, making it where it is missing.
    ///
    /// What was applied is noted in `tollgate._sqlx_migrations`, apart from migrations of your own. Each migration is
    /// applied whole or not at all.
    ///
    /// # Errors
    ///
    /// [`PostgresStartError::Migrate`] when a migration fails, was changed after it was applied, or is unknown to this
    /// version of the crate because a newer one has applied it.
    pub async fn migrate(&self) -> Result<(), PostgresStartError> {
        let connect = PostgresStartError::Connect;
        // A connection of its own, which does not go back to the pool: it has another search path.
        let connection = self.pool.acquire().await.map_err(connect)?.detach();
        migrate(connection).await
    }

    /// Checks that the schema has a migration and none that is unknown. Where somebody applies the statements by other
    /// means, a table of the migration stands for it.
    #[cfg(feature = "usage")]
    pub(crate) async fn require(&self, needed: i64, table: &str) -> Result<(), PostgresStartError> {
        let connect = PostgresStartError::Connect;
        let (is_noted, is_there): (bool, bool) = sqlx::query_as(
            "SELECT to_regclass('tollgate._sqlx_migrations') IS NOT NULL, to_regclass($1) IS NOT NULL",
        )
        .bind(table)
        .fetch_one(&self.pool)
        .await
        .map_err(connect)?;
        let mut found = if is_there { needed } else { 0 };
        if is_noted {
            (found,) = sqlx::query_as(
                "SELECT coalesce(max(version), 0) FROM tollgate._sqlx_migrations WHERE success",
            )
            .fetch_one(&self.pool)
            .await
            .map_err(connect)?;
        }
        let known = migrations::last();
        if !is_there || found < needed {
            Err(PostgresStartError::SchemaTooOld { found, needed })
        } else if found > known {
            Err(PostgresStartError::SchemaTooNew { found, known })
        } else {
            Ok(())
        }
    }

    /// The statements of all migrations in their order, for whoever applies them by other means.
    #[must_use]
    pub fn ddl() -> String {
        migrations::all().iter().fold(
            "CREATE SCHEMA tollgate;\nSET search_path TO tollgate;\n".to_owned(),
            |ddl, each| ddl + "\n" + &each.sql,
        )
    }
}

async fn migrate(mut connection: PgConnection) -> Result<(), PostgresStartError> {
    let connect = PostgresStartError::Connect;
    sqlx::query("SELECT pg_advisory_lock($1)")
        .bind(MIGRATION_LOCK)
        .execute(&mut connection)
        .await
        .map_err(connect)?;
    connection
        .execute("CREATE SCHEMA IF NOT EXISTS tollgate; SET search_path TO tollgate")
        .await
        .map_err(connect)?;
    let mut migrator = Migrator::new(migrations::Embedded)
        .await
        .map_err(PostgresStartError::Migrate)?;
    // The lock is held already, and sqlx's own is that of all schemas of the database.
    migrator.set_locking(false);
    let migrated = migrator.run_direct(&mut connection).await;
    // Ends the lock too. What was done is done, however the goodbye ends.
    let _ = sqlx::Connection::close(connection).await;
    migrated.map_err(PostgresStartError::Migrate)
}
