//! Limits, decided in memory.

use std::{sync::Arc, time::Duration};

use tollgate::{
    clock::{Clock, ManualClock},
    id::TenantId,
    limit::*,
};

/// One tenant's rules on a store of its own, under a clock that stands still.
struct Bench {
    store: Arc<dyn LimitStore>,
    clock: ManualClock,
    set: Arc<LimitSet>,
    scopes: ScopeValues,
}

impl Bench {
    fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        Self {
            store: Arc::new(MemoryLimits::new()),
            clock: ManualClock::default(),
            set: set(rules),
            scopes: ScopeValues::default(),
        }
    }

    fn take(&self, cost: Cost) -> Decision {
        let call = LimitCall::new(&self.set, &self.scopes, &cost, self.clock.now());
        self.store.try_decide(&call).unwrap().unwrap()
    }

    fn one(&self) -> bool {
        self.take(Cost::default()).is_admitted()
    }
}

fn set(rules: impl IntoIterator<Item = Rule>) -> Arc<LimitSet> {
    let owner = Owner::tenant(TenantId::new("acme").unwrap());
    Arc::new(LimitSet::new(owner, RuleSet::compile(rules).unwrap()))
}

#[test]
fn refuses_the_request_after_the_burst_is_spent() {
    let bench = Bench::new([Rate::per_second(5).burst(10).into()]);
    assert_eq!((0..20).filter(|_| bench.one()).count(), 10);
    bench.clock.advance(Duration::from_secs(1));
    assert_eq!((0..20).filter(|_| bench.one()).count(), 5);
}

#[test]
fn refuses_the_request_after_the_quota_is_spent() {
    let bench = Bench::new([Quota::monthly(3).into(), Rate::per_second(100).into()]);
    assert_eq!((0..20).filter(|_| bench.one()).count(), 3);
    bench.clock.advance(Duration::from_secs(31 * 86_400));
    assert_eq!((0..20).filter(|_| bench.one()).count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_passes_the_conformance_suite() {
    let store = Arc::new(MemoryLimits::new());
    tollgate::conformance::limit_store(store, &ManualClock::default()).await;
}
