//! One word that is changed by compare-and-swap, and closed while the numbers around it change.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// Stands in the word while a thread has it to itself, and for ever once the cell is retired.
const CLOSED: u64 = u64::MAX;

/// The cell was evicted: look for the key's new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Retired;

/// A count behind a gate.
///
/// The common way is one load and one compare-and-swap. Whoever must change more than the word (a new period,
/// other parameters) takes the lock, closes the word and opens it again: a compare-and-swap that began before
/// fails, and whoever finds the word closed waits for the lock instead of spinning.
///
/// A compare-and-swap can also succeed when the word was closed in between and came back to the same value.
/// Each cell says why that does no harm.
#[derive(Debug)]
pub(super) struct Gate {
    word: AtomicU64,
    retired: Mutex<bool>,
}

impl Gate {
    pub(super) const fn new(word: u64) -> Self {
        Self {
            word: AtomicU64::new(word),
            retired: Mutex::new(false),
        }
    }

    /// The word, or `None` while it is closed.
    #[inline]
    pub(super) fn load(&self) -> Option<u64> {
        let word = self.word.load(Ordering::Acquire);
        (word != CLOSED).then_some(word)
    }

    /// The word, after waiting until it is open.
    #[inline]
    pub(super) fn open(&self) -> Result<u64, Retired> {
        loop {
            if let Some(word) = self.load() {
                return Ok(word);
            }
            if *self.lock() {
                return Err(Retired);
            }
        }
    }

    /// Replaces the word if it is still `current`.
    #[inline]
    pub(super) fn replace(&self, current: u64, new: u64) -> bool {
        self.word
            .compare_exchange_weak(current, new, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Whether the word is still `current`: what was read around it since then belongs together.
    #[inline]
    pub(super) fn is_still(&self, current: u64) -> bool {
        std::sync::atomic::fence(Ordering::Acquire);
        self.word.load(Ordering::Relaxed) == current
    }

    /// Has the word to itself while `change` makes a new one of it. `change` must not panic.
    pub(super) fn exclusive<T>(&self, change: impl FnOnce(u64) -> (u64, T)) -> Result<T, Retired> {
        let retired = self.lock();
        if *retired {
            return Err(Retired);
        }
        let word = self.word.swap(CLOSED, Ordering::AcqRel);
        let (new, value) = change(word);
        self.word.store(new, Ordering::Release);
        Ok(value)
    }

    /// Closes the gate for ever if the cell is idle and `remove` has taken it out of the map.
    pub(super) fn retire(
        &self,
        is_idle: impl FnOnce(u64) -> bool,
        remove: impl FnOnce() -> bool,
    ) -> bool {
        let mut retired = self.lock();
        if *retired {
            return false;
        }
        let word = self.word.swap(CLOSED, Ordering::AcqRel);
        *retired = is_idle(word) && remove();
        if !*retired {
            self.word.store(word, Ordering::Release);
        }
        *retired
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The largest count: far above any limit, far below [`CLOSED`].
pub(super) const MAX_COUNT: u64 = 1 << 62;

/// How much of `amount` can be added to a count without leaving the range.
pub(super) const fn countable(count: u64, amount: u64) -> u64 {
    let room = MAX_COUNT.saturating_sub(count);
    if amount < room { amount } else { room }
}

/// A word that must not look closed.
pub(super) const fn not_closed(word: u64) -> u64 {
    if word == CLOSED { 0 } else { word }
}
