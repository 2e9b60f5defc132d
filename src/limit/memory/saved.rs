//! The counts of quotas on their way to a snapshot and back.

use super::{
    MemoryLimits,
    cell::Cell,
    key::{CellRef, CountName},
    quota::{QuotaCell, QuotaUse},
};
use crate::clock::Now;

/// One quota's count, of one owner and scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::limit) struct SavedQuota {
    pub(in crate::limit) name: CountName,
    pub(in crate::limit) used: QuotaUse,
}

impl MemoryLimits {
    /// Shows each quota whose period is not over at `now` and of which something is used. Each count is whole in
    /// itself; calls that are decided meanwhile may be in one and not yet in another.
    pub(in crate::limit) fn visit_quotas(&self, now: Now, mut visit: impl FnMut(&SavedQuota)) {
        self.cells.visit(|key, cell| {
            let Cell::Quota(cell) = cell else { return };
            let Some(used) = cell.used() else { return };
            if now.wall().as_unix_micros() < used.end {
                visit(&SavedQuota {
                    name: key.name(),
                    used,
                });
            }
        });
    }

    /// Lets a quota go on from what was used, and says whether there was room; a count that is there already stays
    /// as it is.
    pub(in crate::limit) fn restore_quota(&self, saved: &SavedQuota, now: Now) -> bool {
        let key = CellRef::named(&self.cells.hasher, &saved.name);
        let make = || Cell::Quota(QuotaCell::restored(&saved.used));
        self.cells.find_or_insert(&key, now, make).is_ok()
    }
}
