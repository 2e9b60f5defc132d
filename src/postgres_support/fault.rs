//! What a failure of PostgreSQL means to a store.

use std::time::Duration;

use sqlx::error::DatabaseError;

use crate::error::ConfigError;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A failure, by what the caller can do.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The value of a unique column exists already.
    Exists,
    /// The server takes no writes: it is a standby, or the session is read-only.
    ReadOnly(Cause),
    /// What the table holds cannot be read.
    Corrupt(Cause),
    /// No answer, or none that helps.
    Unavailable(Cause),
}

/// The tables are not there.
#[derive(Debug, thiserror::Error)]
#[error("the schema `tollgate` lacks a table or column: run `Postgres::migrate`")]
struct NotMigrated(#[source] sqlx::Error);

/// No answer came in time. What was sent may have been done.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
struct TooSlow(Duration);

impl Fault {
    pub(crate) fn corrupt(cause: impl Into<Cause>) -> Self {
        Self::Corrupt(cause.into())
    }
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        let code = error
            .as_database_error()
            .and_then(DatabaseError::code)
            .unwrap_or_default();
        match &*code {
            "23505" => Self::Exists,
            "25006" => Self::ReadOnly(error.into()),
            // A schema, a table or a column that is not there.
            "3F000" | "42P01" | "42703" => Self::Unavailable(NotMigrated(error).into()),
            _ => match error {
                sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                    Self::Corrupt(error.into())
                }
                _ => Self::Unavailable(error.into()),
            },
        }
    }
}

/// What the work answers within the deadline. A write that is late may have been done all the same.
pub(crate) async fn within<T>(
    deadline: Duration,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    tokio::time::timeout(deadline, work)
        .await
        .unwrap_or_else(|_| Err(Fault::Unavailable(TooSlow(deadline).into())))
}

/// The deadline that a store was given, unless it is none.
pub(crate) fn checked_deadline(deadline: Duration) -> Result<Duration, ConfigError> {
    if deadline.is_zero() {
        return Err(ConfigError::new(
            "deadline",
            "nothing is answered in no time: write 2 seconds or so",
        ));
    }
    Ok(deadline)
}
