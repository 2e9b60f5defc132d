use std::{collections::BTreeMap, sync::Arc};

use super::Entitlements;
use crate::{
    error::ConfigError,
    id::PlanName,
    limit::{Rule, RuleSet},
    pricing::{PriceBook, Prices},
};

/// What a tenant bought: rules, features and the APIs it may call.
///
/// A plan written in code is checked when the catalog is built, so that a chain of setters needs no error
/// handling.
#[derive(Clone, Debug)]
#[must_use]
pub struct Plan {
    pub(crate) name: Arc<str>,
    pub(crate) rules: Vec<Rule>,
    pub(crate) entitlements: Entitlements,
    pub(crate) upgrade_url: Option<Arc<str>>,
    pub(crate) prices: Option<Prices>,
}

impl Plan {
    /// A plan without rules: every call of its tenants passes.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            rules: Vec::new(),
            entitlements: Entitlements::default(),
            upgrade_url: None,
            prices: None,
        }
    }

    /// Adds a rule.
    pub fn rule(mut self, rule: impl Into<Rule>) -> Self {
        self.rules.push(rule.into());
        self
    }

    /// Grants a feature, asked for by `RequireFeature`.
    pub fn feature(mut self, name: impl Into<Arc<str>>) -> Self {
        self.entitlements.features.insert(name.into());
        self
    }

    /// Grants a number of something, such as seats; read by the service.
    pub fn allowance(mut self, name: impl Into<Arc<str>>, n: u64) -> Self {
        self.entitlements.allowances.insert(name.into(), n);
        self
    }

    /// Restricts the plan to the APIs named this way; a plan that names none includes every API.
    pub fn api(mut self, name: impl Into<Arc<str>>) -> Self {
        self.entitlements.apis.insert(name.into());
        self
    }

    /// Where a tenant can buy more; shown when a quota is exceeded or a feature is missing.
    pub fn upgrade_url(mut self, url: impl Into<Arc<str>>) -> Self {
        self.upgrade_url = Some(url.into());
        self
    }

    /// What the plan costs, see [`pricing`](crate::pricing). No call is priced: an invoice is drafted from usage.
    pub fn prices(mut self, prices: Prices) -> Self {
        self.prices = Some(prices);
        self
    }

    /// Checks the plan and compiles its rules.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field, such as `plans[pro].rules[0].burst`.
    pub fn compile(&self) -> Result<CompiledPlan, ConfigError> {
        self.compile_under(&format!("plans[{}]", self.name))
    }

    pub(super) fn compile_under(&self, path: &str) -> Result<CompiledPlan, ConfigError> {
        let at = |error: ConfigError| error.under(path);
        let name = PlanName::new(&self.name)
            .map_err(|source| at(ConfigError::new("name", source.to_string()).caused_by(source)))?;
        let rules = RuleSet::compile(self.rules.iter().cloned()).map_err(at)?;
        let prices = self.prices.as_ref().map(PriceBook::new).transpose();
        let prices = prices.map_err(|error| at(error.under("prices")))?;
        Ok(CompiledPlan {
            name,
            source: self.rules.clone(),
            rules,
            entitlements: self.entitlements.clone(),
            upgrade_url: self.upgrade_url.clone(),
            prices: prices.map(Arc::new),
        })
    }
}

/// A plan that was checked, with its rules in the form that stores decide with.
#[derive(Debug)]
pub struct CompiledPlan {
    name: PlanName,
    source: Vec<Rule>,
    rules: Arc<RuleSet>,
    entitlements: Entitlements,
    upgrade_url: Option<Arc<str>>,
    prices: Option<Arc<PriceBook>>,
}

impl CompiledPlan {
    /// The plan's name.
    #[must_use]
    pub const fn name(&self) -> &PlanName {
        &self.name
    }

    /// The rules as they were written.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.source
    }

    /// The compiled rules, shared by every tenant of the plan.
    #[must_use]
    pub const fn rule_set(&self) -> &Arc<RuleSet> {
        &self.rules
    }

    /// What the plan grants beside its rules.
    #[must_use]
    pub const fn entitlements(&self) -> &Entitlements {
        &self.entitlements
    }

    /// The plan as it was written.
    pub(crate) fn to_plan(&self) -> Plan {
        Plan {
            name: Arc::from(self.name.as_str()),
            rules: self.source.clone(),
            entitlements: self.entitlements.clone(),
            upgrade_url: self.upgrade_url.clone(),
            prices: self.prices.as_deref().map(|book| book.source().clone()),
        }
    }

    /// What the plan costs, checked; `None` where it has no prices.
    #[must_use]
    pub const fn prices(&self) -> Option<&Arc<PriceBook>> {
        self.prices.as_ref()
    }

    /// Where a tenant can buy more.
    #[must_use]
    pub fn upgrade_url(&self) -> Option<&str> {
        self.upgrade_url.as_deref()
    }
}

/// The plans of one moment.
pub(crate) type PlansByName = BTreeMap<PlanName, Arc<CompiledPlan>>;
