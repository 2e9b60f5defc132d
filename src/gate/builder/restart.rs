use std::{path::PathBuf, sync::Arc, time::Duration};

use super::TollgateBuilder;
use crate::{
    clock::Clock,
    error::ConfigError,
    gate::Document,
    limit::{MemoryLimits, OnDamage, QuotaSnapshot, QuotaSnapshotBuilder},
};

/// What a restart finds again.
impl TollgateBuilder {
    /// Plans, tenants and keys from one document; see [`Tollgate::reload`](crate::Tollgate::reload) for one that
    /// changes. Tenants and keys are kept in memory, where more can be made at run time
    /// ([`Tollgate::document`](crate::Tollgate::document) saves them). A document without plans goes with
    /// [`plans`](Self::plans) in code; one with plans only goes with stores of your own.
    pub fn document(mut self, document: Document) -> Self {
        self.document = Some(document);
        self
    }

    /// Keeps what is used of quotas in a file that is written after each interval `every` and read at the start,
    /// so that they survive a restart and `kill -9`; nothing is kept unless set. Only for counts in memory. See
    /// [`QuotaSnapshot`] for what is kept, what can be lost and which files there are.
    pub fn quota_snapshot(mut self, path: impl Into<PathBuf>, every: Duration) -> Self {
        self.snapshot = Some(QuotaSnapshot::at(path).every(every));
        self
    }

    /// What happens at the start when no file of the snapshot can be read; quotas begin at zero, with an error in
    /// the log, unless set.
    pub const fn on_damaged_snapshot(mut self, choice: OnDamage) -> Self {
        self.snapshot_damage = choice;
        self
    }
}

pub(super) fn open_snapshot(
    snapshot: Option<QuotaSnapshotBuilder>,
    on_damage: OnDamage,
    limits: Option<&Arc<MemoryLimits>>,
    clock: &Arc<dyn Clock>,
) -> Result<Option<QuotaSnapshot>, ConfigError> {
    let Some(snapshot) = snapshot else {
        return Ok(None);
    };
    let limits = limits.ok_or_else(no_memory)?;
    let snapshot = snapshot.on_damage(on_damage).clock(Arc::clone(clock));
    snapshot.open(Arc::clone(limits)).map(Some)
}

fn no_memory() -> ConfigError {
    let reason = "the limits are counted in a store of your own, which keeps them itself: leave the snapshot out";
    ConfigError::new("quota_snapshot", reason)
}
