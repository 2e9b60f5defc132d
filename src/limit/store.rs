//! Where counts live.

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;

use super::{
    compile::{CompiledAlgorithm, CompiledRule},
    cost::Cost,
    decision::{Decision, Receipt},
    set::{LimitSet, ScopeValues},
};
use crate::clock::Now;

/// One call to be decided.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LimitCall<'a> {
    /// The rules and their owner.
    pub set: &'a Arc<LimitSet>,
    /// Values for the scopes that the owner does not fix.
    pub scopes: &'a ScopeValues,
    /// What the call takes.
    pub cost: &'a Cost,
    /// The time of the call. A store with a clock of its own, such as Redis, uses that one.
    pub now: Now,
}

impl<'a> LimitCall<'a> {
    /// A call from its parts.
    #[must_use]
    pub const fn new(
        set: &'a Arc<LimitSet>,
        scopes: &'a ScopeValues,
        cost: &'a Cost,
        now: Now,
    ) -> Self {
        Self {
            set,
            scopes,
            cost,
            now,
        }
    }

    /// The same call, owned.
    #[must_use]
    pub fn to_owned(&self) -> OwnedLimitCall {
        OwnedLimitCall {
            set: Arc::clone(self.set),
            scopes: self.scopes.clone(),
            cost: self.cost.clone(),
            now: self.now,
        }
    }
}

/// One call to be decided, owned, for a decision that takes a trip.
#[derive(Clone, Debug)]
pub struct OwnedLimitCall {
    set: Arc<LimitSet>,
    scopes: ScopeValues,
    cost: Cost,
    now: Now,
}

impl OwnedLimitCall {
    /// The same call, borrowed.
    #[must_use]
    pub const fn as_call(&self) -> LimitCall<'_> {
        LimitCall {
            set: &self.set,
            scopes: &self.scopes,
            cost: &self.cost,
            now: self.now,
        }
    }
}

/// How a charge ends.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settlement {
    /// The call took this much: more than was held is charged, even above the limit; less is given back.
    /// Concurrency slots are released.
    Actual(Cost),
    /// The call failed on the service's side or was refused behind the limit: quotas get everything back,
    /// rates and windows keep the charge, concurrency slots are released.
    Refund,
    /// The call took this much, and its quotas are not charged for it: quotas get everything back, rates and
    /// windows are settled as by [`Actual`](Self::Actual), concurrency slots are released.
    Waive(Cost),
    /// The call never happened: every rule gets everything back.
    Cancel,
}

impl Settlement {
    /// What a rule's charge of `held` units changes by: the units that it gets back, and the units that it is
    /// charged more. One of them is zero.
    pub(super) fn change(&self, rule: &CompiledRule, held: u64) -> (u64, u64) {
        match (self, rule.compiled()) {
            (_, CompiledAlgorithm::Concurrency(_))
            | (Self::Cancel, _)
            | (Self::Refund | Self::Waive(_), CompiledAlgorithm::Quota(_)) => (held, 0),
            (Self::Refund, _) => (0, 0),
            (Self::Actual(cost) | Self::Waive(cost), _) => {
                let actual = cost.amount(rule.unit());
                (held.saturating_sub(actual), actual.saturating_sub(held))
            }
        }
    }
}

/// The store gave no usable answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LimitStoreError {
    /// The store cannot be reached, or said that it cannot serve now. Nothing was charged.
    #[error("the limit store is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store was asked and no answer came: the call may have been charged. Never repeated.
    #[error("the limit store gave no answer, the charge is unknown")]
    Indeterminate(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store holds something that is not a count of this rule.
    #[error("the limit store holds a value that is not a count")]
    Corrupt(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Decides calls and keeps their counts.
///
/// # Contract
///
/// - **Atomic**: over all rules of a call, either all pass and all are charged, or none is charged. A refused
///   call changes nothing: no count, no lifetime, no other rule.
/// - **Linear**: concurrent calls are decided as if one after the other; N calls that race for a limit of M
///   admit exactly min(N, M).
/// - Rules of [`Action::Warn`](super::Action::Warn) and [`Action::Overage`](super::Action::Overage) and shadow
///   rules never refuse; they are charged above their limit.
/// - A rule that [does not apply](super::CompiledRule::applies_to) to the call takes no part in its decision.
/// - A cost of zero changes nothing. A limit of zero refuses everything; a cost above the capacity is refused
///   with [`RefusalReason::ExceedsCapacity`](super::RefusalReason::ExceedsCapacity).
/// - Refusal is data, failure is an error.
/// - A decision that starts after [`settle`](Self::settle) has returned, through the same handle, observes it.
///
/// `conformance::limit_store` tests an implementation against a plain model.
#[async_trait]
pub trait LimitStore: Debug + Send + Sync + 'static {
    /// Decides without waiting, or `None` when the answer needs a trip. Must not block.
    fn try_decide(&self, call: &LimitCall<'_>) -> Option<Result<Decision, LimitStoreError>>;

    /// Decides, with a trip where needed.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may or may not have charged; it never leaves a part of a decision charged.
    ///
    /// # Errors
    ///
    /// [`LimitStoreError`] when the store gave no usable answer.
    async fn decide(self: Arc<Self>, call: OwnedLimitCall) -> Result<Decision, LimitStoreError>;

    /// Ends a charge. Never waits: a store that needs a trip queues it. Idempotent by receipt; what the
    /// window of the charge no longer holds is left alone; a bucket never rises above its capacity, gets
    /// nothing back that was charged a whole refill ago, and counts the units by the numbers that they were
    /// charged by, also after a change of plan. `call` has the set and the scopes of the decision and the time
    /// of the settlement.
    fn settle(&self, call: &LimitCall<'_>, receipt: &Receipt, settlement: &Settlement);
}

#[async_trait]
impl<T: LimitStore + ?Sized> LimitStore for Arc<T> {
    fn try_decide(&self, call: &LimitCall<'_>) -> Option<Result<Decision, LimitStoreError>> {
        (**self).try_decide(call)
    }

    async fn decide(self: Arc<Self>, call: OwnedLimitCall) -> Result<Decision, LimitStoreError> {
        Self::clone(&self).decide(call).await
    }

    fn settle(&self, call: &LimitCall<'_>, receipt: &Receipt, settlement: &Settlement) {
        (**self).settle(call, receipt, settlement);
    }
}
