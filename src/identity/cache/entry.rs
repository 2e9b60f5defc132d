//! What is known of one working key.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arc_swap::ArcSwapOption;

use super::{CacheSettings, KNOWN_CHANGED, TenantSlot};
use crate::{
    auth::{AuthRefusal, KeyRecord},
    identity::Identity,
};

/// A key that was seen to work, its tenant, and the identity made of both.
#[derive(Debug)]
pub(in crate::identity) struct Entry {
    pub(in crate::identity) record: Arc<KeyRecord>,
    pub(in crate::identity) tenant: Arc<TenantSlot>,
    pub(in crate::identity) resolved: ArcSwapOption<Resolved>,
    /// Monotonic microseconds from which the key must be fetched again.
    due: AtomicU64,
    fetched_at: AtomicU64,
    /// Monotonic microseconds from which the next use is noted.
    note_due: AtomicU64,
}

/// How exactly it is known when a key was last used.
const NOTE_EVERY_MICROS: u64 = 60_000_000;

/// An identity, or why there is none, and the versions of what it was made from.
#[derive(Debug)]
pub(in crate::identity) struct Resolved {
    pub(in crate::identity) outcome: Result<Identity, AuthRefusal>,
    pub(in crate::identity) plans: u64,
    pub(in crate::identity) tenant: u64,
}

impl Entry {
    pub(super) fn new(
        record: Arc<KeyRecord>,
        tenant: Arc<TenantSlot>,
        now: u64,
        settings: &CacheSettings,
    ) -> Self {
        Self {
            record,
            tenant,
            resolved: ArcSwapOption::empty(),
            due: AtomicU64::new(settings.due_after(now)),
            fetched_at: AtomicU64::new(now),
            note_due: AtomicU64::new(0),
        }
    }

    /// Whether a use at `now` is to be noted: the first one in a minute.
    #[inline]
    pub(in crate::identity) fn is_use_due(&self, now: u64) -> bool {
        let due = self.note_due.load(Ordering::Relaxed);
        // Of several at once one notes it.
        now >= due
            && self
                .note_due
                .compare_exchange(
                    due,
                    now.saturating_add(NOTE_EVERY_MICROS),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok()
    }

    /// The use was not noted after all: the next one is.
    pub(in crate::identity) fn note_again(&self) {
        self.note_due.store(0, Ordering::Relaxed);
    }

    /// Whether the key itself must be fetched again.
    pub(in crate::identity) fn key_is_due(&self, now: u64) -> bool {
        now >= self.due.load(Ordering::Acquire)
    }

    pub(in crate::identity) fn is_due(&self, now: u64) -> bool {
        self.key_is_due(now) || self.tenant.is_due(now)
    }

    /// The store answered with the same record.
    pub(super) fn renew(&self, now: u64, settings: &CacheSettings) {
        self.fetched_at.store(now, Ordering::Release);
        self.due.store(settings.due_after(now), Ordering::Release);
    }

    pub(super) fn forget(&self) {
        self.due.store(KNOWN_CHANGED, Ordering::Release);
    }

    pub(super) fn is_alive(&self, now: u64, settings: &CacheSettings) -> bool {
        now < settings.end_of_life(self.fetched_at.load(Ordering::Acquire))
    }

    /// After the store failed: whether the entry may be served a while longer.
    pub(in crate::identity) fn outlives_error(&self, now: u64, settings: &CacheSettings) -> bool {
        if self.due.load(Ordering::Acquire) == KNOWN_CHANGED {
            return false;
        }
        let due = settings.due_after_error(self.fetched_at.load(Ordering::Acquire), now);
        if let Some(due) = due {
            self.due.store(due, Ordering::Release);
        }
        due.is_some()
    }
}
