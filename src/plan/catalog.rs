use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;

use super::{
    document::PlanDocument,
    plan::{CompiledPlan, Plan, PlansByName},
};
use crate::{
    error::ConfigError,
    id::PlanName,
    limit::{Rule, Scope, Unit},
};

/// The plans on sale, replaced as a whole while traffic flows.
///
/// Cloning gives a second handle to the same catalog. A replacement takes effect on the next call of every
/// tenant: quotas keep what was used, buckets are rescaled in proportion.
#[derive(Clone)]
pub struct PlanCatalog {
    shared: Arc<Shared>,
}

/// A handle that does not keep the catalog.
#[cfg(feature = "redis")]
pub(super) struct WeakCatalog(std::sync::Weak<Shared>);

#[cfg(feature = "redis")]
impl WeakCatalog {
    /// The catalog, while anybody else has it.
    pub(super) fn upgrade(&self) -> Option<PlanCatalog> {
        let shared = self.0.upgrade()?;
        Some(PlanCatalog { shared })
    }
}

struct Shared {
    plans: ArcSwap<PlansByName>,
    /// What rules may name, once a gate has said so.
    names: OnceLock<Names>,
    version: AtomicU64,
}

/// What the rules of a gate's plans may name.
pub(crate) struct Names {
    /// Custom scopes that have a hook.
    pub(crate) scopes: Vec<Arc<str>>,
    /// Quantities that handlers add; any when `None`.
    pub(crate) quantities: Option<Vec<Arc<str>>>,
}

impl PlanCatalog {
    /// Checks the plans and makes a catalog of them.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the plan and the field, such as `plans[pro].rules[0].burst`; also when two plans
    /// share a name.
    pub fn new(plans: impl IntoIterator<Item = Plan>) -> Result<Self, ConfigError> {
        Ok(Self::of(compile(by_name(plans))?))
    }

    /// Checks the plans of a document and makes a catalog of them.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field by its place in the document, such as `plans[1].rules[0].burst`.
    pub fn from_document(document: &PlanDocument) -> Result<Self, ConfigError> {
        Ok(Self::of(compile(by_place(document))?))
    }

    fn of(plans: PlansByName) -> Self {
        let shared = Shared {
            plans: ArcSwap::from_pointee(plans),
            names: OnceLock::new(),
            version: AtomicU64::new(1),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Replaces all plans at once. When one does not compile, the old plans stay.
    ///
    /// # Errors
    ///
    /// As [`PlanCatalog::new`].
    pub fn replace(&self, plans: impl IntoIterator<Item = Plan>) -> Result<(), ConfigError> {
        self.swap(compile(by_name(plans))?)
    }

    /// Replaces all plans by those of a document. When one does not compile, the old plans stay.
    ///
    /// # Errors
    ///
    /// As [`PlanCatalog::from_document`].
    pub fn replace_from_document(&self, document: &PlanDocument) -> Result<(), ConfigError> {
        self.swap(compile(by_place(document))?)
    }

    fn swap(&self, plans: PlansByName) -> Result<(), ConfigError> {
        self.check_names(&plans)?;
        self.put(Arc::new(plans));
        Ok(())
    }

    /// Checks the plans of a document without replacing any.
    pub(crate) fn prepare(&self, document: &PlanDocument) -> Result<PlansByName, ConfigError> {
        let plans = compile(by_place(document))?;
        self.check_names(&plans)?;
        Ok(plans)
    }

    /// A handle that does not keep the catalog.
    #[cfg(feature = "redis")]
    pub(super) fn downgrade(&self) -> WeakCatalog {
        WeakCatalog(Arc::downgrade(&self.shared))
    }

    /// The plans of now.
    pub(crate) fn plans(&self) -> Arc<PlansByName> {
        self.shared.plans.load_full()
    }

    /// Replaces all plans by some that were checked.
    pub(crate) fn put(&self, plans: Arc<PlansByName>) {
        let old = self.shared.plans.load();
        let gone: Vec<&str> = old
            .keys()
            .filter(|name| !plans.contains_key(*name))
            .map(PlanName::as_str)
            .collect();
        if !gone.is_empty() {
            tracing::warn!(
                target: "tollgate::plan",
                ?gone,
                "plans are no longer in the catalog: tenants that are still on them are answered 503"
            );
        }
        self.shared.plans.store(plans);
        // After the store: who sees the new number finds the new plans.
        self.shared.version.fetch_add(1, Ordering::Release);
    }

    /// The plan of this name, as of now.
    #[must_use]
    pub fn find(&self, name: &PlanName) -> Option<Arc<CompiledPlan>> {
        self.shared.plans.load().get(name).map(Arc::clone)
    }

    /// Says what rules may name, for the plans of now and for all that replace them; the first word stands.
    pub(crate) fn know_names(&self, names: Names) -> Result<(), ConfigError> {
        let _ = self.shared.names.set(names);
        self.check_names(&self.shared.plans.load())
    }

    fn check_names(&self, plans: &PlansByName) -> Result<(), ConfigError> {
        let Some(names) = self.shared.names.get() else {
            return Ok(());
        };
        plans.values().try_for_each(|plan| {
            check_scopes(plan.rules(), &names.scopes)
                .and_then(|()| check_units(plan.rules(), names.quantities.as_deref()))
                .map_err(|error| error.under(format_args!("plans[{}]", plan.name())))
        })
    }

    /// All plans as of now, by name.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Arc<CompiledPlan>> {
        self.shared.plans.load().values().cloned().collect()
    }

    /// Grows with each replacement; who has cached a plan compares it.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.shared.version.load(Ordering::Acquire)
    }
}

/// Plans written in code are known by their name in an error's path.
fn by_name(plans: impl IntoIterator<Item = Plan>) -> impl Iterator<Item = (String, Plan)> {
    let numbered = plans.into_iter().enumerate();
    numbered.map(|(place, plan)| {
        let path = match &*plan.name {
            // No name says where the fault is.
            "" => format!("plans[{place}]"),
            name => format!("plans[{name}]"),
        };
        (path, plan)
    })
}

/// Plans of a document are known by their place in it.
fn by_place(document: &PlanDocument) -> impl Iterator<Item = (String, Plan)> + '_ {
    let numbered = document.plans().enumerate();
    numbered.map(|(place, plan)| (format!("plans[{place}]"), plan))
}

fn compile(plans: impl Iterator<Item = (String, Plan)>) -> Result<PlansByName, ConfigError> {
    let mut compiled = PlansByName::new();
    for (path, plan) in plans {
        let plan = plan.compile_under(&path)?;
        if compiled.contains_key(plan.name()) {
            let reason = "two plans share this name: rename one";
            return Err(ConfigError::new("name", reason).under(path));
        }
        compiled.insert(plan.name().clone(), Arc::new(plan));
    }
    Ok(compiled)
}

/// A rule of a custom scope without its hook would never apply.
pub(crate) fn check_scopes(rules: &[Rule], scopes: &[Arc<str>]) -> Result<(), ConfigError> {
    for (index, rule) in rules.iter().enumerate() {
        if let Scope::Custom(name) = &rule.scope
            && !scopes.contains(name)
        {
            let reason = format!(
                "no hook gives values for the scope `{name}`: add `.scope(\"{name}\", ..)` to the gate"
            );
            return Err(ConfigError::new(format!("rules[{index}].scope"), reason));
        }
    }
    Ok(())
}

/// A rule that counts what no handler adds would never refuse.
pub(crate) fn check_units(
    rules: &[Rule],
    quantities: Option<&[Arc<str>]>,
) -> Result<(), ConfigError> {
    let Some(quantities) = quantities else {
        return Ok(());
    };
    for (index, rule) in rules.iter().enumerate() {
        if let Unit::Custom(name) = &rule.unit
            && !quantities.contains(name)
        {
            let reason = format!(
                "no handler adds `{name}`, the gate says: name one of {quantities:?}, or add it to `.quantities(..)`"
            );
            return Err(ConfigError::new(format!("rules[{index}].unit"), reason));
        }
    }
    Ok(())
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
