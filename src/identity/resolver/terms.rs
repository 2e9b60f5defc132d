//! From a tenant and a grant to an identity, for every kind of credential.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use crate::{
    auth::AuthRefusal,
    error::ConfigError,
    id::{Environment, PlanName},
    identity::{
        Grant, Identity,
        cache::{Resolved, TenantSlot},
    },
    plan::PlanCatalog,
    tenant::{Tenant, TenantRecord},
};

/// How often a tenant is read again that changes meanwhile.
const MAX_TRIES: u32 = 3;

/// What is served, and under which plan.
#[derive(Clone, Debug)]
pub(in crate::identity) struct Terms {
    pub(in crate::identity) catalog: PlanCatalog,
    pub(in crate::identity) only: Option<Environment>,
    pub(in crate::identity) sandbox_plan: Option<PlanName>,
}

impl Terms {
    pub(in crate::identity) fn check(&self) -> Result<(), ConfigError> {
        if let Some(plan) = &self.sandbox_plan
            && self.catalog.find(plan).is_none()
        {
            let reason = format!("the catalog has no plan `{plan}`: add it or name another");
            return Err(ConfigError::new("sandbox_plan", reason));
        }
        Ok(())
    }

    pub(in crate::identity) fn serves(&self, environment: Environment) -> bool {
        self.only.is_none_or(|only| only == environment)
    }

    /// The identity as it was resolved, made anew where the plans or the tenant have changed since.
    pub(in crate::identity) fn resolve(
        &self,
        known: &ArcSwapOption<Resolved>,
        slot: &TenantSlot,
        own_plan: Option<&PlanName>,
        grant: impl FnOnce() -> Grant,
    ) -> Result<Identity, AuthRefusal> {
        // Read before the plan: a plan that is newer than its number is resolved once more, an older one not
        // taken for new.
        let plans = self.catalog.version();
        if let Some(resolved) = &*known.load()
            && resolved.plans == plans
            && resolved.tenant == slot.stamp()
        {
            return resolved.outcome.clone();
        }
        let grant = grant();
        let mut tries = 0;
        let (stamp, outcome) = loop {
            let (stamp, tenant) = slot.read();
            let outcome = tenant
                .ok_or(AuthRefusal::TenantUnknown)
                .and_then(|tenant| self.identity(tenant, own_plan, grant.clone()));
            tries += 1;
            // The tenant may have been moved off its plan, and the plan taken away, between the two readings.
            let is_torn = matches!(outcome, Err(AuthRefusal::PlanUnknown)) && slot.stamp() != stamp;
            if !is_torn || tries == MAX_TRIES {
                break (stamp, outcome);
            }
        };
        known.store(Some(Arc::new(Resolved {
            outcome: outcome.clone(),
            plans,
            tenant: stamp,
        })));
        outcome
    }

    fn identity(
        &self,
        tenant: Arc<TenantRecord>,
        own_plan: Option<&PlanName>,
        grant: Grant,
    ) -> Result<Identity, AuthRefusal> {
        let sandbox = match grant.environment {
            Environment::Test => self.sandbox_plan.as_ref(),
            Environment::Live => None,
        };
        let name = own_plan.or(sandbox).unwrap_or(&tenant.plan);
        let key = grant.key.clone();
        let key = key.as_ref().map(tracing::field::display);
        let Some(plan) = self.catalog.find(name) else {
            tracing::error!(key, tenant = %tenant.id, plan = %name, "no such plan in the catalog");
            return Err(AuthRefusal::PlanUnknown);
        };
        let id = tenant.id.clone();
        Identity::new(Tenant::new(tenant), plan, grant).map_err(|error| {
            tracing::error!(key, tenant = %id, %error, "the credential's own limits do not fit its plan");
            AuthRefusal::PlanUnknown
        })
    }
}
