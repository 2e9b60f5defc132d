//! Who is calling: the tenant, its plan's name and the state of its payments.
//!
//! A [`Tenant`] is a cheap handle to its record. What it may do follows from its [`AccessState`] and the time,
//! evaluated when it is read, so that no scheduled job is needed:
//!
//! | state | GET, HEAD, OPTIONS | everything else |
//! | --- | --- | --- |
//! | active | passes | passes |
//! | grace, until its deadline | passes, `Tollgate-Access: grace` | passes, `Tollgate-Access: grace` |
//! | read-only | passes, `Tollgate-Access: read-only` | 402 `read_only` |
//! | suspended | 402 `payment_required` | 402 `payment_required` |
//! | closed | 401 `account_closed` | 401 `account_closed` |
//!
//! The layer that enforces it stands with the other layers of a known caller, in
//! [`identity`](crate::identity). With the `axum` feature a handler takes a `Tenant` as an argument.
//!
//! ```
//! use http::Method;
//! use std::time::Duration;
//! use tollgate::clock::{Clock, ManualClock};
//! use tollgate::tenant::{Access, AccessState};
//!
//! let clock = ManualClock::default();
//! let until = clock.now().wall().saturating_add(Duration::from_secs(60));
//! let state = AccessState::Grace { until, suspend_at: None };
//! assert_eq!(state.access(&Method::POST, clock.now().wall()), Access::Grace);
//!
//! clock.advance(Duration::from_secs(60));
//! let now = clock.now().wall();
//! assert_eq!(state.access(&Method::GET, now), Access::ReadOnlyAllowed);
//! assert_eq!(state.access(&Method::POST, now), Access::ReadOnlyRefused);
//! ```

mod access;
mod document;
mod memory_store;
#[cfg(feature = "postgres")]
mod postgres_store;
mod record;
#[cfg(feature = "redis")]
mod redis_store;
#[cfg(feature = "postgres")]
mod row_level_security;
mod store;
mod task_local;
#[expect(
    clippy::module_inception,
    reason = "the room is named after its main type"
)]
mod tenant;

pub(crate) use self::document::TenantEntry;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use self::redis_store::RedisTenantStore;
pub use self::{
    access::{Access, AccessState},
    document::TenantDocument,
    memory_store::MemoryTenantStore,
    record::TenantRecord,
    store::{TenantListener, TenantStore, TenantStoreError},
    task_local::{current_tenant, with_tenant},
    tenant::Tenant,
};
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use self::{postgres_store::PostgresTenantStore, row_level_security::RowLevelSecurity};

pub(crate) use self::task_local::CURRENT;
