//! Which thresholds have been told already.

use std::sync::atomic::{AtomicU64, Ordering};

use super::super::compile::Threshold;

/// One bit for each percentage that has been told in this period.
#[derive(Debug, Default)]
pub(super) struct Marks {
    words: [AtomicU64; 2],
}

/// When a threshold may be told again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// When the use has fallen below the lowest threshold.
    BelowLowest,
    /// In the next period, by [`Marks::clear`].
    NextPeriod,
}

impl Marks {
    /// The marks as words.
    pub(super) fn words(&self) -> [u64; 2] {
        let [low, high] = &self.words;
        [low.load(Ordering::Relaxed), high.load(Ordering::Relaxed)]
    }

    /// Marks from their words.
    pub(super) fn of_words([low, high]: [u64; 2]) -> Self {
        Self {
            words: [AtomicU64::new(low), AtomicU64::new(high)],
        }
    }

    pub(super) fn clear(&self) {
        for word in &self.words {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Calls `tell` for each threshold that a charge from `before` to `after` units is the first to reach.
    pub(super) fn reach(
        &self,
        thresholds: &[Threshold],
        again: Again,
        before: u64,
        after: u64,
        mut tell: impl FnMut(Threshold),
    ) {
        let Some(lowest) = thresholds.first() else {
            return;
        };
        if after < lowest.units {
            return;
        }
        if again == Again::BelowLowest && before < lowest.units {
            self.clear();
        }
        for threshold in thresholds {
            // A count that falls without a period's end has been told of what lies below `before`; a quota
            // tells what a settlement crossed, too.
            let passed = again == Again::BelowLowest && before >= threshold.units;
            if after >= threshold.units && !passed && self.mark(threshold.percent) {
                tell(*threshold);
            }
        }
    }

    /// Whether the percentage was unmarked until now.
    fn mark(&self, percent: u8) -> bool {
        let [low, high] = &self.words;
        let word = if percent < 64 { low } else { high };
        let bit = 1 << (percent % 64);
        // Most calls above a threshold find it marked, and a load does not take the cache line.
        word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }
}
