//! The counts by their keys, bounded.

use std::{
    hash::{BuildHasherDefault, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use super::{
    cell::Cell,
    key::{CellKey, CellRef, Hashed},
};
use crate::clock::Now;

/// A shard of this size is swept in about a millisecond, within one call.
const KEYS_PER_SHARD: usize = 4_096;
const MAX_SHARDS: usize = 256;
/// Fewer keys than this are not worth a sweep.
const FIRST_WATERMARK: usize = 64;
/// How long a full map waits after a sweep that was not worth its while.
const IDLE_SWEEP_EVERY_MICROS: u64 = 1_000_000;
/// A sweep is worth its while when it evicts one in so many.
const WORTHWHILE: usize = 8;

/// The map is full and nothing in it can be evicted.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{max_keys} limit keys are in use and none of them is idle")]
pub(super) struct Full {
    max_keys: usize,
}

#[derive(Debug)]
pub(super) struct CellMap {
    pub(super) hasher: RandomState,
    shards: Box<[Shard]>,
    n_keys: AtomicUsize,
    max_keys: usize,
    n_refused: AtomicU64,
}

#[derive(Debug)]
struct Shard {
    cells: papaya::HashMap<CellKey, Arc<Cell>, BuildHasherDefault<Hashed>>,
    n_keys: AtomicUsize,
    /// At so many keys an insertion sweeps first.
    watermark: AtomicUsize,
    is_being_swept: AtomicBool,
    /// Until then a full map is not swept again.
    full_until: AtomicU64,
}

impl Shard {
    fn new() -> Self {
        Self {
            cells: papaya::HashMap::default(),
            n_keys: AtomicUsize::new(0),
            watermark: AtomicUsize::new(FIRST_WATERMARK),
            is_being_swept: AtomicBool::new(false),
            full_until: AtomicU64::new(0),
        }
    }
}

impl CellMap {
    pub(super) fn new(max_keys: usize) -> Self {
        let n_shards = (max_keys / KEYS_PER_SHARD)
            .clamp(1, MAX_SHARDS)
            .next_power_of_two();
        Self {
            hasher: RandomState::new(),
            shards: (0..n_shards).map(|_| Shard::new()).collect(),
            n_keys: AtomicUsize::new(0),
            max_keys,
            n_refused: AtomicU64::new(0),
        }
    }

    pub(super) fn n_keys(&self) -> usize {
        self.n_keys.load(Ordering::Relaxed)
    }

    pub(super) fn n_refused(&self) -> u64 {
        self.n_refused.load(Ordering::Relaxed)
    }

    fn shard(&self, key: &CellRef<'_>) -> &Shard {
        // The map inside takes its own bits from both ends of the hash.
        let place = (key.hash() >> 24) as usize % self.shards.len();
        &self.shards[place]
    }

    pub(super) fn find(&self, key: &CellRef<'_>) -> Option<Arc<Cell>> {
        self.shard(key).cells.pin().get(key).map(Arc::clone)
    }

    /// The key's cell, made when there is none.
    pub(super) fn find_or_insert(
        &self,
        key: &CellRef<'_>,
        now: Now,
        make: impl FnOnce() -> Cell,
    ) -> Result<Arc<Cell>, Full> {
        let shard = self.shard(key);
        if let Some(cell) = shard.cells.pin().get(key) {
            return Ok(Arc::clone(cell));
        }
        let is_full = self.n_keys() >= self.max_keys
            && now.monotonic_micros() >= shard.full_until.load(Ordering::Relaxed);
        if is_full
            || shard.n_keys.load(Ordering::Relaxed) >= shard.watermark.load(Ordering::Relaxed)
        {
            self.sweep_shard(shard, now);
        }
        if self.n_keys.fetch_add(1, Ordering::Relaxed) >= self.max_keys {
            self.n_keys.fetch_sub(1, Ordering::Relaxed);
            self.n_refused.fetch_add(1, Ordering::Relaxed);
            return Err(Full {
                max_keys: self.max_keys,
            });
        }
        match shard.cells.pin().try_insert(key.to_key(), Arc::new(make())) {
            Ok(cell) => {
                shard.n_keys.fetch_add(1, Ordering::Relaxed);
                Ok(Arc::clone(cell))
            }
            Err(occupied) => {
                self.n_keys.fetch_sub(1, Ordering::Relaxed);
                Ok(Arc::clone(occupied.current))
            }
        }
    }

    /// Shows every count to `visit`.
    pub(super) fn visit(&self, mut visit: impl FnMut(&CellKey, &Cell)) {
        for shard in &self.shards {
            for (key, cell) in &shard.cells.pin() {
                visit(key, cell);
            }
        }
    }

    /// Evicts every idle cell and says how many there were.
    pub(super) fn sweep(&self, now: Now) -> usize {
        self.shards
            .iter()
            .map(|shard| self.sweep_shard(shard, now))
            .sum()
    }

    /// Each key is visited about twice for each insertion: the next sweep is due when the number of keys has
    /// doubled, or when the map is full and the last sweep was worth its while.
    fn sweep_shard(&self, shard: &Shard, now: Now) -> usize {
        if shard.is_being_swept.swap(true, Ordering::Acquire) {
            return 0;
        }
        let n_before = shard.n_keys.load(Ordering::Relaxed);
        let cells = shard.cells.pin();
        let mut n_evicted = 0;
        for (key, cell) in &cells {
            let remove = || {
                // A cell that an identity holds is counted by it without a look at the map.
                let alone = |_: &CellKey, found: &Arc<Cell>| Arc::strong_count(found) == 1;
                matches!(cells.remove_if(key, alone), Ok(Some(_)))
            };
            if cell.retire(now, remove) {
                n_evicted += 1;
            }
        }
        self.n_keys.fetch_sub(n_evicted, Ordering::Relaxed);
        let left = shard
            .n_keys
            .fetch_sub(n_evicted, Ordering::Relaxed)
            .saturating_sub(n_evicted);
        shard
            .watermark
            .store((left * 2).max(FIRST_WATERMARK), Ordering::Relaxed);
        if n_evicted * WORTHWHILE < n_before {
            let until = now
                .monotonic_micros()
                .saturating_add(IDLE_SWEEP_EVERY_MICROS);
            shard.full_until.store(until, Ordering::Relaxed);
        }
        shard.is_being_swept.store(false, Ordering::Release);
        n_evicted
    }
}
