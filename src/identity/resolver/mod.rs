//! From an API key to an identity.

mod counters;
mod fetch;
mod gauges;
mod inner;
mod terms;
mod uses;

use std::{
    fmt,
    sync::{Arc, Weak, atomic::AtomicUsize},
};

use smallvec::SmallVec;

pub(super) use self::terms::Terms;
use self::{counters::Counters, inner::Inner, uses::Uses};
use super::{
    Attempt, Authenticate, CacheSettings,
    cache::{KeyCache, TenantSlots},
};
use crate::{
    auth::{AuthRefusal, Credential, KeyDigest, KeyFormat, KeyHasher, KeyStore, MAX_KEY_BYTES},
    clock::Now,
    error::ConfigError,
    head::RequestHead,
    id::{Environment, PlanName},
    plan::PlanCatalog,
    tenant::TenantStore,
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
/// The first use of each key in a minute is noted, for [`KeyStore::touch`]: a gate hands what was noted to the
/// store once a second; who uses an authenticator alone calls [`write_uses`](Self::write_uses) as often.
///
/// Cloning gives a second handle to the same cache.
#[derive(Clone)]
pub struct KeyAuthenticator {
    inner: Arc<Inner>,
}

/// Sets up a [`KeyAuthenticator`].
#[derive(Debug)]
#[must_use]
pub struct KeyAuthenticatorBuilder {
    cache: CacheSettings,
    formats: Vec<KeyFormat>,
    hasher: KeyHasher,
    keys: Arc<dyn KeyStore>,
    tenants: Arc<dyn TenantStore>,
    terms: Terms,
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
            formats: Vec::new(),
            hasher: KeyHasher::default(),
            keys,
            tenants,
            terms: Terms {
                catalog,
                only: None,
                sandbox_plan: None,
            },
        }
    }

    /// Hands the uses of keys that were noted to the key store, in batches; a gate does so by itself. Does nothing
    /// while another call does it. What a store does not take is forgotten: the key's next use is noted again
    /// within a minute.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have handed over any part.
    pub async fn write_uses(&self) {
        let settings = &self.inner.cache.settings;
        let (uses, keys) = (&self.inner.uses, &*self.inner.keys);
        uses.write(keys, settings.store_deadline).await;
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
        self.terms.only = Some(environment);
        self
    }

    /// The plan of every test key that has none of its own; the tenant's plan unless set.
    pub fn sandbox_plan(mut self, plan: PlanName) -> Self {
        self.terms.sandbox_plan = Some(plan);
        self
    }

    /// Checks the settings and asks both stores to announce changes.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when a cache setting is out of its range or the sandbox plan is not in the catalog.
    pub fn build(self) -> Result<KeyAuthenticator, ConfigError> {
        self.cache.check()?;
        self.terms.check()?;
        let mut formats = self.formats;
        if formats.is_empty() {
            formats.push(KeyFormat::default());
        }
        let inner = Arc::new(Inner {
            cache: Arc::new(KeyCache::new(self.cache)),
            counters: Counters::new(),
            formats,
            hasher: self.hasher,
            keys: self.keys,
            slots: TenantSlots::new(),
            tenants: self.tenants,
            terms: self.terms,
            uses: Uses::new(),
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
        // A key that is known to work has passed what follows; what is no key is not known.
        if key.len() <= MAX_KEY_BYTES
            && let Some(result) = inner.resolve_known(&inner.hasher.digest(key), now)
        {
            return Attempt::Done(result);
        }
        let Some(environment) = inner.formats.iter().find_map(|form| form.check(key).ok()) else {
            return Attempt::NotMine;
        };
        if environment.is_some_and(|environment| !inner.terms.serves(environment)) {
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

impl fmt::Debug for KeyAuthenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyAuthenticator")
            .field("keys", &self.inner.keys)
            .field("tenants", &self.inner.tenants)
            .field("cache", &self.inner.cache.settings)
            .finish_non_exhaustive()
    }
}
