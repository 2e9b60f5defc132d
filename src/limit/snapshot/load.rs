//! What a snapshot does with its files at the start.

use std::path::Path;

use super::{
    file::{Files, Found, Unreadable},
    format::Content,
};
use crate::{
    clock::{Clock, Timestamp},
    error::ConfigError,
    limit::memory::MemoryLimits,
};

/// What [`QuotaSnapshot`](super::QuotaSnapshot) does at its start when neither file can be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnDamage {
    /// All quotas begin at zero; an error in the log and the counter
    /// `tollgate_quota_snapshot_loads_total{result="damaged"}` say so.
    #[default]
    BeginAtZero,
    /// The start fails with a [`ConfigError`] that says what is wrong with the file.
    Refuse,
}

/// Where the counts at the start came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadedFrom {
    /// The file that was written last.
    Current,
    /// The file before it, since the last one is damaged or its write was not finished.
    Previous,
    /// No file: the first start.
    Nothing,
    /// No file that could be read; quotas begin at zero.
    Damaged,
}

/// What a [`QuotaSnapshot`](super::QuotaSnapshot) found at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotLoad {
    /// The file.
    pub from: LoadedFrom,
    /// When it was written.
    pub written_at: Option<Timestamp>,
    /// Quotas that go on from what was used.
    pub n_restored: u64,
    /// Quotas whose period has ended since.
    pub n_over: u64,
    /// Quotas for which the store had no room.
    pub n_left_out: u64,
}

/// Lets the quotas go on from what the files say.
pub(super) fn load(
    files: &mut Files,
    limits: &MemoryLimits,
    clock: &dyn Clock,
    on_damage: OnDamage,
) -> Result<SnapshotLoad, ConfigError> {
    let (from, content, result) = match files.read() {
        Found::Nothing => (LoadedFrom::Nothing, None, "nothing"),
        Found::Current(content) => (LoadedFrom::Current, Some(content), "current"),
        Found::Previous(content, Unreadable::Absent) => {
            // A kill between the two renames of a write.
            (LoadedFrom::Previous, Some(content), "previous")
        }
        Found::Previous(content, reason) => {
            tell_damage(files.path(), &reason, "the file before it is read");
            (LoadedFrom::Previous, Some(content), "previous")
        }
        Found::Damaged(reason) if on_damage == OnDamage::Refuse => {
            let text = format!(
                "`{}` cannot be read ({reason}): restore it from a copy, or remove it and `.previous` beside it to \
                 begin at zero",
                files.path().display()
            );
            return Err(ConfigError::new("quota_snapshot", text).caused_by(reason));
        }
        Found::Damaged(reason) => {
            tell_damage(files.path(), &reason, "all quotas begin at zero");
            (LoadedFrom::Damaged, None, "damaged")
        }
    };
    metrics::counter!("tollgate_quota_snapshot_loads_total", "result" => result).increment(1);
    let mut load = SnapshotLoad {
        from,
        written_at: content.as_ref().map(|content| content.written_at),
        n_restored: 0,
        n_over: 0,
        n_left_out: 0,
    };
    if let Some(content) = content {
        restore(&content, limits, clock, &mut load);
    }
    tracing::info!(target: "tollgate::limit", path = %files.path().display(), ?load, "quotas go on from their snapshot");
    Ok(load)
}

fn restore(content: &Content, limits: &MemoryLimits, clock: &dyn Clock, load: &mut SnapshotLoad) {
    let now = clock.now();
    for saved in &content.counts {
        if now.wall().as_unix_micros() >= saved.used.end {
            load.n_over += 1;
        } else if limits.restore_quota(saved, now) {
            load.n_restored += 1;
        } else {
            load.n_left_out += 1;
        }
    }
    if load.n_left_out > 0 {
        tracing::error!(
            target: "tollgate::limit",
            n_left_out = load.n_left_out,
            "the store has no room for all quotas of the snapshot: raise `max_keys`"
        );
    }
}

fn tell_damage(path: &Path, reason: &Unreadable, what_follows: &'static str) {
    tracing::error!(
        target: "tollgate::limit",
        path = %path.display(),
        error = reason as &dyn std::error::Error,
        what_follows,
        "the snapshot of quotas cannot be read; the next write puts it aside under the same name with `.damaged`"
    );
}
