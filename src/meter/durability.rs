use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::spool::Limits;
use crate::error::ConfigError;

/// What a usage event survives, from the end of its call to the sink's last word.
///
/// Whatever is chosen, a call pays the same: it pushes a pointer into the queue. The recorder's background task does
/// the rest on its [tick](super::RecorderBuilder::tick), so that an event is as durable as promised at most one tick
/// after its call has ended (and the time that one append takes). Until then a kill loses it. Who must know of an event
/// before it goes on waits for [`Recorder::persist`](super::Recorder::persist).
///
/// | | a sink that fails for hours | `kill -9` | loss of power | costs |
/// | --- | --- | --- | --- | --- |
/// | `Memory` | the queue, then the newest are dropped | the queue | the queue | nothing |
/// | `Spool` | nothing, up to [`SpoolDir::max_bytes`] | one tick | what the system has not written, about 30 s | a write per tick |
/// | `SpoolSync` | nothing, up to [`SpoolDir::max_bytes`] | one tick | one tick, where the disk honours a sync | a write and a sync per tick |
///
/// The [guide](crate::guide::metering) says what is lost and what is doubled.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Durability {
    /// Events wait in memory.
    #[default]
    Memory,
    /// Events are appended to files before they are offered to the sink.
    Spool(SpoolDir),
    /// Events are appended to files, which reach the disk before the events are offered to the sink: one sync for all
    /// events of a tick.
    SpoolSync(SpoolDir),
}

impl Durability {
    /// A spool in that directory, with the default bounds.
    pub fn spool(directory: impl Into<PathBuf>) -> Self {
        Self::Spool(SpoolDir::new(directory))
    }

    /// A spool in that directory that is synced, with the default bounds.
    pub fn spool_sync(directory: impl Into<PathBuf>) -> Self {
        Self::SpoolSync(SpoolDir::new(directory))
    }

    /// The directory and its bounds, where there is one.
    pub(super) fn files(&self) -> Result<Option<(&Path, Limits)>, ConfigError> {
        let (directory, sync) = match self {
            Self::Memory => return Ok(None),
            Self::Spool(directory) => (directory, false),
            Self::SpoolSync(directory) => (directory, true),
        };
        if directory.path.as_os_str().is_empty() {
            return Err(ConfigError::new(
                "durability",
                "the spool has no directory: name one that this recorder has for itself",
            ));
        }
        if directory.max_bytes < SpoolDir::LEAST_BYTES {
            return Err(ConfigError::new(
                "durability.max_bytes",
                "must be at least 32768 bytes: leave it at 1 GiB when in doubt",
            ));
        }
        if directory
            .max_age
            .is_some_and(|age| age < SpoolDir::LEAST_AGE)
        {
            return Err(ConfigError::new(
                "durability.max_age",
                "must be at least an hour, or not set",
            ));
        }
        let limits = Limits {
            max_bytes: directory.max_bytes,
            max_age: directory.max_age,
            sync,
        };
        Ok(Some((&directory.path, limits)))
    }
}

/// Where a spool keeps its files, and how much.
///
/// A directory belongs to one recorder at a time: a second one is refused at its start. It is made where it is missing,
/// and its files can be read by their owner only.
#[derive(Clone, Debug)]
#[must_use]
pub struct SpoolDir {
    path: PathBuf,
    max_bytes: u64,
    max_age: Option<Duration>,
}

impl SpoolDir {
    const LEAST_BYTES: u64 = 32 << 10;
    const LEAST_AGE: Duration = Duration::from_secs(3600);

    /// A spool in that directory; at most 1 GiB unless set, whatever its age.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            path: directory.into(),
            max_bytes: 1 << 30,
            max_age: None,
        }
    }

    /// How many bytes the segments may take; 1 GiB unless set, at least 32 KiB. An event takes about 500.
    ///
    /// What comes on top waits in memory, and is dropped and counted when the queue is full: the newest go, so that
    /// what was promised is kept.
    pub const fn max_bytes(mut self, n_bytes: u64) -> Self {
        self.max_bytes = n_bytes;
        self
    }

    /// For how long events may wait for a sink; without end unless set, at least an hour.
    ///
    /// Older ones are dropped by whole segments and counted. Set it where the sink refuses old events anyway. It is
    /// measured by the wall clock: a host whose clock jumps ahead drops what it should keep.
    pub const fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }
}
