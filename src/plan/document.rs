use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize};

use super::{Entitlements, Plan};
use crate::{error::ConfigError, id::PlanName, limit::Rule, pricing::Prices};

/// The plans on sale as one document, in JSON, TOML or any other form that serde reads.
///
/// ```json
/// {
///   "plans": [
///     {
///       "name": "pro",
///       "rules": [{ "kind": "rate", "limit": 100, "per": "second" }],
///       "features": ["export"],
///       "allowances": { "seats": 5 },
///       "apis": ["chat"],
///       "upgrade_url": "https://example.com/upgrade"
///     }
///   ]
/// }
/// ```
///
/// Only `name` is required of a plan. A field that is not known is an error, so that a misspelt limit is never
/// silently absent. `rules` is a list of [`Rule`]s, `prices` are [`Prices`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanDocument {
    pub(crate) plans: Vec<PlanEntry>,
}

/// The fields of a [`Plan`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanEntry {
    #[serde(deserialize_with = "checked_name")]
    name: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    upgrade_url: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    features: BTreeSet<Arc<str>>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    apis: BTreeSet<Arc<str>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    allowances: BTreeMap<Arc<str>, u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rules: Vec<Rule>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prices: Option<Prices>,
}

impl PlanDocument {
    /// Reads a JSON document.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field by its path, such as `plans[1].rules[0].burst`.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        ConfigError::read_json(text)
    }

    /// Reads a document in any form that serde knows, for example
    /// `PlanDocument::from_deserializer(toml::Deserializer::parse(text)?)`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field by its path, such as `plans[1].rules[0].burst`.
    pub fn from_deserializer<'de, D>(deserializer: D) -> Result<Self, ConfigError>
    where
        D: Deserializer<'de>,
    {
        ConfigError::read(deserializer)
    }

    /// The plans in the document's order, not checked yet; [`PlanCatalog::from_document`] checks them.
    ///
    /// [`PlanCatalog::from_document`]: super::PlanCatalog::from_document
    pub fn plans(&self) -> impl Iterator<Item = Plan> + '_ {
        self.plans.iter().map(PlanEntry::to_plan)
    }
}

impl FromIterator<Plan> for PlanDocument {
    /// Writes plans down as they are, unchecked.
    fn from_iter<I: IntoIterator<Item = Plan>>(plans: I) -> Self {
        let plans = plans.into_iter().map(PlanEntry::of_plan).collect();
        Self { plans }
    }
}

/// Checked while the text is read, so that a fault has its place in the text.
fn checked_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    PlanName::deserialize(deserializer).map(|name| Arc::from(name.as_str()))
}

impl PlanEntry {
    pub(crate) fn of_plan(plan: Plan) -> Self {
        let Plan {
            name,
            rules,
            entitlements,
            upgrade_url,
            prices,
        } = plan;
        Self {
            name,
            upgrade_url,
            features: entitlements.features,
            apis: entitlements.apis,
            allowances: entitlements.allowances,
            rules,
            prices,
        }
    }

    fn to_plan(&self) -> Plan {
        Plan {
            name: Arc::clone(&self.name),
            rules: self.rules.clone(),
            entitlements: Entitlements {
                features: self.features.clone(),
                allowances: self.allowances.clone(),
                apis: self.apis.clone(),
            },
            upgrade_url: self.upgrade_url.clone(),
            prices: self.prices.clone(),
        }
    }
}
