//! A connection that goes back to its pool only when its work is done.

use sqlx::{PgConnection, PgPool, Postgres, pool::PoolConnection};

/// A connection of a pool, for work that may be given up at any await.
///
/// sqlx takes a connection back in the middle of what a dropped future was doing. When that was the `BEGIN` of a
/// transaction, the next user works in a transaction that nobody knows of and nobody commits, whose locks hold up all
/// others for ever. So a connection whose work was not done is closed, and the server rolls back.
#[derive(Debug)]
pub(crate) struct Claimed {
    /// `None` once it went back.
    connection: Option<PoolConnection<Postgres>>,
}

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

    /// The work is done: the connection goes back.
    pub(crate) fn done(mut self) {
        drop(self.connection.take());
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(connection.detach());
        }
    }
}
