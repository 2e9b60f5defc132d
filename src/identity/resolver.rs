use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use metrics::Counter;
use smallvec::SmallVec;

use super::{
    Attempt, Authenticate, CacheSettings, Grant, Identity,
    cache::{Entry, Fill, KeyCache, Landed, Resolved, TenantSlot, TenantSlots, Ticket},
};
use crate::{
    auth::{
        AuthRefusal, Credential, KeyDigest, KeyFormat, KeyHasher, KeyListener, KeyRecord, KeyStore,
    },
    clock::Now,
    error::ConfigError,
    head::RequestHead,
    id::{Environment, PlanName, TenantId},
    plan::PlanCatalog,
    tenant::{Tenant, TenantListener, TenantRecord, TenantStore},
};

/// Authenticates API keys: form, digest, key, tenant, plan, and all of it cached together.
///
/// 1. A text that is no key by its form or checksum is not looked up.
/// 2. A key seen before costs one hash and one look-up in memory. Revocation, expiry, environment, the
///    catalog's version and the tenant's record are checked each time, so a plan edited or a tenant changed
///    takes effect on the next call.
/// 3. A key not seen before is fetched once, however many requests wait for it. A store that answers at once,
///    as the one in memory does, needs no waiting at all.
/// 4. Keys that do not work are remembered apart from those that do, for a short time and within bounds.
/// 5. When a store fails, a key seen to work is served for [`CacheSettings::stale_if_error`]; any other
///    request is answered 503, never 401.
///
/// Changes that the stores announce take effect before the announcement returns; others after
/// [`CacheSettings::ttl`]. Fetches run as tasks of the tokio runtime, which must have its timer on.
///
/// Cloning gives a second handle to the same cache.
#[derive(Clone)]
pub struct KeyAuthenticator {
    inner: Arc<Inner>,
}

struct Inner {
    cache: Arc<KeyCache>,
    catalog: PlanCatalog,
    counters: Counters,
    formats: Vec<KeyFormat>,
    hasher: KeyHasher,
    keys: Arc<dyn KeyStore>,
    only: Option<Environment>,
    sandbox_plan: Option<PlanName>,
    slots: TenantSlots,
    tenants: Arc<dyn TenantStore>,
    waiting: AtomicUsize,
}

/// Sets up a [`KeyAuthenticator`].
#[derive(Debug)]
#[must_use]
pub struct KeyAuthenticatorBuilder {
    cache: CacheSettings,
    catalog: PlanCatalog,
    formats: Vec<KeyFormat>,
    hasher: KeyHasher,
    keys: Arc<dyn KeyStore>,
    only: Option<Environment>,
    sandbox_plan: Option<PlanName>,
    tenants: Arc<dyn TenantStore>,
}

impl KeyAuthenticator {
    /// Starts from the stores and the plans; keys are of the default [`KeyFormat`], known by SHA-256.
    pub fn builder(
        keys: Arc<dyn KeyStore>,
        tenants: Arc<dyn TenantStore>,
        catalog: PlanCatalog,
    ) -> KeyAuthenticatorBuilder {
        KeyAuthenticatorBuilder {
            cache: CacheSettings::new(),
            catalog,
            formats: Vec::new(),
            hasher: KeyHasher::default(),
            keys,
            only: None,
            sandbox_plan: None,
            tenants,
        }
    }

    /// How many working keys and how many keys that do not work are remembered now.
    #[must_use]
    pub fn n_cached(&self) -> (usize, usize) {
        self.inner.cache.n_kept()
    }
}

impl KeyAuthenticatorBuilder {
    /// How long and how much is cached.
    pub const fn cache(mut self, settings: CacheSettings) -> Self {
        self.cache = settings;
        self
    }

    /// Accepts keys of this format; several calls accept several. [`KeyFormat::default`] unless set.
    pub fn format(mut self, format: KeyFormat) -> Self {
        self.formats.push(format);
        self
    }

    /// How keys become digests; SHA-256 without a pepper unless set.
    pub fn hasher(mut self, hasher: KeyHasher) -> Self {
        self.hasher = hasher;
        self
    }

    /// Serves keys of this environment alone; the others are answered 400 `mode_mismatch`. Both unless set.
    pub const fn only(mut self, environment: Environment) -> Self {
        self.only = Some(environment);
        self
    }

    /// The plan of every test key that has none of its own; the tenant's plan unless set.
    pub fn sandbox_plan(mut self, plan: PlanName) -> Self {
        self.sandbox_plan = Some(plan);
        self
    }

    /// Checks the settings and asks both stores to announce changes.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when a cache setting is out of its range or the sandbox plan is not in the catalog.
    pub fn build(self) -> Result<KeyAuthenticator, ConfigError> {
        self.cache.check()?;
        if let Some(plan) = &self.sandbox_plan
            && self.catalog.find(plan).is_none()
        {
            let reason = format!("the catalog has no plan `{plan}`: add it or name another");
            return Err(ConfigError::new("sandbox_plan", reason));
        }
        let mut formats = self.formats;
        if formats.is_empty() {
            formats.push(KeyFormat::default());
        }
        let inner = Arc::new(Inner {
            cache: Arc::new(KeyCache::new(self.cache)),
            catalog: self.catalog,
            counters: Counters::new(),
            formats,
            hasher: self.hasher,
            keys: self.keys,
            only: self.only,
            sandbox_plan: self.sandbox_plan,
            slots: TenantSlots::new(),
            tenants: self.tenants,
            waiting: AtomicUsize::new(0),
        });
        let of_keys: Weak<Inner> = Arc::downgrade(&inner);
        let of_tenants: Weak<Inner> = Weak::clone(&of_keys);
        inner.keys.subscribe(of_keys);
        inner.tenants.subscribe(of_tenants);
        Ok(KeyAuthenticator { inner })
    }
}

impl Authenticate for KeyAuthenticator {
    fn authenticate(
        &self,
        credential: Option<&Credential<'_>>,
        _head: &RequestHead<'_>,
        now: Now,
    ) -> Attempt {
        let Some(key) = credential.map(|credential| credential.value) else {
            return Attempt::NotMine;
        };
        let inner = &self.inner;
        let Some(environment) = inner.formats.iter().find_map(|form| form.check(key).ok()) else {
            return Attempt::NotMine;
        };
        if environment.is_some_and(|environment| !inner.serves(environment)) {
            return Attempt::Done(Err(AuthRefusal::WrongEnvironment));
        }
        // A key digested under an older pepper is under another digest: any of them may be known.
        let mut unknown_yet = SmallVec::<[KeyDigest; 2]>::new();
        let mut has_worked = false;
        for digest in inner.hasher.digests(key) {
            match inner.resolve_now(&digest, now) {
                Some(Err(AuthRefusal::Unknown)) => {}
                Some(result) => return Attempt::Done(result),
                None => {
                    has_worked |= inner.cache.get(&digest).is_some();
                    unknown_yet.push(digest);
                }
            }
        }
        if unknown_yet.is_empty() {
            return Attempt::Done(Err(AuthRefusal::Unknown));
        }
        let trip = Box::pin(Arc::clone(inner).look_up(unknown_yet, now));
        if has_worked {
            Attempt::Refresh(trip)
        } else {
            Attempt::Lookup(trip)
        }
    }
}

impl Inner {
    fn serves(&self, environment: Environment) -> bool {
        self.only.is_none_or(|only| only == environment)
    }

    /// Answers from the cache, or from stores that answer at once; `None` when a trip is needed.
    fn resolve_now(&self, digest: &KeyDigest, now: Now) -> Option<Result<Identity, AuthRefusal>> {
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
    fn judge(&self, entry: &Entry, now: Now) -> Result<Identity, AuthRefusal> {
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

    /// Asks the stores, with everybody else who needs the same key.
    async fn look_up(
        self: Arc<Self>,
        digests: SmallVec<[KeyDigest; 2]>,
        now: Now,
    ) -> Result<Identity, AuthRefusal> {
        let _seat = Seat::take(&self)?;
        for digest in digests {
            match self.look_up_one(&digest, now).await {
                Err(AuthRefusal::Unknown) => {}
                result => return result,
            }
        }
        Err(AuthRefusal::Unknown)
    }

    async fn look_up_one(
        self: &Arc<Self>,
        digest: &KeyDigest,
        now: Now,
    ) -> Result<Identity, AuthRefusal> {
        // A change announced while the fetch ran makes its answer too old; each try reads later than the last.
        for _ in 0..MAX_TRIES {
            match self.fetch_together(digest, now).await {
                Landed::Entry(entry) if entry.tenant.is_known_changed() => {}
                Landed::Entry(entry) => return self.judge(&entry, now),
                Landed::Outdated => {}
                Landed::Refused(refusal) => return Err(refusal),
            }
        }
        Err(AuthRefusal::StoreUnavailable)
    }

    async fn fetch_together(self: &Arc<Self>, digest: &KeyDigest, now: Now) -> Landed {
        let failed = Landed::Refused(AuthRefusal::StoreUnavailable);
        let Ok((mut flight, ticket)) = self.cache.board(digest) else {
            self.counters.turned_away.increment(1);
            return failed;
        };
        if let Some(ticket) = ticket {
            // A task of its own: the request that started the fetch may be given up, the others wait on.
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn(Arc::clone(self).fly(ticket, now))),
                Err(error) => {
                    tracing::error!(%error, "keys are looked up by tasks, which need a tokio runtime");
                    return failed;
                }
            }
        }
        match flight.wait_for(Option::is_some).await {
            Ok(landed) => landed.clone().unwrap_or(failed),
            Err(_) => failed,
        }
    }

    async fn fly(self: Arc<Self>, ticket: Ticket, now: Now) {
        let deadline = self.cache.settings.store_deadline;
        let fetch = self.fetch(ticket.digest(), now);
        let (fill, slot) = tokio::time::timeout(deadline, fetch)
            .await
            .unwrap_or_else(|_| {
                tracing::warn!(?deadline, "the stores of keys and tenants are too slow");
                (Fill::Failed, None)
            });
        match &fill {
            Fill::Failed => self.counters.failed_fetches.increment(1),
            Fill::Found(_) | Fill::TenantOnly => self.counters.fetches.increment(1),
        }
        ticket.land(fill, now, &self.slots);
        // Held until an entry holds it: a slot that nobody holds is gone, and with it what was fetched.
        drop(slot);
    }

    async fn fetch(&self, digest: &KeyDigest, now: Now) -> (Fill, Option<Arc<TenantSlot>>) {
        let micros = now.monotonic_micros();
        let known = self.cache.get(digest);
        let (fill, slot) = match known.filter(|entry| !entry.key_is_due(micros)) {
            Some(entry) => (Fill::TenantOnly, Arc::clone(&entry.tenant)),
            None => match self.keys.find(digest).await {
                Ok(Some(record)) if record.is_usable_at(now.wall()) => {
                    let slot = self.slots.slot(&record.tenant);
                    (Fill::Found(Some(record)), slot)
                }
                Ok(record) => return (Fill::Found(record), None),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "the key store failed");
                    return (Fill::Failed, None);
                }
            },
        };
        if self.refresh(&slot, micros).await {
            (fill, Some(slot))
        } else {
            (Fill::Failed, None)
        }
    }

    /// Brings a tenant's record up to date; `false` when its store failed and nothing may be served.
    async fn refresh(&self, slot: &TenantSlot, now: u64) -> bool {
        let settings = &self.cache.settings;
        if !slot.is_due(now) {
            return true;
        }
        let _turn = slot.fetching.lock().await;
        for _ in 0..MAX_TRIES {
            if !slot.is_due(now) {
                break;
            }
            let changes = slot.changes();
            match self.tenants.find(slot.id()).await {
                Ok(record) => {
                    if slot.fetched(record, changes, now, settings) {
                        break;
                    }
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "the tenant store failed");
                    return slot.outlives_error(now, settings);
                }
            }
        }
        true
    }
}

/// How often a fetch is repeated because a change was announced while it ran.
const MAX_TRIES: usize = 3;

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

impl fmt::Debug for KeyAuthenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyAuthenticator")
            .field("keys", &self.inner.keys)
            .field("tenants", &self.inner.tenants)
            .field("cache", &self.inner.cache.settings)
            .finish_non_exhaustive()
    }
}

/// One of the places for requests that wait for a store.
struct Seat<'a>(&'a AtomicUsize);

impl<'a> Seat<'a> {
    fn take(inner: &'a Inner) -> Result<Self, AuthRefusal> {
        // Made first, so that its drop gives the place back when there was none.
        let seat = Self(&inner.waiting);
        if inner.waiting.fetch_add(1, Ordering::Relaxed) < inner.cache.settings.max_waiting {
            return Ok(seat);
        }
        inner.counters.turned_away.increment(1);
        Err(AuthRefusal::StoreUnavailable)
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Made once: a hit only adds to a number.
struct Counters {
    failed_fetches: Counter,
    fetches: Counter,
    hits: Counter,
    misses: Counter,
    negative_hits: Counter,
    turned_away: Counter,
}

impl Counters {
    fn new() -> Self {
        let cache = |result: &'static str| metrics::counter!("tollgate_identity_cache_total", "result" => result);
        let fetch = |result: &'static str| metrics::counter!("tollgate_identity_fetches_total", "result" => result);
        Self {
            failed_fetches: fetch("failed"),
            fetches: fetch("answered"),
            hits: cache("hit"),
            misses: cache("miss"),
            negative_hits: cache("negative_hit"),
            turned_away: fetch("turned_away"),
        }
    }
}
