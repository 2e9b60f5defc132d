//! May this call pass.

mod compile;
mod cost;
mod decision;
mod rule;
mod set;
mod store;

pub use self::{
    compile::CompiledRule,
    cost::{Cost, CostOf},
    decision::{Crossing, Decision, Hold, Outcome, Receipt, RefusalReason, RuleState},
    rule::{
        Action, Algorithm, Concurrency, Edge, OnStoreFailure, Period, Quota, Rate, Rule, Scope,
        Unit, Window,
    },
    set::{LimitSet, Owner, RuleSet, ScopeValues},
    store::{LimitCall, LimitStore, LimitStoreError, OwnedLimitCall, Settlement},
};
