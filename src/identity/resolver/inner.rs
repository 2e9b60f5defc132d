//! What the cache answers, and what is checked on every hit.

use std::sync::{Arc, atomic::AtomicUsize};

use super::counters::Counters;
use crate::{
    auth::{AuthRefusal, KeyDigest, KeyFormat, KeyHasher, KeyListener, KeyRecord, KeyStore},
    clock::Now,
    id::{Environment, PlanName, TenantId},
    identity::{
        Grant, Identity,
        cache::{Entry, KeyCache, Landed, Resolved, TenantSlots},
    },
    plan::PlanCatalog,
    tenant::{Tenant, TenantListener, TenantRecord, TenantStore},
};

/// Shared by all handles to one authenticator and by the fetches under way.
pub(super) struct Inner {
    pub(super) cache: Arc<KeyCache>,
    pub(super) catalog: PlanCatalog,
    pub(super) counters: Counters,
    pub(super) formats: Vec<KeyFormat>,
    pub(super) hasher: KeyHasher,
    pub(super) keys: Arc<dyn KeyStore>,
    pub(super) only: Option<Environment>,
    pub(super) sandbox_plan: Option<PlanName>,
    pub(super) slots: TenantSlots,
    pub(super) tenants: Arc<dyn TenantStore>,
    pub(super) waiting: AtomicUsize,
}

impl Inner {
    pub(super) fn serves(&self, environment: Environment) -> bool {
        self.only.is_none_or(|only| only == environment)
    }

    /// Answers for a key that was seen to work and need not be fetched again.
    #[inline]
    pub(super) fn resolve_known(
        &self,
        digest: &KeyDigest,
        now: Now,
    ) -> Option<Result<Identity, AuthRefusal>> {
        let entry = self.cache.get(digest)?;
        if entry.is_due(now.monotonic_micros()) {
            return None;
        }
        self.counters.hits.increment(1);
        Some(self.judge(&entry, now))
    }

    /// Answers from the cache, or from stores that answer at once; `None` when a trip is needed.
    pub(super) fn resolve_now(
        &self,
        digest: &KeyDigest,
        now: Now,
    ) -> Option<Result<Identity, AuthRefusal>> {
        let micros = now.monotonic_micros();
        // Read before a store is asked, see `KeyCache::accept_now`.
        let epoch = self.cache.epoch();
        let known = self.cache.get(digest);
        if let Some(entry) = &known
            && !entry.is_due(micros)
        {
            self.counters.hits.increment(1);
            return Some(self.judge(entry, now));
        }
        if let Some(refusal) = self.cache.refusal(digest, micros) {
            self.counters.negative_hits.increment(1);
            return Some(Err(refusal));
        }
        self.counters.misses.increment(1);
        let entry = match known.filter(|entry| !entry.key_is_due(micros)) {
            Some(entry) => entry,
            None => {
                let record = self.keys.find_now(digest)?;
                match self
                    .cache
                    .accept_now(digest, record, epoch, now, &self.slots)
                {
                    Landed::Entry(entry) => entry,
                    Landed::Outdated => return None,
                    Landed::Refused(refusal) => return Some(Err(refusal)),
                }
            }
        };
        if entry.tenant.is_due(micros) {
            let changes = entry.tenant.changes();
            let record = self.tenants.find_now(entry.tenant.id())?;
            entry
                .tenant
                .fetched(record, changes, micros, &self.cache.settings);
        }
        Some(self.judge(&entry, now))
    }

    /// Checks what may have changed since the entry was made, and gives the identity.
    pub(super) fn judge(&self, entry: &Entry, now: Now) -> Result<Identity, AuthRefusal> {
        let record = &*entry.record;
        if record.revoked_at.is_some() {
            return Err(AuthRefusal::Revoked);
        }
        if !record.is_usable_at(now.wall()) {
            return Err(AuthRefusal::Expired);
        }
        if !self.serves(record.environment) {
            return Err(AuthRefusal::WrongEnvironment);
        }
        // Read before the plan: a plan that is newer than its number is resolved once more, an older one not
        // taken for new.
        let plans = self.catalog.version();
        if let Some(resolved) = &*entry.resolved.load()
            && resolved.plans == plans
            && resolved.tenant == entry.tenant.stamp()
        {
            return resolved.outcome.clone();
        }
        let (stamp, tenant) = entry.tenant.read();
        let outcome = tenant
            .ok_or(AuthRefusal::TenantUnknown)
            .and_then(|tenant| self.identity(record, tenant));
        entry.resolved.store(Some(Arc::new(Resolved {
            outcome: outcome.clone(),
            plans,
            tenant: stamp,
        })));
        outcome
    }

    fn identity(
        &self,
        record: &KeyRecord,
        tenant: Arc<TenantRecord>,
    ) -> Result<Identity, AuthRefusal> {
        let sandbox = match record.environment {
            Environment::Test => self.sandbox_plan.as_ref(),
            Environment::Live => None,
        };
        let name = record.plan.as_ref().or(sandbox).unwrap_or(&tenant.plan);
        let Some(plan) = self.catalog.find(name) else {
            tracing::error!(key = %record.id, tenant = %tenant.id, plan = %name, "no such plan in the catalog");
            return Err(AuthRefusal::PlanUnknown);
        };
        Identity::new(Tenant::new(tenant), plan, Grant::from(record)).map_err(|error| {
            tracing::error!(key = %record.id, tenant = %record.tenant, %error, "the key's own limits do not fit its plan");
            AuthRefusal::PlanUnknown
        })
    }
}

impl KeyListener for Inner {
    fn key_changed(&self, digest: &KeyDigest, version: u64) {
        self.cache.changed(digest, version);
    }

    fn keys_lost(&self) {
        self.cache.forget_all();
    }
}

impl TenantListener for Inner {
    fn tenant_changed(&self, id: &TenantId) {
        self.slots.changed(id);
    }

    fn tenants_lost(&self) {
        self.slots.all_changed();
    }
}
