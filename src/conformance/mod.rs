//! Test suites for your own implementations of this crate's traits.
//!
//! Each function takes an implementation and panics with the difference when it does not keep its trait's
//! contract. The stores of this crate pass the same functions.
//!
//! 1. Make the store, empty, and something that moves its time: a [`ManualClock`](crate::clock::ManualClock)
//!    for a store that takes the time from the call, an implementation of [`LimitClock`] for one that has a
//!    clock of its own.
//! 2. Call [`limit_store`], [`key_store`], [`tenant_store`] or, with the feature `billing`, `event_ledger` and
//!    `account_store` from a test on a multi-thread tokio runtime.
//!
//! ```
//! use std::sync::Arc;
//! use tollgate::{clock::ManualClock, conformance, limit::MemoryLimits};
//!
//! # tokio::runtime::Builder::new_multi_thread().build().unwrap().block_on(async {
//! let store = Arc::new(MemoryLimits::new());
//! conformance::limit_store(store, &ManualClock::default()).await;
//! conformance::key_store(|| async { tollgate::auth::MemoryKeyStore::new() }).await;
//! # });
//! ```

#[cfg(feature = "billing")]
mod event_ledger;
mod key_store;
mod limit_model;
mod limit_store;
mod model_count;
mod tenant_store;

#[cfg(feature = "billing")]
#[cfg_attr(docsrs, doc(cfg(feature = "billing")))]
pub use self::event_ledger::{account_store, event_ledger};
pub use self::{
    key_store::key_store,
    limit_model::{LimitModel, ModelDecision, ModelReceipt},
    limit_store::{
        LimitClock, limit_store, limit_store_admits_exactly_the_limit_under_races,
        limit_store_follows_the_model,
    },
    tenant_store::tenant_store,
};

/// The value, or a panic that says which call failed and how.
#[expect(
    clippy::panic,
    reason = "a suite reports a failure by a panic, as a test does"
)]
fn expect<T, E: std::fmt::Debug>(result: Result<T, E>, call: &str) -> T {
    result.unwrap_or_else(|error| panic!("`{call}` failed: {error:?}"))
}
