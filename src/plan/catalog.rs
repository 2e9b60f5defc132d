use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;

use super::plan::{CompiledPlan, Plan, PlansByName};
use crate::{error::ConfigError, id::PlanName};

/// The plans on sale, replaced as a whole while traffic flows.
///
/// Cloning gives a second handle to the same catalog. A replacement takes effect on the next call of every
/// tenant: quotas keep what was used, buckets are rescaled in proportion.
#[derive(Clone)]
pub struct PlanCatalog {
    shared: Arc<Shared>,
}

struct Shared {
    plans: ArcSwap<PlansByName>,
    version: AtomicU64,
}

impl PlanCatalog {
    /// Checks the plans and makes a catalog of them.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the plan and the field, such as `plans[pro].rules[0].burst`; also when two plans
    /// share a name.
    pub fn new(plans: impl IntoIterator<Item = Plan>) -> Result<Self, ConfigError> {
        let plans = compile(plans)?;
        let shared = Shared {
            plans: ArcSwap::from_pointee(plans),
            version: AtomicU64::new(1),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Replaces all plans at once. When one does not compile, the old plans stay.
    ///
    /// # Errors
    ///
    /// As [`PlanCatalog::new`].
    pub fn replace(&self, plans: impl IntoIterator<Item = Plan>) -> Result<(), ConfigError> {
        let plans = compile(plans)?;
        self.shared.plans.store(Arc::new(plans));
        // After the store: who sees the new number finds the new plans.
        self.shared.version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// The plan of this name, as of now.
    #[must_use]
    pub fn find(&self, name: &PlanName) -> Option<Arc<CompiledPlan>> {
        self.shared.plans.load().get(name).map(Arc::clone)
    }

    /// Grows with each replacement; who has cached a plan compares it.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.shared.version.load(Ordering::Acquire)
    }
}

fn compile(plans: impl IntoIterator<Item = Plan>) -> Result<PlansByName, ConfigError> {
    let mut compiled = PlansByName::new();
    for plan in plans {
        let plan = plan.compile()?;
        if let Some(earlier) = compiled.insert(plan.name().clone(), Arc::new(plan)) {
            let path = format!("plans[{}].name", earlier.name());
            return Err(ConfigError::new(
                path,
                "two plans share this name: rename one",
            ));
        }
    }
    Ok(compiled)
}

impl fmt::Debug for PlanCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlanCatalog")
            .field("version", &self.version())
            .field(
                "plans",
                &self.shared.plans.load().keys().collect::<Vec<_>>(),
            )
            .finish()
    }
}
