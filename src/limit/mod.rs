//! May this call pass.

mod compile;
mod concurrency;
mod cost;
mod decision;
mod document;
mod memory;
mod quota;
mod reading;
mod rule;
mod set;
mod sliding_window;
mod store;
mod token_bucket;

pub use self::{
    compile::{CompiledAlgorithm, CompiledRule, Threshold},
    concurrency::ConcurrencyParameters,
    cost::{Cost, CostOf},
    decision::{Crossing, Decision, Hold, Outcome, Receipt, RefusalReason, RuleState},
    memory::MemoryLimits,
    quota::{PeriodBounds, QuotaParameters},
    reading::{Reading, Wait},
    rule::{
        Action, Algorithm, Concurrency, Edge, OnStoreFailure, Period, Quota, Rate, Rule, Scope,
        Unit, Window,
    },
    set::{LimitSet, Owner, RuleSet, ScopeValues},
    sliding_window::{LogParameters, WindowParameters},
    store::{LimitCall, LimitStore, LimitStoreError, OwnedLimitCall, Settlement},
    token_bucket::BucketParameters,
};
