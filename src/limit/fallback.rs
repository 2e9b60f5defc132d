//! What happens when the store gives no answer.

use std::{
    fmt,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use quick_cache::sync::Cache;

use super::{
    decision::Decision,
    memory::MemoryLimits,
    rule::{Algorithm, OnStoreFailure, Rule},
    set::{LimitSet, Owner, RuleSet},
    store::{LimitCall, LimitStore},
};
use crate::clock::Now;

/// Decides in this process, with this process's share of each limit.
#[derive(Debug)]
pub(super) struct Fallback {
    processes: NonZeroU32,
    local: Arc<MemoryLimits>,
    /// The rules that a set was derived from, and the derived set.
    sets: Cache<Owner, (Arc<RuleSet>, Arc<LimitSet>)>,
}

const REMEMBERED_OWNERS: usize = 10_000;

impl Fallback {
    pub(super) fn new(processes: NonZeroU32) -> Self {
        Self {
            processes,
            local: Arc::new(MemoryLimits::new()),
            sets: Cache::new(REMEMBERED_OWNERS),
        }
    }

    pub(super) fn store(&self) -> &MemoryLimits {
        &self.local
    }

    /// The decision of the rules that say `Local`, and the set it was made under; `None` when the call is to
    /// be refused, because some rule says so.
    pub(super) fn decide(&self, call: &LimitCall<'_>) -> Option<(Arc<LimitSet>, Decision)> {
        let denies = |rule: &Rule| rule.on_store_failure == OnStoreFailure::Deny && !rule.shadow;
        if call.set.rules().iter().any(|rule| denies(rule.rule())) {
            return None;
        }
        let set = self.local_set(call.set);
        let local = LimitCall { set: &set, ..*call };
        match self.local.try_decide(&local) {
            Some(Ok(decision)) => Some((set, decision)),
            // The memory is full of counts that are in use: without a count nobody may pass unseen.
            Some(Err(_)) | None => None,
        }
    }

    fn local_set(&self, set: &Arc<LimitSet>) -> Arc<LimitSet> {
        if let Some((source, local)) = self.sets.get(set.owner())
            && Arc::ptr_eq(&source, set.rule_set())
        {
            return local;
        }
        let rules = set.rules().iter().map(|rule| rule.rule());
        let local = rules.filter(|rule| rule.on_store_failure == OnStoreFailure::Local);
        let share: Vec<Rule> = local.map(|rule| share_of(rule, self.processes)).collect();
        let rules = RuleSet::compile(share).unwrap_or_else(|error| {
            tracing::error!(target: "tollgate::limit", %error, "no local share can be made of the rules");
            Arc::clone(set.rule_set())
        });
        let local = Arc::new(LimitSet::new(set.owner().clone(), rules));
        self.sets.insert(
            set.owner().clone(),
            (Arc::clone(set.rule_set()), Arc::clone(&local)),
        );
        local
    }
}

/// One process's part of a rule: at least one unit, unless the limit is zero.
fn share_of(rule: &Rule, processes: NonZeroU32) -> Rule {
    let part = |limit: u64| {
        if limit == 0 {
            0
        } else {
            (limit / u64::from(processes.get())).max(1)
        }
    };
    let mut rule = rule.clone();
    match &mut rule.algorithm {
        // A longer period rather than a smaller number: exact for every rate.
        Algorithm::TokenBucket { period, burst, .. } => {
            *period = period.saturating_mul(processes.get());
            *burst = part(*burst);
        }
        Algorithm::SlidingWindow { limit, .. }
        | Algorithm::SlidingLog { limit, .. }
        | Algorithm::Quota { limit, .. }
        | Algorithm::Concurrency { limit, .. } => *limit = part(*limit),
        Algorithm::Unlimited => {}
    }
    rule
}

const FAILURES_UNTIL_OPEN: u32 = 5;
const PROBE_EVERY: Duration = Duration::from_millis(250);

/// Stops asking a store that does not answer: after five failures in a row one call in 250 ms asks, the
/// others take the fallback at once.
pub(super) struct Breaker {
    failures: AtomicU32,
    /// The last failure was an answer without a trip.
    is_at_once: AtomicBool,
    next_probe_micros: AtomicU64,
    /// Counts the open ones of the process.
    open: metrics::Gauge,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            failures: AtomicU32::new(0),
            is_at_once: AtomicBool::new(false),
            next_probe_micros: AtomicU64::new(0),
            open: metrics::gauge!(crate::series::BREAKERS_OPEN),
        }
    }
}

impl Breaker {
    pub(super) fn lets_ask(&self, now: Now) -> bool {
        if self.failures.load(Ordering::Relaxed) < FAILURES_UNTIL_OPEN {
            return true;
        }
        let due = self.next_probe_micros.load(Ordering::Relaxed);
        let next = now
            .monotonic_micros()
            .saturating_add(crate::clock::micros(PROBE_EVERY));
        due <= now.monotonic_micros()
            && self
                .next_probe_micros
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// The store answered without a trip, which says nothing of its trips: one in leased mode has units in hand.
    pub(super) fn answered(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 && self.is_at_once.load(Ordering::Relaxed) {
            self.close();
        }
    }

    pub(super) fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.close();
        }
    }

    fn close(&self) {
        if self.failures.swap(0, Ordering::Relaxed) >= FAILURES_UNTIL_OPEN {
            self.open.decrement(1.0);
        }
    }

    pub(super) fn failed(&self, now: Now, is_at_once: bool) {
        self.is_at_once.store(is_at_once, Ordering::Relaxed);
        let failures = self
            .failures
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1);
        if failures == FAILURES_UNTIL_OPEN {
            let next = now
                .monotonic_micros()
                .saturating_add(crate::clock::micros(PROBE_EVERY));
            self.next_probe_micros.store(next, Ordering::Relaxed);
            self.open.increment(1.0);
            tracing::warn!(target: "tollgate::limit", "the limit store does not answer: its rules' failure policy decides");
        }
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker")
            .field("failures", &self.failures)
            .finish_non_exhaustive()
    }
}

impl Drop for Breaker {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, ManualClock};

    #[test]
    fn an_open_breaker_lets_one_call_probe_in_a_quarter_second() {
        let (breaker, clock) = (Breaker::default(), ManualClock::default());
        for _ in 0..FAILURES_UNTIL_OPEN {
            assert!(breaker.lets_ask(clock.now()));
            breaker.failed(clock.now(), false);
        }
        assert!(!breaker.lets_ask(clock.now()));
        clock.advance(PROBE_EVERY);
        assert!(breaker.lets_ask(clock.now()));
        assert!(!breaker.lets_ask(clock.now()), "one probe at a time");
        breaker.answered();
        assert!(!breaker.lets_ask(clock.now()), "no trip has succeeded");
        breaker.succeeded();
        assert!(breaker.lets_ask(clock.now()));
    }

    #[test]
    fn a_share_is_at_least_one_unit_and_nothing_stays_nothing() {
        let three = NonZeroU32::new(3).unwrap();
        let limit = |rule: Rule| match share_of(&rule, three).algorithm {
            Algorithm::Quota { limit, .. } => limit,
            other => panic!("{other:?}"),
        };
        assert_eq!(limit(crate::limit::Quota::daily(100).into()), 33);
        assert_eq!(limit(crate::limit::Quota::daily(1).into()), 1);
        assert_eq!(limit(crate::limit::Quota::daily(0).into()), 0);
    }
}
