//! May this call pass.
//!
//! A decision is made in this order:
//!
//! 1. [`RuleSet::compile`] checks rules once, when a plan or a layer is built, and turns them into integers.
//! 2. A [`LimitSet`] binds them to their [`Owner`]: a tenant in one environment, and perhaps one of its keys.
//!    It is kept with the caller's identity, so that a decision formats nothing.
//! 3. A [`LimitStore`] decides a [`LimitCall`] over all its rules in one atomic step: all pass and all are
//!    charged, or the call is refused and nothing is. [`MemoryLimits`] does so within this process.
//! 4. The [`Decision`] says whether the call passes, how each rule stands, and holds a [`Receipt`] of what was
//!    charged. After the call [`LimitStore::settle`] charges the difference or gives back.
//!
//! # Which algorithm
//!
//! | rule | for | in the worst window of length W it admits |
//! | --- | --- | --- |
//! | [`Rate`], a token bucket with burst b and rate r | protecting a service | b + r·W |
//! | [`Window`] | "at most L in any minute", promised | L; close to 2L when [`smooth`](Window::smooth) |
//! | [`Window::exact_log`] | the same for small L, to the microsecond | L |
//! | [`Quota`] | what was bought, by calendar period | close to 2L around the edge of two periods |
//! | [`Concurrency`] | calls in flight | L at every instant |
//!
//! # Time, numbers, edges
//!
//! Everything is an integer and time is counted in microseconds; 7 per minute does not drift. An instant at the
//! edge of two windows belongs to the new one. A wait is exact: the call passes after exactly
//! `retry_after`, and not a microsecond before, if nothing else comes in between. A limit of zero refuses
//! every call, and a call that costs more than the limit is refused for ever; neither has a `retry_after`. A
//! call of cost zero peeks.
//!
//! # Deployment
//!
//! Counts in memory are counts of one process: behind a load balancer with n processes a tenant gets up to n
//! times its limits. Use a shared store there.
//!
//! # Example
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use tollgate::{
//!     clock::{Clock, ManualClock},
//!     id::TenantId,
//!     limit::{
//!         Cost, LimitCall, LimitSet, LimitStore, MemoryLimits, Outcome, Owner, Quota, Rate, Rule,
//!         RuleSet, ScopeValues,
//!     },
//! };
//!
//! let rules = RuleSet::compile([
//!     Rule::from(Rate::per_second(2)),
//!     Quota::monthly(1_000).thresholds([80, 100]),
//! ])?;
//! let set = Arc::new(LimitSet::new(Owner::tenant(TenantId::new("acme")?), rules));
//! let store = MemoryLimits::new();
//! let clock = ManualClock::default();
//! let decide = || {
//!     let (scopes, cost) = (ScopeValues::default(), Cost::default());
//!     let call = LimitCall::new(&set, &scopes, &cost, clock.now());
//!     store.try_decide(&call).expect("memory answers at once")
//! };
//!
//! assert!(decide()?.is_admitted());
//! assert!(decide()?.is_admitted());
//! let refused = decide()?;
//! assert!(matches!(
//!     refused.outcome,
//!     Outcome::Refused { rule: 0, retry_after: Some(wait), .. } if wait == Duration::from_millis(500)
//! ));
//! assert_eq!(refused.states[1].remaining, 998, "the quota was not charged");
//!
//! clock.advance(Duration::from_millis(500));
//! assert!(decide()?.is_admitted());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod charge;
mod compile;
mod concurrency;
mod cost;
mod decision;
mod document;
mod fallback;
mod future;
mod headers;
mod hook;
mod kinds;
mod layer;
mod memory;
mod quota;
mod reading;
#[cfg(feature = "redis")]
mod redis_store;
mod refusal;
mod rule;
mod service;
mod set;
mod sliding_window;
mod snapshot;
mod step;
mod store;
mod subject;
mod text;
mod token_bucket;
mod verdict;

#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use self::redis_store::{
    Lease, LostQuota, QuotaTotals, RedisLimits, RedisLimitsBuilder, RedisLimitsError,
};
pub(crate) use self::{
    charge::Charge,
    step::{Refused, Step, Trip},
};
pub use self::{
    charge::LimitBody,
    compile::{CompiledAlgorithm, CompiledRule, Threshold},
    concurrency::ConcurrencyParameters,
    cost::{Cost, CostOf},
    decision::{
        Crossing, Decision, Hold, Holds, Outcome, Receipt, RefusalReason, RuleState, RuleStates,
    },
    future::ResponseFuture,
    headers::HeaderStyle,
    hook::{LimitDegraded, LimitKey, LogThresholds, ThresholdEvent, ThresholdSink},
    kinds::{Concurrency, Quota, Rate, Window},
    layer::LimitLayer,
    memory::MemoryLimits,
    quota::{PeriodBounds, QuotaParameters},
    reading::{Reading, Wait},
    rule::{Action, Algorithm, Edge, OnStoreFailure, Period, Rule, Scope, Unit},
    service::Limit,
    set::{LimitSet, Owner, RuleSet, ScopeValues},
    sliding_window::{LogParameters, WindowParameters},
    snapshot::{
        LoadedFrom, OnDamage, QuotaSnapshot, QuotaSnapshotBuilder, SnapshotError, SnapshotLoad,
    },
    store::{LimitCall, LimitStore, LimitStoreError, OwnedLimitCall, Settlement},
    subject::{ByIdentity, ByKey, EveryCall, FindSubject, Subject},
    token_bucket::BucketParameters,
};
