//! The answer to "may this call pass", as data.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use smallvec::SmallVec;

use super::reading::Reading;
use crate::clock::micros;

/// The states of a call's rules; up to three without an allocation.
pub type RuleStates = SmallVec<[RuleState; 3]>;

/// The charges of a call; up to three without an allocation.
pub type Holds = SmallVec<[Hold; 3]>;

/// The answer for one call over all its rules.
#[derive(Debug)]
#[non_exhaustive]
pub struct Decision {
    /// Whether the call may pass.
    pub outcome: Outcome,
    /// The state of each rule that applied, in the order of the rules, after the decision.
    pub states: RuleStates,
    /// Thresholds that this call was the first to cross in their period.
    pub crossings: Vec<Crossing>,
    /// What was charged; empty when the call was refused.
    pub receipt: Receipt,
}

impl Decision {
    /// A decision without rules: the call passes and nothing is charged.
    #[must_use]
    pub fn unlimited() -> Self {
        Self {
            outcome: Outcome::Admitted { overage: false },
            states: SmallVec::new(),
            crossings: Vec::new(),
            receipt: Receipt::default(),
        }
    }

    /// A decision from its parts; for implementors of [`LimitStore`](super::LimitStore).
    #[must_use]
    pub const fn new(outcome: Outcome, states: RuleStates, receipt: Receipt) -> Self {
        Self {
            outcome,
            states,
            crossings: Vec::new(),
            receipt,
        }
    }

    /// Whether the call may pass.
    #[must_use]
    pub const fn is_admitted(&self) -> bool {
        matches!(self.outcome, Outcome::Admitted { .. })
    }
}

/// Whether a call may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The call passes and is charged.
    Admitted {
        /// Some rule of [`Action::Overage`](super::Action::Overage) is above its limit.
        overage: bool,
    },
    /// The call is refused and nothing was charged.
    Refused {
        /// The most restrictive rule that refused, by its place in the set.
        rule: usize,
        /// Why.
        reason: RefusalReason,
        /// The shortest wait after which the same call would pass if nothing else came in between; `None`
        /// when it never will, or when nobody can know (a concurrency limit).
        retry_after: Option<Duration>,
    },
}

/// Why a rule refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefusalReason {
    /// The limit is used up for now.
    LimitReached,
    /// The call costs more than the limit could ever hold.
    ExceedsCapacity,
}

/// One rule's state after a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RuleState {
    /// The rule's place in its set.
    pub rule: usize,
    /// The limit: a bucket's burst, a window's or a quota's limit.
    pub limit: u64,
    /// Units left now.
    pub remaining: u64,
    reset: Micros,
    window: Micros,
    /// The rule was above its limit for this call: it refused, warned, or counted overage.
    pub exceeded: bool,
    /// The highest threshold, in percent, that the use has reached; 0 when none.
    pub threshold: u8,
}

impl RuleState {
    /// A state from its parts, neither exceeded nor at a threshold. Times are kept in whole microseconds.
    #[must_use]
    pub fn new(rule: usize, limit: u64, remaining: u64, reset: Option<Duration>) -> Self {
        Self {
            rule,
            limit,
            remaining,
            reset: Micros::new(reset.map(micros)),
            window: Micros::UNKNOWN,
            exceeded: false,
            threshold: 0,
        }
    }

    /// A state as an algorithm reads it, of a rule whose window has the same length at all times or the length
    /// that was read.
    #[inline]
    pub(super) fn read(
        rule: usize,
        limit: u64,
        reading: &Reading,
        window_micros: Option<u64>,
    ) -> Self {
        Self {
            rule,
            limit,
            remaining: reading.remaining,
            reset: Micros::new(reading.reset_micros),
            window: Micros::new(window_micros.or(reading.window_micros)),
            exceeded: false,
            threshold: 0,
        }
    }

    /// Sets the real length of the window that `limit` is for.
    #[must_use]
    pub fn over(mut self, window: Option<Duration>) -> Self {
        self.window = Micros::new(window.map(micros));
        self
    }

    /// The time until more units than now are available (`t` of the `RateLimit` header field); `None` when
    /// the rule is full or the time is unknown.
    #[must_use]
    pub fn reset(&self) -> Option<Duration> {
        self.reset.get()
    }

    /// The real length of the window that `limit` is for (`w` of the `RateLimit-Policy` header field): a
    /// bucket's time to fill, this month's length; `None` for a concurrency limit.
    #[must_use]
    pub const fn window(&self) -> Option<Duration> {
        self.window.get()
    }
}

/// Microseconds or nothing in one word: a decision is moved several times, and its states make most of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Micros(u64);

impl Micros {
    const UNKNOWN: Self = Self(u64::MAX);

    fn new(micros: Option<u64>) -> Self {
        micros.map_or(Self::UNKNOWN, Self)
    }

    const fn get(self) -> Option<Duration> {
        if self.0 == Self::UNKNOWN.0 {
            None
        } else {
            Some(Duration::from_micros(self.0))
        }
    }
}

/// A threshold crossed for the first time in its period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Crossing {
    /// The rule's place in its set.
    pub rule: usize,
    /// The threshold in percent.
    pub percent: u8,
    /// Units used, this call included.
    pub used: u64,
    /// The limit.
    pub limit: u64,
}

impl Crossing {
    /// A crossing from its parts; for implementors of [`LimitStore`](super::LimitStore).
    #[must_use]
    pub const fn new(rule: usize, percent: u8, used: u64, limit: u64) -> Self {
        Self {
            rule,
            percent,
            used,
            limit,
        }
    }
}

/// What one decision charged, to be settled at most once.
///
/// Settling twice has the effect of settling once.
#[derive(Debug, Default)]
pub struct Receipt {
    id: u128,
    holds: Holds,
    settled: AtomicBool,
}

impl Receipt {
    /// A receipt for the given charges; for implementors of [`LimitStore`](super::LimitStore).
    #[must_use]
    pub const fn new(id: u128, holds: Holds) -> Self {
        Self {
            id,
            holds,
            settled: AtomicBool::new(false),
        }
    }

    #[inline]
    pub(super) fn push(&mut self, hold: Hold) {
        self.holds.push(hold);
    }

    /// The store's own number for the receipt; 0 in stores that need none.
    #[must_use]
    pub const fn id(&self) -> u128 {
        self.id
    }

    /// The charges, one for each rule that was charged.
    #[must_use]
    pub fn holds(&self) -> &[Hold] {
        &self.holds
    }

    /// Marks the receipt as settled; true for the first caller only.
    #[must_use]
    pub fn begin_settlement(&self) -> bool {
        !self.settled.swap(true, Ordering::AcqRel)
    }
}

/// One rule's charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hold {
    /// The rule's place in its set.
    pub rule: usize,
    /// Units charged.
    pub amount: u64,
    /// The window or period that was charged, in the store's own numbering.
    pub period: u64,
}

impl Hold {
    /// A charge from its parts; for implementors of [`LimitStore`](super::LimitStore).
    #[must_use]
    pub const fn new(rule: usize, amount: u64, period: u64) -> Self {
        Self {
            rule,
            amount,
            period,
        }
    }
}
