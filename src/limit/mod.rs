//! May this call pass.

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
mod layer;
mod memory;
mod quota;
mod reading;
mod refusal;
mod rule;
mod service;
mod set;
mod sliding_window;
mod store;
mod subject;
mod token_bucket;

pub use self::{
    charge::LimitBody,
    compile::{CompiledAlgorithm, CompiledRule, Threshold},
    concurrency::ConcurrencyParameters,
    cost::{Cost, CostOf},
    decision::{Crossing, Decision, Hold, Outcome, Receipt, RefusalReason, RuleState},
    future::ResponseFuture,
    headers::HeaderStyle,
    hook::{LimitDegraded, LimitKey, LogThresholds, ThresholdEvent, ThresholdSink},
    layer::LimitLayer,
    memory::MemoryLimits,
    quota::{PeriodBounds, QuotaParameters},
    reading::{Reading, Wait},
    rule::{
        Action, Algorithm, Concurrency, Edge, OnStoreFailure, Period, Quota, Rate, Rule, Scope,
        Unit, Window,
    },
    service::Limit,
    set::{LimitSet, Owner, RuleSet, ScopeValues},
    sliding_window::{LogParameters, WindowParameters},
    store::{LimitCall, LimitStore, LimitStoreError, OwnedLimitCall, Settlement},
    subject::{ByIdentity, ByKey, EveryCall, FindSubject, Subject},
    token_bucket::BucketParameters,
};
