//! Limits, decided in memory. The numbers in `fault_NN_` names are those of one list of known faults of rate
//! limiters. What the list says of scripts and servers (7 to 10, 21, 25, 29 to 34) has its tests with the stores
//! that have them; what it says of HTTP (42 to 48) is tested in `limit_layer` and `gate`.

mod calendar;
mod cost;
mod memory;
mod numbers;
mod plan_change;
mod races;
mod routes;
mod settle;
mod thresholds;
mod time;
mod windows;

use std::{sync::Arc, time::Duration};

use tollgate::{
    clock::{Clock, ManualClock, Now, Timestamp},
    id::TenantId,
    limit::{
        Cost, Decision, LimitCall, LimitSet, LimitStore, LimitStoreError, MemoryLimits, Outcome,
        Owner, Quota, Rate, RefusalReason, Rule, RuleSet, ScopeValues, Settlement,
    },
};

const SECOND: Duration = Duration::from_secs(1);
const MICRO: Duration = Duration::from_micros(1);

/// One tenant's rules on a store of its own, under a clock that stands still.
struct Bench {
    store: Arc<MemoryLimits>,
    clock: ManualClock,
    set: Arc<LimitSet>,
    scopes: ScopeValues,
}

impl Bench {
    fn new(rules: impl IntoIterator<Item = impl Into<Rule>>) -> Self {
        Self {
            store: Arc::new(MemoryLimits::new()),
            clock: ManualClock::default(),
            set: set(rules),
            scopes: ScopeValues::default(),
        }
    }

    /// The same tenant under another plan.
    fn change_plan(&mut self, rules: impl IntoIterator<Item = impl Into<Rule>>) {
        self.set = set(rules);
    }

    fn decide_at(&self, cost: u64, now: Now) -> Decision {
        try_decide(&self.store, &self.set, &self.scopes, cost, now).unwrap()
    }

    fn decide(&self, cost: u64) -> Decision {
        self.decide_at(cost, self.clock.now())
    }

    fn passes(&self, cost: u64) -> bool {
        self.decide(cost).is_admitted()
    }

    /// How many of `n` calls pass.
    fn admits(&self, n: usize) -> usize {
        (0..n).filter(|_| self.passes(1)).count()
    }

    /// What is left of the first rule.
    fn left(&self) -> u64 {
        self.decide(0).states[0].remaining
    }

    fn settle(&self, decision: &Decision, settlement: &Settlement) {
        let cost = Cost::default();
        let call = LimitCall::new(&self.set, &self.scopes, &cost, self.clock.now());
        self.store.settle(&call, &decision.receipt, settlement);
    }
}

fn try_decide(
    store: &MemoryLimits,
    set: &Arc<LimitSet>,
    scopes: &ScopeValues,
    cost: u64,
    now: Now,
) -> Result<Decision, LimitStoreError> {
    let cost = Cost::requests(cost);
    let call = LimitCall::new(set, scopes, &cost, now);
    store.try_decide(&call).expect("memory answers at once")
}

fn acme() -> Owner {
    Owner::tenant(TenantId::new("acme").unwrap())
}

fn set(rules: impl IntoIterator<Item = impl Into<Rule>>) -> Arc<LimitSet> {
    Arc::new(LimitSet::new(acme(), RuleSet::compile(rules).unwrap()))
}

fn retry_after(decision: &Decision) -> Option<Duration> {
    match decision.outcome {
        Outcome::Refused { retry_after, .. } => retry_after,
        _ => panic!("the call passed"),
    }
}

fn reason(decision: &Decision) -> RefusalReason {
    match decision.outcome {
        Outcome::Refused { reason, .. } => reason,
        _ => panic!("the call passed"),
    }
}

fn at(text: &str) -> Timestamp {
    Timestamp::from(text.parse::<jiff::Timestamp>().unwrap())
}

#[test]
fn refuses_the_request_after_the_burst_is_spent() {
    let bench = Bench::new([Rate::per_second(5).burst(10)]);
    assert_eq!(bench.admits(20), 10);
    bench.clock.advance(SECOND);
    assert_eq!(bench.admits(20), 5);
}

#[test]
fn refuses_the_request_after_the_quota_is_spent() {
    let bench = Bench::new([Rule::from(Quota::monthly(3)), Rate::per_second(100).into()]);
    assert_eq!(bench.admits(20), 3);
    bench.clock.advance(SECOND * 31 * 86_400);
    assert_eq!(bench.admits(20), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_passes_the_conformance_suite() {
    let store = Arc::new(MemoryLimits::new());
    tollgate::conformance::limit_store(store, &ManualClock::default()).await;
}

#[tokio::test]
async fn memory_agrees_with_the_model_on_long_histories() {
    for seed in 1_000..1_250 {
        let store = Arc::new(MemoryLimits::new());
        let clock = ManualClock::default();
        tollgate::conformance::limit_store_follows_the_model(store, &clock, seed, 300).await;
    }
}
