//! Files that are replaced as a whole: whoever reads one finds the old content or the new, never a part.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

/// The file of the same name with `suffix` after it, in the same directory.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(suffix);
    name.into()
}

/// Writes `bytes` to a new file, brings it to the disk and gives it the name `path`. What had that name gets the
/// name `previous` where one is given.
///
/// A process killed at any point leaves the old file or the new one under `path` or, between two renames, the old
/// one under `previous`.
pub(crate) fn replace(path: &Path, bytes: &[u8], previous: Option<&Path>) -> io::Result<()> {
    let new = beside(path, ".new");
    let written = write_whole(&new, bytes, path);
    if written.is_err() {
        // A disk that is full should not hold half of a file as well.
        let _ = fs::remove_file(&new);
    }
    written?;
    if let Some(previous) = previous {
        match fs::rename(path, previous) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(&new, path)?;
    sync_directory(path)
}

fn write_whole(new: &Path, bytes: &[u8], path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    // Who calls how much, and digests of keys, are nobody else's business.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(new)?;
    file.write_all(bytes)?;
    if let Ok(known) = fs::metadata(path) {
        file.set_permissions(known.permissions())?;
    }
    file.sync_all()
}

/// A new name is on the disk when its directory is.
#[cfg(unix)]
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(directory(path))?.sync_all()
}

/// Elsewhere a directory cannot be opened; a rename is kept by the file system's own journal.
#[cfg(not(unix))]
pub(crate) fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

/// The directory that a file stands in.
pub(crate) fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The whole content of a file of at most `max` bytes; `None` when it is longer.
pub(crate) fn read_at_most(path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(max.saturating_add(1))
        .read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= max).then_some(bytes))
}
