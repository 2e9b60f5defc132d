//! The tenant of the running task, for code that no request reaches.

use super::Tenant;

tokio::task_local! {
    pub(crate) static CURRENT: Tenant;
}

/// The tenant for whom the running task works, where `TenantLayer::task_local` is on or [`with_tenant`] set
/// one.
///
/// A convenience for logging and for code far from the request. Decisions are made from the request's own
/// identity, never from this. A task that is spawned does not inherit it: hand the tenant over with
/// [`with_tenant`]. It is not set either while a response body streams.
#[must_use]
pub fn current_tenant() -> Option<Tenant> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Runs a future for a tenant: [`current_tenant`] answers with it inside, and nowhere else.
///
/// ```
/// use std::sync::Arc;
/// use tollgate::id::{PlanName, TenantId};
/// use tollgate::tenant::{Tenant, TenantRecord, current_tenant, with_tenant};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let record = TenantRecord::new(TenantId::new("acme")?, PlanName::new("free")?);
/// let tenant = Tenant::new(Arc::new(record));
/// let task = tokio::spawn(with_tenant(tenant, async { current_tenant() }));
/// assert_eq!(task.await.unwrap().unwrap().id().as_str(), "acme");
/// assert!(current_tenant().is_none());
/// # Ok::<(), tollgate::id::InvalidId>(())
/// # }).unwrap();
/// ```
pub async fn with_tenant<F: Future>(tenant: Tenant, future: F) -> F::Output {
    CURRENT.scope(tenant, future).await
}
