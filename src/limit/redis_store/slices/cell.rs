//! A count of which units are in hand, shared by the sets that count there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use smallvec::smallvec;
use tokio::sync::Notify;

use super::{
    super::{
        inner::Inner,
        wire::{Operation, PackedCall, PackedRule},
    },
    hand::{Hand, Returns},
};

/// What this process has in hand of one count, under one set of numbers.
#[derive(Debug)]
pub(in super::super) struct Cell {
    hand: Mutex<Hand>,
    /// Told when a slice has landed or failed.
    pub(super) landed: Arc<Notify>,
    /// The numbers that the units were debited by: a changed plan has a cell of its own.
    pub(super) numbers: Box<[u8]>,
    /// The rule as it goes to the script, to give units back by.
    packed: Mutex<Option<PackedRule>>,
    store: Weak<Inner>,
}

impl Cell {
    pub(super) fn new(numbers: Box<[u8]>, store: Weak<Inner>) -> Self {
        Self {
            hand: Mutex::default(),
            landed: Arc::default(),
            numbers,
            packed: Mutex::default(),
            store,
        }
    }

    pub(super) fn hand(&self) -> MutexGuard<'_, Hand> {
        self.hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pack(&self, packed: PackedRule) {
        let mut own = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        *own = Some(packed);
    }

    /// Queues units to be given back. Never called with the hand locked.
    pub(super) fn give_back(&self, store: &Inner, returns: &Returns) {
        if returns.is_empty() {
            return;
        }
        let packed = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(packed) = packed.clone() else { return };
        for &(units, period) in returns {
            store.metrics.returned_units.increment(units);
            store.send_settlement(PackedCall {
                operation: Operation::Settle,
                time: store.own_time(),
                rules: smallvec![packed.as_release(period, units)],
            });
        }
    }

    /// Gives everything in hand back.
    pub(super) fn return_all(&self, store: &Inner) {
        let returns = self.hand().drain();
        self.give_back(store, &returns);
    }

    /// Gives back what can no longer be served.
    pub(super) fn return_lapsed(&self, store: &Inner) {
        let returns = self.hand().lapsed(store.now());
        self.give_back(store, &returns);
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if let Some(store) = self.store.upgrade() {
            self.return_all(&store);
        }
    }
}
