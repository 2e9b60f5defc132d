use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

/// What a plan grants beside its rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Entitlements {
    /// Features that are on.
    pub features: BTreeSet<Arc<str>>,
    /// Numbers of things, such as seats.
    pub allowances: BTreeMap<Arc<str>, u64>,
    /// APIs that the plan includes; all of them when empty.
    pub apis: BTreeSet<Arc<str>>,
}

impl Entitlements {
    /// Whether a feature is on.
    #[must_use]
    pub fn has_feature(&self, name: &str) -> bool {
        self.features.contains(name)
    }

    /// How many of something the plan grants; `None` when the plan does not speak of it.
    #[must_use]
    pub fn allowance(&self, name: &str) -> Option<u64> {
        self.allowances.get(name).copied()
    }

    /// Whether the plan includes an API.
    #[must_use]
    pub fn includes_api(&self, name: &str) -> bool {
        self.apis.is_empty() || self.apis.contains(name)
    }
}
