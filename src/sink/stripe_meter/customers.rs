use std::{
    collections::HashMap,
    error::Error,
    fmt::Debug,
    hash::{BuildHasher, Hash},
    sync::Arc,
};

use async_trait::async_trait;

use crate::id::TenantId;

/// Says which customer of Stripe's a tenant is.
///
/// # Contract
///
/// The same answer for the same tenant, as long as usage of it is on its way: the customer of an event that was offered
/// before must not change.
#[async_trait]
pub trait StripeCustomers: Debug + Send + Sync + 'static {
    /// The tenant's customer id, such as `cus_NffrFeUfNV2Hib`; `None` for a tenant that has none, whose usage is
    /// rejected. Put a [`Filter`](crate::sink::Filter) before the sink for tenants who are not billed.
    ///
    /// # Errors
    ///
    /// Whatever kept it from being known: the tenant's usage is offered again.
    async fn customer(
        &self,
        tenant: &TenantId,
    ) -> Result<Option<Arc<str>>, Box<dyn Error + Send + Sync>>;
}

#[async_trait]
impl<S> StripeCustomers for HashMap<TenantId, Arc<str>, S>
where
    S: BuildHasher + Send + Sync + 'static,
    TenantId: Hash,
{
    async fn customer(
        &self,
        tenant: &TenantId,
    ) -> Result<Option<Arc<str>>, Box<dyn Error + Send + Sync>> {
        Ok(self.get(tenant).cloned())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: StripeCustomers + ?Sized> StripeCustomers for Arc<T> {
    async fn customer(
        &self,
        tenant: &TenantId,
    ) -> Result<Option<Arc<str>>, Box<dyn Error + Send + Sync>> {
        (**self).customer(tenant).await
    }
}
