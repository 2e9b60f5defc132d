use std::sync::Arc;

use crate::{
    id::{PlanName, TenantId},
    plan::PlanCatalog,
    tenant::{AccessState, Tenant, TenantRecord, TenantStore, TenantStoreError},
};

/// Finds tenants and changes what they bought and may do. Not for the request path.
///
/// A change takes effect on the tenant's next call, where the store announces changes.
#[derive(Clone, Debug)]
pub struct Tenants {
    catalog: PlanCatalog,
    store: Arc<dyn TenantStore>,
}

/// A tenant was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TenantsError {
    /// The tenant store failed, or has no such tenant.
    #[error("the tenant store did not do it")]
    Store(#[from] TenantStoreError),
    /// The catalog has no such plan.
    #[error("the catalog has no plan `{plan}`")]
    UnknownPlan {
        /// The plan that was named.
        plan: PlanName,
    },
}

/// How often a change is repeated because others changed the record meanwhile.
const MAX_TRIES: usize = 16;

impl Tenants {
    /// Tenants in this store, on plans of this catalog.
    #[must_use]
    pub const fn new(store: Arc<dyn TenantStore>, catalog: PlanCatalog) -> Self {
        Self { catalog, store }
    }

    /// The tenant, `None` when there is no such one.
    ///
    /// # Errors
    ///
    /// [`TenantsError::Store`] when the store failed.
    pub async fn find(&self, id: &TenantId) -> Result<Option<Tenant>, TenantsError> {
        Ok(self.store.find(id).await?.map(Tenant::new))
    }

    /// The tenant, made on this plan where there is no such one. One that exists stays as it is.
    ///
    /// # Errors
    ///
    /// [`TenantsError::UnknownPlan`] when the catalog has no such plan; [`TenantsError::Store`] when the store failed.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have made the tenant; asking again gives it.
    pub async fn ensure(&self, id: &TenantId, plan: &PlanName) -> Result<Tenant, TenantsError> {
        if let Some(present) = self.find(id).await? {
            return Ok(present);
        }
        self.check_plan(plan)?;
        let record = TenantRecord::new(id.clone(), plan.clone());
        match self.store.create(record).await {
            // Somebody else does the same at the same time.
            Err(TenantStoreError::AlreadyExists) => {
                Ok(self.find(id).await?.ok_or(TenantStoreError::NotFound)?)
            }
            created => Ok(Tenant::new(created?)),
        }
    }

    /// Whether the catalog has this plan now.
    pub(crate) fn check_plan(&self, plan: &PlanName) -> Result<(), TenantsError> {
        match self.catalog.find(plan) {
            Some(_) => Ok(()),
            None => Err(TenantsError::UnknownPlan { plan: plan.clone() }),
        }
    }

    /// Sets what the tenant's payments let it do.
    ///
    /// # Errors
    ///
    /// As [`Tenants::update`].
    pub async fn set_access(
        &self,
        id: &TenantId,
        access: AccessState,
    ) -> Result<Tenant, TenantsError> {
        self.update(id, |record| record.access = access).await
    }

    /// Moves the tenant to another plan: quotas keep what was used, buckets are rescaled.
    ///
    /// # Errors
    ///
    /// [`TenantsError::UnknownPlan`] when the catalog has no such plan; else as [`Tenants::update`].
    pub async fn set_plan(&self, id: &TenantId, plan: &PlanName) -> Result<Tenant, TenantsError> {
        self.check_plan(plan)?;
        self.update(id, |record| record.plan = plan.clone()).await
    }

    /// Changes the tenant's record. Repeated on the newest record when somebody else changed it meanwhile, so
    /// `change` may run several times. The record keeps its id, and its version is the store's.
    ///
    /// # Errors
    ///
    /// [`TenantsError::Store`] with [`TenantStoreError::NotFound`], with [`TenantStoreError::Conflict`] after
    /// 16 tries, or with a failure of the store.
    ///
    /// # Cancel safety
    ///
    /// A dropped future has made the change as a whole or not at all.
    pub async fn update(
        &self,
        id: &TenantId,
        mut change: impl FnMut(&mut TenantRecord) + Send,
    ) -> Result<Tenant, TenantsError> {
        for _ in 0..MAX_TRIES {
            let present = self.store.find(id).await?;
            let present = present.ok_or(TenantStoreError::NotFound)?;
            let mut record = TenantRecord::clone(&present);
            change(&mut record);
            record.id = present.id.clone();
            record.version = present.version;
            if record == *present {
                return Ok(Tenant::new(present));
            }
            match self.store.replace(record).await {
                Err(TenantStoreError::Conflict) => {}
                replaced => return Ok(Tenant::new(replaced?)),
            }
        }
        Err(TenantStoreError::Conflict.into())
    }
}
