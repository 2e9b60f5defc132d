//! The two generations of a snapshot on the disk, and the lock that keeps other processes away.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use super::format::{Content, Damage, MAX_FILE_BYTES, decode};
use crate::{
    disk::{self, beside},
    error::ConfigError,
};

/// Why a file gave no counts.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("there is no such file")]
    Absent,
    #[error("the file cannot be read")]
    Io(#[source] io::Error),
    #[error("the file is longer than 256 MiB")]
    TooLarge,
    #[error(transparent)]
    Damaged(#[from] Damage),
}

/// What the disk holds.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing yet.
    Nothing,
    /// The file that was written last.
    Current(Content),
    /// The file before it, and why not the last.
    Previous(Content, Unreadable),
    /// Two files or one, none of which can be read; why not the last.
    Damaged(Unreadable),
}

/// The files of one snapshot. The lock is given back when this is dropped, or the process ends.
#[derive(Debug)]
pub(super) struct Files {
    current: PathBuf,
    previous: PathBuf,
    /// The newest file could not be read, and still stands in its place.
    current_is_damaged: bool,
    _lock: File,
}

impl Files {
    /// Takes the lock and looks whether the directory can be written to.
    pub(super) fn open(path: &Path) -> Result<Self, ConfigError> {
        let lock_path = beside(path, ".lock");
        let unwritable = |source: io::Error| {
            let directory = disk::directory(path).display();
            let reason = format!(
                "no file can be made in `{directory}` ({source}): make the directory and let this process write \
                 to it, or name another"
            );
            ConfigError::new("quota_snapshot", reason).caused_by(source)
        };
        if path.file_name().is_none() || path.is_dir() {
            let reason = format!("`{}` names no file: add a name", path.display());
            return Err(ConfigError::new("quota_snapshot", reason));
        }
        let mut options = OpenOptions::new();
        // The file stays: whoever removed it while another process waits for it would let a third one in.
        let lock = options.write(true).create(true).truncate(false);
        let lock = lock.open(&lock_path).map_err(unwritable)?;
        fs4::FileExt::try_lock(&lock).map_err(|error| match error {
            fs4::TryLockError::WouldBlock => {
                let reason = format!(
                    "`{}` belongs to another gate, in this process or another one: give each a file of its own, \
                     or wait until the other has ended",
                    path.display()
                );
                ConfigError::new("quota_snapshot", reason)
            }
            fs4::TryLockError::Error(source) => {
                let reason = format!("`{}` cannot be locked ({source})", lock_path.display());
                ConfigError::new("quota_snapshot", reason).caused_by(source)
            }
        })?;
        // A lock of an earlier run may stand in a directory that has become read-only.
        let probe = beside(path, ".new");
        File::create(&probe).map_err(unwritable)?;
        fs::remove_file(&probe).map_err(unwritable)?;
        Ok(Self {
            current: path.to_owned(),
            previous: beside(path, ".previous"),
            current_is_damaged: false,
            _lock: lock,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.current
    }

    /// Reads the newest file that is whole.
    pub(super) fn read(&mut self) -> Found {
        let unreadable = match read(&self.current) {
            Ok(content) => return Found::Current(content),
            Err(unreadable) => unreadable,
        };
        self.current_is_damaged = !matches!(unreadable, Unreadable::Absent);
        match (read(&self.previous), unreadable) {
            (Ok(content), unreadable) => Found::Previous(content, unreadable),
            (Err(Unreadable::Absent), Unreadable::Absent) => Found::Nothing,
            (Err(older), Unreadable::Absent) => Found::Damaged(older),
            (Err(_), unreadable) => Found::Damaged(unreadable),
        }
    }

    /// Makes `bytes` the newest file, and the newest one until now the previous. One that could not be read is put
    /// aside instead, so that it does not take the place of the good one before.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let aside = self
            .current_is_damaged
            .then(|| beside(&self.current, ".damaged"));
        let previous = aside.as_ref().unwrap_or(&self.previous);
        disk::replace(&self.current, bytes, Some(previous))?;
        self.current_is_damaged = false;
        Ok(())
    }
}

fn read(path: &Path) -> Result<Content, Unreadable> {
    match disk::read_at_most(path, MAX_FILE_BYTES) {
        Ok(Some(bytes)) => Ok(decode(&bytes)?),
        Ok(None) => Err(Unreadable::TooLarge),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Unreadable::Absent),
        Err(error) => Err(Unreadable::Io(error)),
    }
}
