//! What is known of tokens, and what is checked on every hit.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arc_swap::ArcSwapOption;
use metrics::Counter;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::ClaimsToIdentity;
use crate::{
    auth::{
        AuthRefusal, KeyDigest,
        jwt::{Fault, Issuer, Ready, TokenPolicy, Validity, Verified, verify},
    },
    clock::Now,
    id::{PlanName, TenantId},
    identity::{
        Attempt, Grant, Identity, Terms,
        cache::{CacheSettings, DigestCache, Resolved, TenantSlot, TenantSlots},
    },
    tenant::{TenantListener, TenantStore},
};

/// Shared by all handles to one authenticator and by the requests that wait.
pub(super) struct Inner {
    pub(super) cache: DigestCache<Arc<Entry>>,
    pub(super) hits: Counter,
    pub(super) issuers: Box<[Issuer]>,
    pub(super) mapping: Box<dyn ClaimsToIdentity>,
    pub(super) misses: Counter,
    pub(super) policy: TokenPolicy,
    /// Places for requests that wait for keys, which strangers can bring about.
    pub(super) seats: Semaphore,
    pub(super) settings: CacheSettings,
    pub(super) slots: TenantSlots,
    pub(super) tenants: Arc<dyn TenantStore>,
    /// Places for requests that wait for a tenant, which takes a valid token.
    pub(super) tenant_seats: Semaphore,
    pub(super) terms: Terms,
}

/// A token that was verified, and the identity made of it.
pub(super) struct Entry {
    fingerprint: [u8; 32],
    /// Of the newest set of keys that has the one which verified the token.
    generation: AtomicU64,
    grant: Grant,
    issuer: usize,
    plan: Option<PlanName>,
    resolved: ArcSwapOption<Resolved>,
    tenant: Arc<TenantSlot>,
    validity: Validity,
}

/// How far a token came without waiting.
enum Step {
    Done(Result<Identity, AuthRefusal>),
    /// The keys of this issuer must be fetched; whether the token worked before.
    Keys(usize, bool),
    Tenant(Arc<Entry>),
}

impl Inner {
    pub(super) fn authenticate(
        self: &Arc<Self>,
        token: &str,
        digest: KeyDigest,
        now: Now,
    ) -> Attempt {
        match self.step(token, &digest, now) {
            Step::Done(result) => Attempt::Done(result),
            Step::Keys(issuer, has_worked) => {
                let token = Zeroizing::new(token.to_owned());
                let trip = Box::pin(Arc::clone(self).with_keys(token, digest, issuer, now));
                if has_worked {
                    Attempt::Refresh(trip)
                } else {
                    Attempt::Lookup(trip)
                }
            }
            // Only a token with a valid signature comes here, which no attacker can make.
            Step::Tenant(entry) => {
                Attempt::Refresh(Box::pin(Arc::clone(self).with_tenant(entry, now)))
            }
        }
    }

    fn step(&self, token: &str, digest: &KeyDigest, now: Now) -> Step {
        let mut has_worked = false;
        if let Some(entry) = self.cache.get(digest) {
            has_worked = true;
            if let Err(refusal) = entry.validity.check(now.wall()) {
                if refusal == AuthRefusal::Expired {
                    self.cache.remove(digest);
                }
                return Step::Done(Err(refusal));
            }
            match self.stands(&entry, now) {
                Ok(true) => {
                    self.hits.increment(1);
                    return self.conclude(entry, now);
                }
                // Its key was withdrawn. Another may have the same id: the token is judged anew.
                Ok(false) => drop(self.cache.remove(digest)),
                Err(fault) => return fault.into_step(true),
            }
        }
        self.misses.increment(1);
        match self.admit(token, now) {
            Ok(entry) => {
                self.cache.insert(*digest, Arc::clone(&entry));
                self.conclude(entry, now)
            }
            Err(fault) => fault.into_step(has_worked),
        }
    }

    /// Whether the issuer still has the key that verified the token.
    fn stands(&self, entry: &Entry, now: Now) -> Result<bool, Fault> {
        let Some(issuer) = self.issuers.get(entry.issuer) else {
            return Ok(false);
        };
        match issuer.ring.ready(now.monotonic_micros()) {
            Ready::Wait => Err(Fault::NeedsKeys(entry.issuer)),
            Ready::Unavailable => Err(AuthRefusal::StoreUnavailable.into()),
            Ready::Keys(set) => {
                if entry.generation.load(Ordering::Relaxed) == set.generation {
                    return Ok(true);
                }
                let stands = set.has(&entry.fingerprint);
                if stands {
                    entry.generation.store(set.generation, Ordering::Relaxed);
                }
                Ok(stands)
            }
        }
    }

    /// Verifies a token that is not known.
    fn admit(&self, token: &str, now: Now) -> Result<Arc<Entry>, Fault> {
        let Verified {
            claims,
            mut validity,
            issuer,
            fingerprint,
            generation,
        } = verify(token, &self.issuers, &self.policy, now)?;
        let mapped = self.mapping.token_grant(&claims)?;
        let mut grant = mapped.grant;
        let end = claims.expires_at();
        if let Some(own) = grant.expires_at {
            validity.until = validity.until.min(own);
            validity.check(now.wall())?;
        }
        grant.expires_at = Some(grant.expires_at.map_or(end, |own| own.min(end)));
        if !self.terms.serves(grant.environment) {
            return Err(AuthRefusal::WrongEnvironment.into());
        }
        Ok(Arc::new(Entry {
            fingerprint,
            generation: AtomicU64::new(generation),
            grant,
            issuer,
            plan: mapped.plan,
            resolved: ArcSwapOption::empty(),
            tenant: self.slots.slot(&mapped.tenant),
            validity,
        }))
    }

    fn conclude(&self, entry: Arc<Entry>, now: Now) -> Step {
        let micros = now.monotonic_micros();
        if entry
            .tenant
            .refresh_now(&*self.tenants, micros, &self.settings)
        {
            Step::Done(self.identity(&entry))
        } else {
            Step::Tenant(entry)
        }
    }

    fn identity(&self, entry: &Entry) -> Result<Identity, AuthRefusal> {
        let grant = || entry.grant.clone();
        self.terms
            .resolve(&entry.resolved, &entry.tenant, entry.plan.as_ref(), grant)
    }

    /// Waits for an issuer's keys, and judges the token by what they are then.
    async fn with_keys(
        self: Arc<Self>,
        token: Zeroizing<String>,
        digest: KeyDigest,
        issuer: usize,
        now: Now,
    ) -> Result<Identity, AuthRefusal> {
        let unavailable = AuthRefusal::StoreUnavailable;
        {
            let _seat = self.seats.try_acquire().map_err(|_| unavailable)?;
            let issuer = self.issuers.get(issuer).ok_or(unavailable)?;
            issuer.ring.refresh(now.monotonic_micros()).await;
        }
        match self.step(&token, &digest, now) {
            Step::Done(result) => result,
            // Asked once; whoever comes next asks again.
            Step::Keys(..) => Err(unavailable),
            Step::Tenant(entry) => self.with_tenant(entry, now).await,
        }
    }

    /// Waits for the tenant's record.
    async fn with_tenant(
        self: Arc<Self>,
        entry: Arc<Entry>,
        now: Now,
    ) -> Result<Identity, AuthRefusal> {
        let unavailable = AuthRefusal::StoreUnavailable;
        let _seat = self.tenant_seats.try_acquire().map_err(|_| unavailable)?;
        let deadline = self.settings.store_deadline;
        let micros = now.monotonic_micros();
        let fetch = entry.tenant.refresh(&*self.tenants, micros, &self.settings);
        match tokio::time::timeout(deadline, fetch).await {
            Ok(true) => {}
            Ok(false) => return Err(unavailable),
            Err(_) => {
                tracing::warn!(?deadline, "the tenant store is too slow");
                if !entry.tenant.outlives_error(micros, &self.settings) {
                    return Err(unavailable);
                }
            }
        }
        // A change that was announced while the last try ran is not waited for once more.
        if entry.tenant.is_known_changed() {
            return Err(unavailable);
        }
        self.identity(&entry)
    }
}

impl Fault {
    fn into_step(self, has_worked: bool) -> Step {
        match self {
            Self::Refused(refusal) => Step::Done(Err(refusal)),
            Self::NeedsKeys(issuer) => Step::Keys(issuer, has_worked),
        }
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
