//! What the cache answers, and what is checked on every hit.

use std::sync::{Arc, atomic::AtomicUsize};

use super::{counters::Counters, terms::Terms, uses::Uses};
use crate::{
    auth::{AuthRefusal, KeyDigest, KeyFormat, KeyHasher, KeyListener, KeyStore, KeyUse},
    clock::Now,
    id::TenantId,
    identity::{
        Grant, Identity,
        cache::{Entry, KeyCache, Landed, TenantSlots},
    },
    tenant::{TenantListener, TenantStore},
};

/// Shared by all handles to one authenticator and by the fetches under way.
pub(super) struct Inner {
    pub(super) cache: Arc<KeyCache>,
    pub(super) counters: Counters,
    pub(super) formats: Vec<KeyFormat>,
    pub(super) hasher: KeyHasher,
    pub(super) keys: Arc<dyn KeyStore>,
    pub(super) slots: TenantSlots,
    pub(super) tenants: Arc<dyn TenantStore>,
    pub(super) terms: Terms,
    pub(super) uses: Uses,
    pub(super) waiting: AtomicUsize,
}

impl Inner {
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
        self.judge_now(digest, &entry, now)
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
            return self.judge_now(digest, entry, now);
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
        if !entry
            .tenant
            .refresh_now(&*self.tenants, micros, &self.cache.settings)
        {
            return None;
        }
        self.judge_now(digest, &entry, now)
    }

    /// As [`judge`](Self::judge); `None` when what was known proves too old.
    fn judge_now(
        &self,
        digest: &KeyDigest,
        entry: &Entry,
        now: Now,
    ) -> Option<Result<Identity, AuthRefusal>> {
        let judged = self.judge(digest, entry, now);
        (!is_outdated(&judged, entry)).then_some(judged)
    }

    /// Checks what may have changed since the entry was made, and gives the identity.
    pub(super) fn judge(
        &self,
        digest: &KeyDigest,
        entry: &Entry,
        now: Now,
    ) -> Result<Identity, AuthRefusal> {
        let record = &*entry.record;
        if record.revoked_at.is_some() {
            return Err(AuthRefusal::Revoked);
        }
        if !record.is_usable_at(now.wall()) {
            return Err(AuthRefusal::Expired);
        }
        if !self.terms.serves(record.environment) {
            return Err(AuthRefusal::WrongEnvironment);
        }
        if entry.is_use_due(now.monotonic_micros()) {
            self.note_use(digest, entry, now);
        }
        let grant = || Grant::from(record);
        self.terms
            .resolve(&entry.resolved, &entry.tenant, record.plan.as_ref(), grant)
    }

    /// Once a minute for each key.
    #[cold]
    fn note_use(&self, digest: &KeyDigest, entry: &Entry, now: Now) {
        let id = entry.record.id.clone();
        if !self.uses.note(KeyUse::new(*digest, id, now.wall())) {
            entry.note_again();
        }
    }
}

/// Whether the plan was missed because the tenant has another by now: plans are taken away after their tenants were
/// moved, and the move is announced at once.
pub(super) fn is_outdated(judged: &Result<Identity, AuthRefusal>, entry: &Entry) -> bool {
    matches!(judged, Err(AuthRefusal::PlanUnknown)) && entry.tenant.is_known_changed()
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
