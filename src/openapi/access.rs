use std::{collections::BTreeSet, sync::Arc};

use serde_json::Value;

use crate::{error::ConfigError, identity::Identity};

/// What a caller may use, as far as a document asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DocumentAccess {
    /// The plan; `None` for a caller who is not known.
    pub plan: Option<Arc<str>>,
    /// Features of the plan that are on.
    pub features: BTreeSet<Arc<str>>,
    /// Scopes of the credential.
    pub scopes: BTreeSet<Arc<str>>,
}

impl DocumentAccess {
    /// A caller who is not known: the public part of a document.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// A caller on a plan, without features and scopes.
    #[must_use]
    pub fn on_plan(plan: impl Into<Arc<str>>) -> Self {
        Self {
            plan: Some(plan.into()),
            ..Self::default()
        }
    }

    /// Adds a feature.
    #[must_use]
    pub fn feature(mut self, name: impl Into<Arc<str>>) -> Self {
        self.features.insert(name.into());
        self
    }

    /// Adds a scope.
    #[must_use]
    pub fn scope(mut self, name: impl Into<Arc<str>>) -> Self {
        self.scopes.insert(name.into());
        self
    }
}

impl From<&Identity> for DocumentAccess {
    fn from(identity: &Identity) -> Self {
        let plan = identity.plan();
        Self {
            plan: Some(Arc::from(plan.name().as_str())),
            features: plan.entitlements().features.clone(),
            scopes: identity.scopes().clone(),
        }
    }
}

/// Any of these plans may use it.
pub(super) const PLANS: &str = "x-tollgate-plans";
/// All of these features are needed.
pub(super) const FEATURES: &str = "x-tollgate-features";
/// All of these scopes are needed.
pub(super) const SCOPES: &str = "x-tollgate-scopes";
pub(super) const FIELDS: [&str; 3] = [PLANS, FEATURES, SCOPES];

/// Whether the fields of a path, an operation or a tag let the caller see it.
pub(super) fn permits(object: &Value, access: &DocumentAccess) -> bool {
    let mut plans = names(object, PLANS).peekable();
    let own = access.plan.as_deref();
    // A field that names no plan is for none.
    let has_plan = object.get(PLANS).is_none() || plans.any(|plan| Some(plan) == own);
    has_plan
        && names(object, FEATURES).all(|name| access.features.contains(name))
        && names(object, SCOPES).all(|name| access.scopes.contains(name))
}

pub(super) fn names<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = &'a str> {
    let names = object.get(field).and_then(Value::as_array);
    names.into_iter().flatten().filter_map(Value::as_str)
}

/// Fields that cannot be read would show what they hide.
pub(super) fn check_fields(object: &Value) -> Result<(), ConfigError> {
    for field in FIELDS {
        let Some(value) = object.get(field) else {
            continue;
        };
        let is_list = value
            .as_array()
            .is_some_and(|names| names.iter().all(Value::is_string));
        if !is_list {
            return Err(ConfigError::new(
                field,
                "write a list of names, such as [\"pro\"]",
            ));
        }
    }
    if let Some(unknown) = object.as_object().and_then(|object| {
        let mut own = object.keys().filter(|name| name.starts_with("x-tollgate-"));
        own.find(|name| !FIELDS.contains(&name.as_str()))
    }) {
        let reason = format!("no such field: write {PLANS}, {FEATURES} or {SCOPES}");
        return Err(ConfigError::new(unknown, reason));
    }
    Ok(())
}

/// The alternatives of a `security` list that the caller meets; without the list everybody does.
///
/// An alternative is met when the caller has all its scopes. One that asks for nothing is met by everybody, any other
/// only by a caller who is known.
pub(super) fn met(security: &Value, access: &DocumentAccess) -> Option<Vec<Value>> {
    let alternatives = security.as_array()?;
    if alternatives.is_empty() {
        return Some(Vec::new());
    }
    let is_met = |alternative: &&Value| {
        let Some(schemes) = alternative.as_object() else {
            return false;
        };
        let mut scopes = schemes.values().filter_map(Value::as_array).flatten();
        schemes.is_empty()
            || access.plan.is_some()
                && scopes.all(|scope| {
                    let scope = scope.as_str();
                    scope.is_some_and(|scope| access.scopes.contains(scope))
                })
    };
    let met: Vec<Value> = alternatives.iter().filter(is_met).cloned().collect();
    (!met.is_empty()).then_some(met)
}
