//! Work on a connection that may be given up at any await.

#[cfg(feature = "usage")]
use sqlx::{Connection, PgConnection, pool::PoolConnection};
use sqlx::{PgPool, Postgres, Transaction};

/// Whatever the database's default is: a statement that waits for a lock has to see what was done meanwhile.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// Begins a transaction that rolls back wherever its user is dropped.
///
/// The `BEGIN` runs in a task of its own: dropped in the middle of it, sqlx would give the connection back with a
/// transaction that nobody knows of.
pub(crate) async fn begin(pool: &PgPool) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    let pool = pool.clone();
    let beginning = tokio::spawn(async move { pool.begin_with(BEGIN).await });
    // The task ends early only with its runtime.
    beginning.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
}

/// A connection of a pool, for work that may be given up at any await.
///
/// sqlx takes a connection back in the middle of what a dropped future was doing. When that was the `BEGIN` of a
/// transaction, the next user works in a transaction that nobody knows of and nobody commits, whose locks hold up all
/// others for ever. So a connection whose work was not done is closed, and the server rolls back.
#[cfg(feature = "usage")]
#[derive(Debug)]
pub(crate) struct Claimed {
    /// `None` once it went back.
    connection: Option<PoolConnection<Postgres>>,
}

#[cfg(feature = "usage")]
impl Claimed {
    pub(crate) async fn from(pool: &PgPool) -> Result<Self, sqlx::Error> {
        Ok(Self {
            connection: Some(pool.acquire().await?),
        })
    }

    pub(crate) fn connection(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        // It is there until `done`.
        self.connection
            .as_deref_mut()
            .ok_or(sqlx::Error::PoolClosed)
    }

    pub(crate) async fn begin(&mut self) -> Result<Transaction<'_, Postgres>, sqlx::Error> {
        self.connection()?.begin_with(BEGIN).await
    }

    /// The work is done: the connection goes back.
    pub(crate) fn done(mut self) {
        drop(self.connection.take());
    }
}

#[cfg(feature = "usage")]
impl Drop for Claimed {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(connection.detach());
        }
    }
}
