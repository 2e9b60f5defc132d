//! Limits behind a trip.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use tollgate::limit::{
    Decision, LimitCall, LimitStore, LimitStoreError, MemoryLimits, OwnedLimitCall, Receipt,
    Settlement,
};

use crate::common::far_stores::trip;

/// Charges when its trip ends, and counts what it charged and settled.
#[derive(Debug, Default)]
pub(super) struct SlowLimits {
    store: MemoryLimits,
    pub(super) n_charged: AtomicUsize,
    pub(super) n_settled: AtomicUsize,
}

#[async_trait]
impl LimitStore for SlowLimits {
    fn try_decide(&self, _: &LimitCall<'_>) -> Option<Result<Decision, LimitStoreError>> {
        None
    }

    async fn decide(self: Arc<Self>, call: OwnedLimitCall) -> Result<Decision, LimitStoreError> {
        trip().await;
        let decision = Arc::new(&self.store)
            .try_decide(&call.as_call())
            .expect("counts in memory are at hand");
        if decision.as_ref().is_ok_and(Decision::is_admitted) {
            self.n_charged.fetch_add(1, Ordering::SeqCst);
        }
        decision
    }

    fn settle(&self, call: &LimitCall<'_>, receipt: &Receipt, settlement: &Settlement) {
        self.n_settled.fetch_add(1, Ordering::SeqCst);
        self.store.settle(call, receipt, settlement);
    }
}
