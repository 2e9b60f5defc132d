//! A limit store that is plain enough to be believed.
//!
//! It keeps every charge in a list, computes every count by its definition, and finds every wait by trying
//! times. It shares no arithmetic with the stores but the calendar, whose periods are tested on their own.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use super::model_count::{
    Bucket, Count, Kind, bounds, cell_micros, count_name, first, has_count, narrow, reached,
    thresholds, used_in_window, window_micros,
};
use crate::{
    clock::{Now, Timestamp, micros},
    limit::{
        Action, Algorithm, CompiledRule, Cost, Crossing, LimitSet, Outcome, Owner, RefusalReason,
        RuleState, ScopeValues, Settlement,
    },
};

/// What a limit store must answer, computed the slow way by one thread.
#[derive(Debug, Default)]
pub struct LimitModel {
    counts: HashMap<String, Count>,
}

/// What the model says about one call.
#[derive(Debug)]
#[non_exhaustive]
pub struct ModelDecision {
    /// Whether the call may pass.
    pub outcome: Outcome,
    /// The state of each rule that applied.
    pub states: Vec<RuleState>,
    /// Thresholds that the call was the first to cross.
    pub crossings: Vec<Crossing>,
    /// What was charged.
    pub receipt: ModelReceipt,
}

/// What the model charged for one call.
#[derive(Debug, Default)]
pub struct ModelReceipt {
    holds: Vec<ModelHold>,
    settled: bool,
}

impl ModelReceipt {
    /// Each rule that is held, by its place in the set, with the units charged.
    pub fn holds(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.holds.iter().map(|hold| (hold.rule, hold.amount))
    }
}

#[derive(Clone, Debug)]
struct ModelHold {
    rule: usize,
    count: String,
    amount: u64,
    period: u64,
}

/// One rule of a call.
struct Applied<'a> {
    index: usize,
    rule: &'a CompiledRule,
    count: String,
    amount: u64,
}

impl LimitModel {
    /// Decides a call and charges it.
    pub fn decide(
        &mut self,
        set: &LimitSet,
        scopes: &ScopeValues,
        cost: &Cost,
        now: Now,
    ) -> ModelDecision {
        let owner = set.owner();
        let applied: Vec<Applied<'_>> = set
            .rules()
            .iter()
            .enumerate()
            .filter(|(_, rule)| !matches!(rule.algorithm(), Algorithm::Unlimited))
            .filter_map(|(index, rule)| {
                Some(Applied {
                    index,
                    rule,
                    count: count_name(owner, rule, scopes)?,
                    amount: cost.amount(rule.unit()),
                })
            })
            .collect();
        for rule in &applied {
            self.bring_up_to_date(rule, owner, now);
        }
        let refusals: Vec<(&Applied<'_>, Option<u64>)> = applied
            .iter()
            .filter(|rule| rule.rule.refuses() && !self.passes(rule, now))
            .map(|rule| (rule, self.wait(rule, now)))
            .collect();
        if refusals.is_empty() {
            self.admit(&applied, now)
        } else {
            self.refuse(&applied, &refusals, now)
        }
    }

    fn refuse(
        &self,
        applied: &[Applied<'_>],
        refusals: &[(&Applied<'_>, Option<u64>)],
        now: Now,
    ) -> ModelDecision {
        let never = |rule: &Applied<'_>| rule.rule.limit() == 0 || rule.amount > rule.rule.limit();
        // Never before the longest wait before an unknown one; the first of equals.
        let rank = |(rule, wait): &(&Applied<'_>, Option<u64>)| match (never(rule), wait) {
            (true, _) => u64::MAX,
            (false, Some(wait)) => *wait,
            (false, None) => 0,
        };
        let mut worst = refusals.first();
        for refusal in refusals {
            if worst.is_some_and(|worst| rank(refusal) > rank(worst)) {
                worst = Some(refusal);
            }
        }
        let outcome = match worst {
            Some((rule, wait)) => Outcome::Refused {
                rule: rule.index,
                reason: if rule.amount > rule.rule.limit() {
                    RefusalReason::ExceedsCapacity
                } else {
                    RefusalReason::LimitReached
                },
                retry_after: wait.map(Duration::from_micros),
            },
            None => Outcome::Admitted { overage: false },
        };
        ModelDecision {
            outcome,
            states: applied
                .iter()
                .map(|rule| self.state(rule, now, !self.passes(rule, now)))
                .collect(),
            crossings: Vec::new(),
            receipt: ModelReceipt::default(),
        }
    }

    fn admit(&mut self, applied: &[Applied<'_>], now: Now) -> ModelDecision {
        let mut decision = ModelDecision {
            outcome: Outcome::Admitted { overage: false },
            states: Vec::new(),
            crossings: Vec::new(),
            receipt: ModelReceipt::default(),
        };
        let mut overage = false;
        for rule in applied {
            let exceeded = !self.passes(rule, now);
            let written = rule.rule.rule();
            overage |=
                exceeded && rule.amount > 0 && written.action == Action::Overage && !written.shadow;
            let before = self.used(rule, now);
            let hold = self.charge(rule, now);
            decision.states.push(self.state(rule, now, exceeded));
            let after = self.used(rule, now);
            if let Some(hold) = hold {
                if hold.amount > 0 {
                    self.tell(rule, before, after, &mut decision.crossings);
                }
                decision.receipt.holds.push(hold);
            }
        }
        decision.outcome = Outcome::Admitted { overage };
        decision
    }

    /// Makes the count if there is none, rescales a bucket and turns a quota's period.
    fn bring_up_to_date(&mut self, rule: &Applied<'_>, owner: &Owner, now: Now) {
        let now_micros = now.monotonic_micros();
        if !has_count(rule.rule) {
            return;
        }
        let count = self
            .counts
            .entry(rule.count.clone())
            .or_insert_with(|| Count {
                told: BTreeSet::new(),
                kind: match rule.rule.algorithm() {
                    Algorithm::TokenBucket { n, period, burst } => Kind::Bucket(Bucket {
                        n: u128::from(*n),
                        period: u128::from(micros(*period)),
                        burst: u128::from(*burst),
                        missing: 0,
                        at: now_micros,
                    }),
                    Algorithm::SlidingWindow { .. } => Kind::Window(Vec::new()),
                    Algorithm::SlidingLog { .. } => Kind::Log(Vec::new()),
                    Algorithm::Quota { .. } => Kind::Quota {
                        bounds: bounds(rule.rule, now.wall(), owner.billing_anchor),
                        used: 0,
                    },
                    Algorithm::Concurrency { .. } | Algorithm::Unlimited => Kind::Gauge(0),
                },
            });
        match (&mut count.kind, rule.rule.algorithm()) {
            (Kind::Bucket(bucket), Algorithm::TokenBucket { n, period, burst }) => {
                *bucket = bucket.at(now_micros).under(
                    u128::from(*n),
                    u128::from(micros(*period)),
                    u128::from(*burst),
                );
            }
            (
                Kind::Quota {
                    bounds: stored,
                    used,
                },
                _,
            ) => {
                let current = bounds(rule.rule, now.wall(), owner.billing_anchor);
                let one_before = bounds(
                    rule.rule,
                    Timestamp::from_unix_micros(stored.start.as_unix_micros().saturating_sub(1)),
                    owner.billing_anchor,
                );
                if now.wall() >= stored.end {
                    (*stored, *used) = (current, 0);
                    count.told.clear();
                } else if now.wall() < one_before.start {
                    *stored = current;
                }
            }
            _ => {}
        }
    }

    /// Units used at a time, and units left.
    fn read(&self, rule: &Applied<'_>, monotonic: u64, wall: Timestamp) -> (u64, u64) {
        let limit = rule.rule.limit();
        let Some(count) = self.counts.get(&rule.count) else {
            return (0, limit);
        };
        let used = match &count.kind {
            Kind::Bucket(bucket) => {
                let bucket = bucket.at(monotonic);
                let left = bucket.size().saturating_sub(bucket.missing) / bucket.period;
                return (narrow(bucket.missing.div_ceil(bucket.period)), narrow(left));
            }
            Kind::Window(hits) => used_in_window(rule.rule, hits, monotonic),
            Kind::Log(hits) => {
                let window = window_micros(rule.rule);
                let live = |(at, _): &&(u64, u64)| at + window > monotonic;
                hits.iter().filter(live).map(|(_, units)| units).sum()
            }
            Kind::Quota { bounds, used } if wall < bounds.end => *used,
            Kind::Quota { .. } => 0,
            Kind::Gauge(used) => *used,
        };
        (used, limit.saturating_sub(used))
    }

    fn used(&self, rule: &Applied<'_>, now: Now) -> u64 {
        self.read(rule, now.monotonic_micros(), now.wall()).0
    }

    fn passes(&self, rule: &Applied<'_>, now: Now) -> bool {
        self.passes_at(rule, now.monotonic_micros(), now.wall())
    }

    fn passes_at(&self, rule: &Applied<'_>, monotonic: u64, wall: Timestamp) -> bool {
        let limit = rule.rule.limit();
        if limit == 0 || rule.amount > limit {
            return false;
        }
        let (used, left) = self.read(rule, monotonic, wall);
        if let Some(Count {
            kind: Kind::Bucket(bucket),
            ..
        }) = self.counts.get(&rule.count)
        {
            // A unit counts as used as soon as a part of it is, so the bucket itself is asked.
            let bucket = bucket.at(monotonic);
            let asked = u128::from(rule.amount) * bucket.period;
            return bucket.missing + asked <= bucket.size();
        }
        used <= limit && rule.amount <= left
    }

    /// The shortest wait after which the call passes, found by trying.
    fn wait(&self, rule: &Applied<'_>, now: Now) -> Option<u64> {
        first(now, |monotonic, wall| self.passes_at(rule, monotonic, wall))
    }

    fn window(&self, rule: &Applied<'_>) -> Option<Duration> {
        if !has_count(rule.rule) {
            return None;
        }
        match rule.rule.algorithm() {
            Algorithm::TokenBucket { n, period, burst } => {
                let micros = (u128::from(*burst) * period.as_micros()).div_ceil(u128::from(*n));
                Some(Duration::from_micros(
                    u64::try_from(micros).unwrap_or(u64::MAX),
                ))
            }
            Algorithm::SlidingWindow { window, .. } | Algorithm::SlidingLog { window, .. } => {
                Some(*window)
            }
            _ => match &self.counts.get(&rule.count)?.kind {
                Kind::Quota { bounds, .. } => Some(bounds.end.saturating_since(bounds.start)),
                _ => None,
            },
        }
    }

    fn state(&self, rule: &Applied<'_>, now: Now, exceeded: bool) -> RuleState {
        let (used, left) = if has_count(rule.rule) {
            self.read(rule, now.monotonic_micros(), now.wall())
        } else {
            (0, 0)
        };
        let mut reset = first(now, |monotonic, wall| {
            self.read(rule, monotonic, wall).1 > left
        });
        if let Some(Count {
            kind: Kind::Quota { bounds, used },
            ..
        }) = self.counts.get(&rule.count)
        {
            // Also for a limit of zero, which never has units left.
            reset = (*used > 0).then(|| micros(bounds.end.saturating_since(now.wall())));
        }
        if !has_count(rule.rule) {
            reset = None;
        }
        let mut state = RuleState::new(
            rule.index,
            rule.rule.limit(),
            left,
            reset.map(Duration::from_micros),
        )
        .over(self.window(rule));
        state.exceeded = exceeded;
        state.threshold = thresholds(rule.rule)
            .filter(|percent| reached(*percent, used, rule.rule.limit()))
            .max()
            .unwrap_or(0);
        state
    }

    fn charge(&mut self, rule: &Applied<'_>, now: Now) -> Option<ModelHold> {
        let monotonic = now.monotonic_micros();
        if !has_count(rule.rule) {
            return None;
        }
        let count = self.counts.get_mut(&rule.count)?;
        let mut amount = rule.amount;
        let period = match &mut count.kind {
            Kind::Bucket(bucket) => {
                amount = bucket.charge(amount);
                monotonic
            }
            Kind::Window(hits) => {
                let cell = monotonic / cell_micros(rule.rule);
                hits.push((cell, amount));
                cell
            }
            Kind::Log(hits) => {
                hits.push((monotonic, amount));
                monotonic
            }
            Kind::Quota { bounds, used } => {
                *used += amount;
                bounds.start.as_unix_micros()
            }
            Kind::Gauge(used) => {
                *used += amount;
                0
            }
        };
        Some(ModelHold {
            rule: rule.index,
            count: rule.count.clone(),
            amount,
            period,
        })
    }

    fn tell(&mut self, rule: &Applied<'_>, before: u64, after: u64, told: &mut Vec<Crossing>) {
        let Some(count) = self.counts.get_mut(&rule.count) else {
            return;
        };
        let limit = rule.rule.limit();
        let is_quota = matches!(count.kind, Kind::Quota { .. });
        let lowest = thresholds(rule.rule).min();
        if !is_quota
            && lowest.is_some_and(|lowest| {
                !reached(lowest, before, limit) && reached(lowest, after, limit)
            })
        {
            count.told.clear();
        }
        let all: BTreeSet<u8> = thresholds(rule.rule).collect();
        for percent in all {
            let passed_before = !is_quota && reached(percent, before, limit);
            if reached(percent, after, limit) && !passed_before && count.told.insert(percent) {
                told.push(Crossing::new(rule.index, percent, after, limit));
            }
        }
    }

    /// Ends a charge.
    pub fn settle(
        &mut self,
        set: &LimitSet,
        now: Now,
        receipt: &mut ModelReceipt,
        settlement: &Settlement,
    ) {
        if std::mem::replace(&mut receipt.settled, true) {
            return;
        }
        for hold in &receipt.holds {
            let Some(rule) = set.rules().get(hold.rule) else {
                continue;
            };
            let kept = match (settlement, rule.algorithm()) {
                (_, Algorithm::Concurrency { .. })
                | (Settlement::Cancel, _)
                | (Settlement::Refund | Settlement::Waive(_), Algorithm::Quota { .. }) => 0,
                (Settlement::Actual(cost) | Settlement::Waive(cost), _) => cost.amount(rule.unit()),
                (Settlement::Refund, _) => hold.amount,
            };
            let Some(count) = self.counts.get_mut(&hold.count) else {
                continue;
            };
            let (back, more) = (
                hold.amount.saturating_sub(kept),
                kept.saturating_sub(hold.amount),
            );
            if (back, more) == (0, 0) {
                continue;
            }
            match &mut count.kind {
                Kind::Bucket(bucket) => {
                    *bucket = bucket.at(now.monotonic_micros());
                    if let Algorithm::TokenBucket { n, period, burst } = rule.algorithm() {
                        let period = u128::from(micros(*period));
                        *bucket = bucket.under(u128::from(*n), period, u128::from(*burst));
                    }
                    let age = u128::from(now.monotonic_micros().saturating_sub(hold.period));
                    if age < bucket.size().div_ceil(bucket.n) {
                        let back = u128::from(back) * bucket.period;
                        bucket.missing = bucket.missing.saturating_sub(back);
                    }
                    bucket.charge(more);
                }
                Kind::Window(hits) | Kind::Log(hits) => {
                    let mut back = back;
                    for (_, units) in hits.iter_mut().filter(|(at, _)| *at == hold.period) {
                        let given = back.min(*units);
                        *units -= given;
                        back -= given;
                    }
                    hits.push((hold.period, more));
                }
                Kind::Quota { bounds, used } => {
                    if bounds.start.as_unix_micros() == hold.period {
                        *used = used.saturating_sub(back) + more;
                    }
                }
                Kind::Gauge(used) => *used = used.saturating_sub(back) + more,
            }
        }
    }
}
