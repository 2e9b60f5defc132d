//! What a failed exchange with Redis means for a charge.

use std::{io, sync::Arc};

use redis::{ErrorKind, RedisError};

/// Redis gave no usable answer to a command that changes something.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisFault {
    /// Nothing was changed: the command was not sent, or the server refused to run it.
    #[error("Redis did not run the command")]
    NotRun(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The command was sent and its answer did not come or could not be read: it may have been run. Measured,
    /// it mostly has been, so it is never repeated.
    #[error("Redis gave no readable answer, the command may have been run")]
    Unknown(#[source] Arc<dyn std::error::Error + Send + Sync>),
}

impl RedisFault {
    pub(crate) fn not_run(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::NotRun(Arc::from(error.into()))
    }

    pub(crate) fn unknown(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unknown(Arc::from(error.into()))
    }

    /// Whether the command may have been run.
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }

    /// Whether the server holds something else under a key than what belongs there.
    pub(crate) fn is_foreign_value(&self) -> bool {
        let (Self::NotRun(cause) | Self::Unknown(cause)) = self;
        let Some(error) = cause.downcast_ref::<RedisError>() else {
            return false;
        };
        // An older server tells a script's error in its text alone.
        let text = error.to_string();
        error.code() == Some("WRONGTYPE")
            || ["WRONGTYPE", "not an integer", "not a valid"]
                .iter()
                .any(|sign| text.contains(sign))
    }

    /// The meaning of an error for a command that was on its way.
    pub(crate) fn of(error: RedisError) -> Self {
        if was_answered(&error) || error.is_connection_refusal() {
            Self::not_run(error)
        } else {
            Self::unknown(error)
        }
    }

    /// A command that was sent and not answered in time.
    pub(crate) fn timed_out() -> Self {
        Self::unknown(io::Error::new(
            io::ErrorKind::TimedOut,
            "no answer within the response deadline",
        ))
    }
}

/// Whether the server itself said no. A script that it refuses has written nothing: all faults of a server
/// (LOADING, READONLY, OOM, NOSCRIPT, ...) come before a script's first write.
fn was_answered(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(_)
        | ErrorKind::Extension
        // What a client finds wrong before it sends anything.
        | ErrorKind::InvalidClientConfig
        | ErrorKind::AuthenticationFailed
        | ErrorKind::ClusterConnectionNotFound
        | ErrorKind::EmptySentinelList
        | ErrorKind::MasterNameNotFoundBySentinel
        | ErrorKind::NoValidReplicasFoundBySentinel => true,
        _ => false,
    }
}

/// Whether another connection has to be made: this one is broken, out of step, or leads to a server that cannot
/// take writes any more.
pub(crate) fn wants_another_connection(error: &RedisError) -> bool {
    error.is_unrecoverable_error()
        || matches!(error.code(), Some("READONLY" | "MASTERDOWN" | "NOAUTH"))
}
