use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Document, merge};
use crate::{
    auth::{KeyDigest, KeyDocument, KeyFormat, KeyRecord, MemoryKeyStore},
    error::ConfigError,
    id::{PlanName, TenantId},
    identity::{Grant, Identity},
    plan::{PlanCatalog, PlanDocument, PlanEntry, PlansByName},
    tenant::{AccessState, MemoryTenantStore, Tenant, TenantDocument, TenantRecord},
};

/// What a reload changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReloadReport {
    /// Plans.
    pub plans: Changes,
    /// Tenants; one that was removed is closed.
    pub tenants: Changes,
    /// Keys; one that was removed no longer works.
    pub keys: Changes,
}

/// How many of a kind are new, other than before, or gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changes {
    /// Those that were not there.
    pub added: usize,
    /// Those that are there still, and differ.
    pub changed: usize,
    /// Those that are there no more.
    pub removed: usize,
}

impl fmt::Display for ReloadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            plans,
            tenants,
            keys,
        } = self;
        write!(f, "plans {plans}; tenants {tenants}; keys {keys}")
    }
}

impl fmt::Display for Changes {
    /// `+1 ~2 -3` is one new, two changed and three removed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{} ~{} -{}", self.added, self.changed, self.removed)
    }
}

/// What a gate keeps in this process, and which of it came from a document.
#[derive(Debug)]
pub(super) struct Managed {
    pub(super) catalog: PlanCatalog,
    pub(super) formats: Vec<KeyFormat>,
    /// `None` where the gate has a store of the user's.
    pub(super) keys: Option<Arc<MemoryKeyStore>>,
    pub(super) tenants: Option<Arc<MemoryTenantStore>>,
    pub(super) sandbox: Option<PlanName>,
    pub(super) loaded: Mutex<Loaded>,
}

/// The document of now.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    has_plans: bool,
    keys: BTreeMap<KeyDigest, KeyRecord>,
    tenants: BTreeMap<TenantId, TenantRecord>,
    /// Keys that a document had and a later one has not, with the version that they had last: caches take no
    /// older one for new.
    withdrawn: BTreeMap<KeyDigest, u64>,
}

/// A document that was checked.
struct Checked {
    plans: Option<PlansByName>,
    tenants: BTreeMap<TenantId, TenantRecord>,
    keys: BTreeMap<KeyDigest, KeyRecord>,
}

impl Managed {
    /// Makes the document the gate's. A document with a fault changes nothing.
    pub(super) fn apply(&self, document: Document) -> Result<ReloadReport, ConfigError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let checked = self.check(document, &loaded)?;
        let mut report = ReloadReport::default();
        let plans = checked.plans.map(Arc::new);
        if let Some(plans) = &plans {
            let old = self.catalog.plans();
            report.plans = compare(&old, plans);
            // Tenants are moved off a plan before it goes.
            let mut both = PlansByName::clone(&old);
            both.extend(plans.iter().map(|(k, v)| (k.clone(), Arc::clone(v))));
            self.catalog.put(Arc::new(both));
        }
        if let Some(store) = &self.keys {
            for digest in removed(&loaded.keys, &checked.keys) {
                if let Some(version) = store.remove(&digest) {
                    report.keys.removed += 1;
                    loaded.withdrawn.insert(digest, version);
                }
            }
        }
        if let Some(store) = &self.tenants {
            apply_tenants(store, &loaded, &checked.tenants, &mut report.tenants);
        }
        if let Some(store) = &self.keys {
            apply_keys(store, &mut loaded, &checked.keys, &mut report.keys);
        }
        if let Some(plans) = plans {
            if report.plans.removed > 0 {
                self.catalog.put(plans);
            }
            loaded.has_plans = true;
        }
        loaded.keys = checked.keys;
        loaded.tenants = checked.tenants;
        Ok(report)
    }

    /// What the gate keeps, as a document.
    pub(super) fn document(&self) -> Document {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let plans = if loaded.has_plans {
            let plans = self.catalog.plans();
            plans.values().map(|plan| plan.to_plan()).collect()
        } else {
            PlanDocument::default()
        };
        let tenants = self.tenants.as_ref();
        let keys = self.keys.as_ref();
        Document::of_parts(
            plans,
            tenants.map_or_else(TenantDocument::default, |store| store.to_document()),
            keys.map_or_else(KeyDocument::new, |store| store.to_document()),
        )
    }

    fn check(&self, document: Document, loaded: &Loaded) -> Result<Checked, ConfigError> {
        let (plans, tenants, keys) = document.into_parts();
        let prepared = self.check_plans(&plans, loaded)?;
        let known = match &prepared {
            Some(plans) => Arc::new(plans.clone()),
            None => self.catalog.plans(),
        };
        let tenants = self.check_tenants(tenants, &known)?;
        let keys = self.check_keys(keys, &tenants, &known, loaded)?;
        let checked = Checked {
            plans: prepared,
            tenants,
            keys,
        };
        self.check_others(&checked, &known, loaded)?;
        Ok(checked)
    }

    fn check_plans(
        &self,
        document: &PlanDocument,
        loaded: &Loaded,
    ) -> Result<Option<PlansByName>, ConfigError> {
        if document.plans.is_empty() {
            if loaded.has_plans {
                let reason =
                    "the gate has its plans from its document, and this one has none: add them";
                return Err(ConfigError::new("plans", reason));
            }
            return Ok(None);
        }
        let plans = self.catalog.prepare(document)?;
        if let Some(sandbox) = &self.sandbox
            && !plans.contains_key(sandbox)
        {
            return Err(plan_in_use(sandbox, "the gate's test keys are on it"));
        }
        Ok(Some(plans))
    }

    fn check_tenants(
        &self,
        document: TenantDocument,
        plans: &PlansByName,
    ) -> Result<BTreeMap<TenantId, TenantRecord>, ConfigError> {
        if self.tenants.is_none() && !document.tenants.is_empty() {
            return Err(other_store("tenants"));
        }
        // Finds what is there twice.
        MemoryTenantStore::from_document(document.clone())?;
        let numbered = document.into_records().enumerate();
        numbered
            .map(|(place, record)| {
                if !plans.contains_key(&record.plan) {
                    let at = format!("tenants[{place}].plan");
                    return Err(no_plan(&record.plan, plans, at));
                }
                Ok((record.id.clone(), record))
            })
            .collect()
    }

    fn check_keys(
        &self,
        document: KeyDocument,
        tenants: &BTreeMap<TenantId, TenantRecord>,
        plans: &PlansByName,
        loaded: &Loaded,
    ) -> Result<BTreeMap<KeyDigest, KeyRecord>, ConfigError> {
        let Some(store) = &self.keys else {
            return if document.is_empty() {
                Ok(BTreeMap::new())
            } else {
                Err(other_store("keys"))
            };
        };
        let records = document.into_records()?;
        let ours: BTreeSet<_> = records.iter().map(|(digest, _)| *digest).collect();
        let present = store.records();
        // Keys of the old document make room for those of the new.
        let others: BTreeMap<_, _> = present
            .iter()
            .filter(|(digest, _)| !ours.contains(digest) && !loaded.keys.contains_key(digest))
            .map(|(_, record)| (&record.id, record))
            .collect();
        for (place, (_, record)) in records.iter().enumerate() {
            let at = |error: ConfigError| error.under(format_args!("keys[{place}]"));
            self.check_no_raw_key(record).map_err(at)?;
            if others.contains_key(&record.id) {
                let reason = "a key that was issued at run time has the same: name it otherwise";
                return Err(at(ConfigError::new("id", reason)));
            }
            let tenant = tenants.get(&record.tenant);
            if tenant.is_none() && self.tenants.is_some() {
                let reason = format!(
                    "there is no tenant `{}`: add it to `tenants`, or name one of {}",
                    record.tenant,
                    list(tenants.keys())
                );
                return Err(at(ConfigError::new("tenant", reason)));
            }
            if let Some(plan) = &record.plan
                && !plans.contains_key(plan)
            {
                return Err(at(no_plan(plan, plans, "plan")));
            }
            if let Some(tenant) = tenant {
                check_limits(record, tenant, plans).map_err(at)?;
            }
        }
        Ok(records.into_iter().collect())
    }

    /// Somebody may have written the key where its name or its end belongs.
    fn check_no_raw_key(&self, record: &KeyRecord) -> Result<(), ConfigError> {
        let default = KeyFormat::default();
        let formats = || self.formats.iter().chain([&default]);
        let texts = [
            ("id", record.id.as_str()),
            ("shown", &record.shown),
            ("tenant", record.tenant.as_str()),
        ];
        for (field, text) in texts {
            if formats().any(|format| format.check(text).is_ok()) {
                let reason = "this is a key itself, which must stand in no document: replace it in whatever has seen \
                              this file, and write its digest as `digest`";
                return Err(ConfigError::new(field, reason));
            }
        }
        Ok(())
    }

    /// Tenants and keys that the document does not name must keep their plans, too.
    fn check_others(
        &self,
        checked: &Checked,
        plans: &PlansByName,
        loaded: &Loaded,
    ) -> Result<(), ConfigError> {
        if checked.plans.is_none() {
            return Ok(());
        }
        let tenants = self.tenants.iter().flat_map(|store| store.records());
        for current in tenants {
            let base = loaded.tenants.get(&current.id);
            let record = match checked.tenants.get(&current.id) {
                Some(new) => merge::tenant(base, Some(&current), new),
                None if base.is_some() => continue,
                None => TenantRecord::clone(&current),
            };
            if record.access != AccessState::Closed && !plans.contains_key(&record.plan) {
                let who = format!("tenant `{}` was put on it at run time", record.id);
                return Err(plan_in_use(&record.plan, &who));
            }
        }
        let keys = self.keys.iter().flat_map(|store| store.records());
        for (digest, current) in keys {
            let is_ours = checked.keys.contains_key(&digest) || loaded.keys.contains_key(&digest);
            if let Some(plan) = &current.plan
                && !is_ours
                && current.revoked_at.is_none()
                && !plans.contains_key(plan)
            {
                let who = format!("key `{}` was put on it at run time", current.id);
                return Err(plan_in_use(plan, &who));
            }
        }
        Ok(())
    }
}

fn apply_tenants(
    store: &MemoryTenantStore,
    loaded: &Loaded,
    tenants: &BTreeMap<TenantId, TenantRecord>,
    changes: &mut Changes,
) {
    for (id, new) in tenants {
        let base = loaded.tenants.get(id);
        let mut is_new = false;
        let changed = store.change(id, |current| {
            is_new = current.is_none();
            let record = merge::tenant(base, current, new);
            (Some(&record) != current).then(|| merge::next_tenant(record, current))
        });
        changes.count(changed, is_new);
    }
    for id in removed(&loaded.tenants, tenants) {
        let closed = store.change(&id, |current| {
            let mut record = current?.clone();
            if record.access == AccessState::Closed {
                return None;
            }
            record.access = AccessState::Closed;
            Some(merge::next_tenant(record, current))
        });
        changes.removed += usize::from(closed);
    }
}

fn apply_keys(
    store: &MemoryKeyStore,
    loaded: &mut Loaded,
    keys: &BTreeMap<KeyDigest, KeyRecord>,
    changes: &mut Changes,
) {
    for (digest, new) in keys {
        let base = loaded.keys.get(digest);
        let withdrawn = loaded.withdrawn.remove(digest);
        let mut is_new = false;
        let changed = store.change(digest, |current| {
            is_new = current.is_none();
            let mut record = merge::key(base, current, new);
            if Some(&record) == current {
                return None;
            }
            record.version = match (current, withdrawn) {
                (Some(current), _) => current.version.saturating_add(1),
                // The removal was announced as one version more.
                (None, Some(last)) => record.version.max(last.saturating_add(2)),
                (None, None) => record.version,
            };
            Some(record)
        });
        changes.count(changed, is_new);
    }
}

impl Changes {
    fn count(&mut self, changed: bool, is_new: bool) {
        self.added += usize::from(changed && is_new);
        self.changed += usize::from(changed && !is_new);
    }
}

fn removed<K: Ord + Clone, V>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Vec<K> {
    old.keys()
        .filter(|key| !new.contains_key(*key))
        .cloned()
        .collect()
}

fn compare(old: &PlansByName, new: &PlansByName) -> Changes {
    let entry = |plan: &crate::plan::CompiledPlan| PlanEntry::of_plan(plan.to_plan());
    let mut changes = Changes::default();
    for (name, plan) in new {
        match old.get(name) {
            None => changes.added += 1,
            Some(known) if entry(known) != entry(plan) => changes.changed += 1,
            Some(_) => {}
        }
    }
    changes.removed = removed(old, new).len();
    changes
}

/// A key's own rules must fit the plan that they change.
fn check_limits(
    record: &KeyRecord,
    tenant: &TenantRecord,
    plans: &PlansByName,
) -> Result<(), ConfigError> {
    let plan = plans.get(record.plan.as_ref().unwrap_or(&tenant.plan));
    let (Some(plan), false) = (plan, record.limits.is_empty()) else {
        return Ok(());
    };
    let tenant = Tenant::new(Arc::new(tenant.clone()));
    Identity::new(tenant, Arc::clone(plan), Grant::from(record)).map(drop)
}

fn other_store(field: &str) -> ConfigError {
    let reason = format!(
        "the gate keeps its {field} in a store that was given to it by `.{field}(..)`: put them there, or leave \
         that out"
    );
    ConfigError::new(field, reason)
}

fn no_plan(plan: &PlanName, plans: &PlansByName, at: impl Into<String>) -> ConfigError {
    let reason = format!(
        "there is no plan `{plan}`: add it to `plans`, or name one of {}",
        list(plans.keys())
    );
    ConfigError::new(at, reason)
}

fn plan_in_use(plan: &PlanName, by: &str) -> ConfigError {
    let reason =
        format!("plan `{plan}` is gone, and {by}: keep the plan, or move that off it first");
    ConfigError::new("plans", reason)
}

/// The most names that an error shows.
const MAX_LISTED: usize = 10;

fn list<T: fmt::Display>(names: impl ExactSizeIterator<Item = T>) -> String {
    let n_more = names.len().saturating_sub(MAX_LISTED);
    let shown: Vec<_> = names
        .take(MAX_LISTED)
        .map(|name| format!("`{name}`"))
        .collect();
    match (shown.is_empty(), n_more) {
        (true, _) => "those that are there (none is)".to_owned(),
        (false, 0) => shown.join(", "),
        (false, n) => format!("{} and {n} more", shown.join(", ")),
    }
}
