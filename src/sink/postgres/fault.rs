//! What an error of PostgreSQL means to a batch.

use sqlx::error::DatabaseError;

use crate::sink::SinkError;

/// The tables are not there.
#[derive(Debug, thiserror::Error)]
#[error("the schema `tollgate` lacks a table or column: run `Postgres::migrate`")]
struct NotMigrated(#[source] sqlx::Error);

fn code(error: &sqlx::Error) -> String {
    let database = error.as_database_error().and_then(DatabaseError::code);
    database.map(String::from).unwrap_or_default()
}

/// Whether the server refuses what an event holds, so that the rest may be written without it: data that it cannot
/// read, a constraint, a limit of its own.
pub(super) fn is_about_data(error: &sqlx::Error) -> bool {
    let code = code(error);
    code.starts_with("22") || code == "54000"
}

/// Whether what this process remembers of the database is wrong: a partition or a series that is not there any more.
pub(super) fn is_about_memory(error: &sqlx::Error) -> bool {
    matches!(&*code(error), "23503" | "23514")
}

/// Whether a function of the schema refused.
pub(super) fn is_refusal(error: &sqlx::Error) -> bool {
    code(error) == "P0001"
}

/// The whole batch is offered again.
pub(crate) fn unavailable(error: sqlx::Error) -> SinkError {
    match &*code(&error) {
        "3F000" | "42P01" | "42703" | "42883" => SinkError::unavailable(NotMigrated(error)),
        _ => SinkError::unavailable(error),
    }
}
