//! What is known of tenants, shared by all keys of each.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{CacheSettings, KNOWN_CHANGED};
use crate::{
    id::TenantId,
    tenant::{TenantRecord, TenantStore},
};

/// How often a fetch is repeated because a change was announced while it ran.
const MAX_TRIES: usize = 3;

/// One tenant's record, shared by the entries of all its keys, so that one change reaches them all.
#[derive(Debug)]
pub(in crate::identity) struct TenantSlot {
    id: TenantId,
    /// Monotonic microseconds from which the record must be fetched again.
    due: AtomicU64,
    /// Grows each time the record becomes another one; who compiled from it compares.
    stamp: AtomicU64,
    state: Mutex<SlotState>,
    /// Held while the record is fetched, so that the keys of one tenant ask for it once.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct SlotState {
    record: Option<Arc<TenantRecord>>,
    fetched_at: u64,
    /// Announced changes so far: a fetch that began before one must not be taken for what came after it.
    changes: u64,
}

impl TenantSlot {
    fn new(id: TenantId) -> Self {
        Self {
            id,
            due: AtomicU64::new(KNOWN_CHANGED),
            stamp: AtomicU64::new(0),
            state: Mutex::default(),
            fetching: tokio::sync::Mutex::new(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, SlotState> {
        // No panic can happen between two writes, so the state is whole all the same.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::identity) fn is_due(&self, now: u64) -> bool {
        now >= self.due.load(Ordering::Acquire)
    }

    /// Whether a change was announced that has not been fetched yet.
    pub(in crate::identity) fn is_known_changed(&self) -> bool {
        self.due.load(Ordering::Acquire) == KNOWN_CHANGED
    }

    pub(in crate::identity) fn stamp(&self) -> u64 {
        self.stamp.load(Ordering::Acquire)
    }

    /// The record and the stamp that belongs to it.
    pub(in crate::identity) fn read(&self) -> (u64, Option<Arc<TenantRecord>>) {
        let state = self.lock();
        (self.stamp.load(Ordering::Acquire), state.record.clone())
    }

    /// Announced changes so far; read before a fetch and handed to [`fetched`](Self::fetched).
    pub(in crate::identity) fn changes(&self) -> u64 {
        self.lock().changes
    }

    fn changed(&self) {
        let mut state = self.lock();
        state.changes += 1;
        self.due.store(KNOWN_CHANGED, Ordering::Release);
    }

    /// Keeps what a fetch brought that began after `changes` changes. `false` when another change was
    /// announced meanwhile: the record is kept, as it may be the newest, but must be fetched again.
    pub(in crate::identity) fn fetched(
        &self,
        record: Option<Arc<TenantRecord>>,
        changes: u64,
        now: u64,
        settings: &CacheSettings,
    ) -> bool {
        let mut state = self.lock();
        let known = state.record.as_ref().map_or(0, |known| known.version);
        // A replica that lags behind must not take a change back. Past its life what is known counts for
        // nothing, so a store that was restored from a backup is believed then.
        let lags = record.as_ref().is_some_and(|record| record.version < known)
            && now < settings.end_of_life(state.fetched_at);
        if !lags {
            if state.record != record {
                state.record = record;
                self.stamp.fetch_add(1, Ordering::Release);
            }
            state.fetched_at = now;
        }
        let is_current = state.changes == changes;
        if is_current {
            self.due.store(settings.due_after(now), Ordering::Release);
        }
        is_current
    }

    /// Brings the record up to date without waiting; `false` when a trip is needed.
    pub(in crate::identity) fn refresh_now(
        &self,
        store: &dyn TenantStore,
        now: u64,
        settings: &CacheSettings,
    ) -> bool {
        if !self.is_due(now) {
            return true;
        }
        let changes = self.changes();
        let Some(record) = store.find_now(&self.id) else {
            return false;
        };
        self.fetched(record, changes, now, settings);
        true
    }

    /// Brings the record up to date; `false` when the store failed and nothing may be served.
    pub(in crate::identity) async fn refresh(
        &self,
        store: &dyn TenantStore,
        now: u64,
        settings: &CacheSettings,
    ) -> bool {
        if !self.is_due(now) {
            return true;
        }
        let _turn = self.fetching.lock().await;
        for _ in 0..MAX_TRIES {
            if !self.is_due(now) {
                break;
            }
            let changes = self.changes();
            match store.find(&self.id).await {
                Ok(record) => {
                    if self.fetched(record, changes, now, settings) {
                        break;
                    }
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "the tenant store failed");
                    return self.outlives_error(now, settings);
                }
            }
        }
        true
    }

    /// After the store failed: whether what is known may be served a while longer.
    pub(in crate::identity) fn outlives_error(&self, now: u64, settings: &CacheSettings) -> bool {
        let state = self.lock();
        if state.record.is_none() || self.due.load(Ordering::Acquire) == KNOWN_CHANGED {
            return false;
        }
        let due = settings.due_after_error(state.fetched_at, now);
        if let Some(due) = due {
            self.due.store(due, Ordering::Release);
        }
        due.is_some()
    }
}

/// The slots of all tenants of which a key is kept.
///
/// Slots live as long as an entry holds them; what is left of the others is swept away as the map grows, so
/// it stays within twice the number of living ones.
#[derive(Debug)]
pub(in crate::identity) struct TenantSlots {
    slots: Mutex<Slots>,
}

#[derive(Debug)]
struct Slots {
    by_id: HashMap<TenantId, Weak<TenantSlot>>,
    sweep_at: usize,
}

const FIRST_SWEEP: usize = 1_024;

impl TenantSlots {
    pub(in crate::identity) fn new() -> Self {
        Self {
            slots: Mutex::new(Slots {
                by_id: HashMap::new(),
                sweep_at: FIRST_SWEEP,
            }),
        }
    }

    /// How many tenants are known, those swept away next included.
    pub(in crate::identity) fn n_kept(&self) -> usize {
        self.lock().by_id.len()
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tenant's slot, empty when there was none.
    pub(in crate::identity) fn slot(&self, id: &TenantId) -> Arc<TenantSlot> {
        let mut slots = self.lock();
        if let Some(slot) = slots.by_id.get(id).and_then(Weak::upgrade) {
            return slot;
        }
        if slots.by_id.len() >= slots.sweep_at {
            slots.by_id.retain(|_, slot| slot.strong_count() > 0);
            slots.sweep_at = FIRST_SWEEP.max(slots.by_id.len() * 2);
        }
        let slot = Arc::new(TenantSlot::new(id.clone()));
        slots.by_id.insert(id.clone(), Arc::downgrade(&slot));
        slot
    }

    pub(in crate::identity) fn changed(&self, id: &TenantId) {
        let slot = self.lock().by_id.get(id).and_then(Weak::upgrade);
        if let Some(slot) = slot {
            slot.changed();
        }
    }

    pub(in crate::identity) fn all_changed(&self) {
        let slots: Vec<_> = {
            let slots = self.lock();
            slots.by_id.values().filter_map(Weak::upgrade).collect()
        };
        for slot in slots {
            slot.changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::PlanName;

    fn record(version: u64) -> Option<Arc<TenantRecord>> {
        let mut record = TenantRecord::new(
            TenantId::new("acme").unwrap(),
            PlanName::new("free").unwrap(),
        );
        record.version = version;
        Some(Arc::new(record))
    }

    #[test]
    fn a_fetch_that_began_before_a_change_does_not_pass_for_a_later_one() {
        let settings = CacheSettings::new();
        let slot = TenantSlot::new(TenantId::new("acme").unwrap());
        let before = slot.changes();
        slot.changed();
        assert!(!slot.fetched(record(1), before, 10, &settings));
        assert!(slot.is_due(10) && slot.is_known_changed());
        assert!(slot.fetched(record(2), slot.changes(), 11, &settings));
        assert!(!slot.is_due(11));
    }

    #[test]
    fn an_equal_record_keeps_the_stamp_and_an_older_one_is_not_taken() {
        let settings = CacheSettings::new();
        let slot = TenantSlot::new(TenantId::new("acme").unwrap());
        slot.fetched(record(2), 0, 1, &settings);
        let stamp = slot.stamp();
        slot.fetched(record(2), 0, 2, &settings);
        slot.fetched(record(1), 0, 3, &settings);
        assert_eq!(slot.stamp(), stamp);
        assert_eq!(slot.read().1, record(2));
        slot.fetched(record(1), 0, u64::MAX, &settings);
        assert_eq!(
            slot.read().1,
            record(1),
            "past its life it counts for nothing"
        );
    }

    #[test]
    fn slots_of_forgotten_tenants_are_swept_away() {
        let slots = TenantSlots::new();
        let kept = slots.slot(&TenantId::new("kept").unwrap());
        for n in 0..10_000 {
            slots.slot(&TenantId::new(format!("t{n}")).unwrap());
        }
        assert!(slots.lock().by_id.len() <= FIRST_SWEEP);
        assert!(Arc::ptr_eq(&kept, &slots.slot(&kept.id)));
    }
}
