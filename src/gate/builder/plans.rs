use super::{Plans, TollgateBuilder};
use crate::{
    error::ConfigError,
    gate::Document,
    plan::{Plan, PlanCatalog},
};

/// What is on sale.
impl TollgateBuilder {
    /// The plans on sale. At least one is needed.
    pub fn plans(mut self, plans: impl IntoIterator<Item = Plan>) -> Self {
        self.plans = Plans::List(plans.into_iter().collect());
        self
    }

    /// The plans on sale, from a catalog that somebody else keeps up to date; in place of
    /// [`plans`](Self::plans).
    pub fn catalog(mut self, catalog: PlanCatalog) -> Self {
        self.plans = Plans::Catalog(catalog);
        self
    }

    /// The plan of test keys that have none of their own; a test key is under its tenant's plan, counted
    /// apart, unless set.
    pub fn sandbox(mut self, plan: impl Into<String>) -> Self {
        self.sandbox = Some(plan.into());
        self
    }
}

impl Plans {
    pub(super) fn catalog(&self, document: Option<&Document>) -> Result<PlanCatalog, ConfigError> {
        let in_document = document.filter(|document| document.has_plans());
        match (self, in_document) {
            (Self::List(plans), Some(document)) if plans.is_empty() => {
                let (plans, ..) = document.clone().into_parts();
                PlanCatalog::from_document(&plans)
            }
            (_, Some(_)) => {
                let reason = "the document names plans and the code does: leave one of them out";
                Err(ConfigError::new("plans", reason))
            }
            (Self::Catalog(catalog), None) => Ok(catalog.clone()),
            (Self::List(plans), None) if plans.is_empty() => {
                let reason = "a gate needs at least one plan: add `.plans([Plan::new(\"free\")])`, or a document \
                              with `plans`";
                Err(ConfigError::new("plans", reason))
            }
            (Self::List(plans), None) => PlanCatalog::new(plans.iter().cloned()),
        }
    }
}
