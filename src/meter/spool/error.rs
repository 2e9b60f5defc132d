use std::{io, path::PathBuf};

use crate::error::ConfigError;

/// Why the spool does not take events, or cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpoolError {
    #[error("the spool directory cannot be written to")]
    Unwritable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the spool directory belongs to another recorder")]
    Locked { path: PathBuf },
    #[error("a file of the spool was written by a newer version")]
    Newer { path: PathBuf, version: u16 },
    #[error("the spool holds as much as it may")]
    Full,
    #[error("the disk is full")]
    NoSpace(#[source] io::Error),
    #[error("the spool cannot be written")]
    Io(#[source] io::Error),
    #[error("the spool is closed")]
    Closed,
}

impl SpoolError {
    pub(super) fn of(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace(error),
            _ => Self::Io(error),
        }
    }

    pub(super) fn at(path: &std::path::Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Unwritable {
            path: path.to_owned(),
            source,
        }
    }

    /// The same at start-up, with what to do.
    pub(crate) fn into_config_error(self) -> ConfigError {
        let reason = match &self {
            Self::Unwritable { path, source } => format!(
                "`{}` cannot be written ({source}): make room, let this process write to the directory, or name \
                 another",
                path.display()
            ),
            Self::Locked { path } => format!(
                "`{}` belongs to another recorder, in this process or another one: give each a directory of its \
                 own, or wait until the other has ended",
                path.display()
            ),
            Self::Newer { path, version } => format!(
                "`{}` has version {version}, which this version cannot read: run the newer one until the spool is \
                 empty, or move the file away",
                path.display()
            ),
            other => other.to_string(),
        };
        ConfigError::new("durability", reason).caused_by(self)
    }
}
