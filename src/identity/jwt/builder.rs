use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use metrics::counter;
use tokio::sync::Semaphore;

use super::{ClaimMapping, ClaimsToIdentity, JwtAuthenticator, inner::Inner};
use crate::{
    auth::{
        KeyHasher,
        jwt::{
            Audiences, Issuer, JwksRefresh, JwksSource, JwtAlgorithm, SharedSecret, TokenPolicy,
        },
    },
    error::ConfigError,
    id::{Environment, PlanName},
    identity::{
        CacheSettings, Terms,
        cache::{TenantSlots, digest_cache},
    },
    plan::PlanCatalog,
    tenant::TenantStore,
};

/// Sets up a [`JwtAuthenticator`].
#[must_use]
pub struct JwtAuthenticatorBuilder {
    cache: Option<CacheSettings>,
    capacity: usize,
    issuers: Vec<(Box<str>, Keys)>,
    mapping: Box<dyn ClaimsToIdentity>,
    only: Option<Environment>,
    policy: TokenPolicy,
    refresh: JwksRefresh,
    sandbox_plan: Option<PlanName>,
}

enum Keys {
    Source(Box<dyn JwksSource>),
    Secret(SharedSecret),
}

impl JwtAuthenticatorBuilder {
    pub(super) fn new() -> Self {
        Self {
            cache: None,
            capacity: 10_000,
            issuers: Vec::new(),
            mapping: Box::new(ClaimMapping::new()),
            only: None,
            policy: TokenPolicy::new(),
            refresh: JwksRefresh::new(),
            sandbox_plan: None,
        }
    }

    /// Trusts an issuer, by the exact text of `iss`, and the keys that vouch for it. Several calls trust several,
    /// each by its own keys. At least one is needed.
    pub fn issuer(mut self, name: impl AsRef<str>, keys: impl JwksSource) -> Self {
        let keys = Keys::Source(Box::new(keys));
        self.issuers.push((name.as_ref().into(), keys));
        self
    }

    /// Trusts an issuer that signs with HMAC under a shared secret. Such an issuer has no other keys, and other
    /// issuers accept no HMAC.
    pub fn issuer_with_secret(mut self, name: impl AsRef<str>, secret: SharedSecret) -> Self {
        let keys = Keys::Secret(secret);
        self.issuers.push((name.as_ref().into(), keys));
        self
    }

    /// What this service is called in `aud`; of several one must match. Needed, or
    /// [`any_audience`](Self::any_audience).
    pub fn audience(mut self, name: impl AsRef<str>) -> Self {
        let name = name.as_ref().into();
        match &mut self.policy.audiences {
            Audiences::OneOf(names) => names.push(name),
            Audiences::Any => self.policy.audiences = Audiences::OneOf(vec![name]),
        }
        self
    }

    /// Accepts tokens whatever `aud` says, those meant for another service included: only for an issuer that
    /// issues for this service alone.
    pub fn any_audience(mut self) -> Self {
        self.policy.audiences = Audiences::Any;
        self
    }

    /// The algorithms accepted of issuers with a key set; [`JwtAlgorithm::ALL`] unless set.
    pub fn algorithms(mut self, algorithms: impl IntoIterator<Item = JwtAlgorithm>) -> Self {
        self.policy.algorithms = algorithms.into_iter().collect();
        self
    }

    /// By how much clocks may differ, for `exp`, `nbf` and `iat`; 60 seconds unless set, at most 5 minutes.
    pub const fn leeway(mut self, leeway: Duration) -> Self {
        self.policy.leeway = leeway;
        self
    }

    /// Accepts only tokens of the type `at+jwt` (RFC 9068), so that no ID token passes for an access token; off
    /// unless set, as many providers do not write the type yet.
    pub const fn access_tokens_only(mut self, on: bool) -> Self {
        self.policy.access_tokens_only = on;
        self
    }

    /// The longest token, in bytes; 8,192 unless set, which is also the most. Checked before anything is decoded.
    pub const fn max_bytes(mut self, max_bytes: usize) -> Self {
        self.policy.max_bytes = max_bytes;
        self
    }

    /// How often the issuers' keys are fetched.
    pub const fn refresh(mut self, refresh: JwksRefresh) -> Self {
        self.refresh = refresh;
        self
    }

    /// Makes of claims whom a token speaks for; [`ClaimMapping`] unless set. A closure works.
    pub fn claims(mut self, mapping: impl ClaimsToIdentity) -> Self {
        self.mapping = Box::new(mapping);
        self
    }

    /// How many verified tokens are remembered, so that they are not verified again; 10,000 unless set, at least
    /// 1.
    pub const fn capacity(mut self, n_tokens: usize) -> Self {
        self.capacity = n_tokens;
        self
    }

    /// How long tenants are cached, and how many requests may wait; the gate's settings, or the default, unless
    /// set. Its capacities are those of keys and have no meaning here.
    pub const fn cache(mut self, settings: CacheSettings) -> Self {
        self.cache = Some(settings);
        self
    }

    /// Serves tokens of this environment alone; the gate's, or both, unless set.
    pub const fn only(mut self, environment: Environment) -> Self {
        self.only = Some(environment);
        self
    }

    /// The plan of test tokens that have none of their own; the gate's, or the tenant's plan, unless set.
    pub fn sandbox_plan(mut self, plan: PlanName) -> Self {
        self.sandbox_plan = Some(plan);
        self
    }

    /// Takes over from a gate what is not set here.
    pub(crate) fn within(
        mut self,
        cache: CacheSettings,
        only: Option<Environment>,
        sandbox_plan: Option<PlanName>,
    ) -> Self {
        self.cache = self.cache.or(Some(cache));
        self.only = self.only.or(only);
        self.sandbox_plan = self.sandbox_plan.or(sandbox_plan);
        self
    }

    /// Checks the settings and asks the tenant store to announce changes. Fetches nothing yet.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the setting: without an issuer, with one twice, without an audience, and where a
    /// number is out of its range.
    pub fn build(
        self,
        tenants: Arc<dyn TenantStore>,
        catalog: PlanCatalog,
    ) -> Result<JwtAuthenticator, ConfigError> {
        let settings = self.cache.unwrap_or_default();
        settings.check()?;
        self.policy.check()?;
        if self.capacity == 0 {
            return Err(ConfigError::new("capacity", "must be at least 1"));
        }
        let terms = Terms {
            catalog,
            only: self.only,
            sandbox_plan: self.sandbox_plan,
        };
        terms.check()?;
        self.refresh.check()?;
        let seats = || Semaphore::new(settings.max_waiting.min(Semaphore::MAX_PERMITS));
        let inner = Arc::new(Inner {
            cache: digest_cache(self.capacity),
            hits: counter!("tollgate_token_cache_total", "result" => "hit"),
            issuers: issuers(self.issuers, self.refresh)?,
            mapping: self.mapping,
            misses: counter!("tollgate_token_cache_total", "result" => "miss"),
            policy: self.policy,
            seats: seats(),
            settings,
            slots: TenantSlots::new(),
            tenants,
            tenant_seats: seats(),
            terms,
        });
        let listener: Weak<Inner> = Arc::downgrade(&inner);
        inner.tenants.subscribe(listener);
        Ok(JwtAuthenticator {
            hasher: KeyHasher::sha256(),
            inner,
        })
    }
}

fn issuers(
    named: Vec<(Box<str>, Keys)>,
    refresh: JwksRefresh,
) -> Result<Box<[Issuer]>, ConfigError> {
    if named.is_empty() {
        let reason = "nobody's tokens could be accepted: name an issuer and its keys";
        return Err(ConfigError::new("issuer", reason));
    }
    let mut seen: Vec<Box<str>> = Vec::new();
    let mut issuers = Vec::new();
    for (name, keys) in named {
        if name.is_empty() {
            return Err(ConfigError::new("issuer", "an issuer needs a name"));
        }
        if seen.contains(&name) {
            let reason = format!("`{name}` is named twice: one issuer has one source of keys");
            return Err(ConfigError::new("issuer", reason));
        }
        seen.push(name.clone());
        issuers.push(match keys {
            Keys::Source(source) => Issuer::fetched(name, source, refresh),
            Keys::Secret(secret) => Issuer::with_secret(name, &secret),
        });
    }
    Ok(issuers.into())
}

impl fmt::Debug for JwtAuthenticatorBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let issuers: Vec<_> = self.issuers.iter().map(|(name, _)| name).collect();
        f.debug_struct("JwtAuthenticatorBuilder")
            .field("issuers", &issuers)
            .field("policy", &self.policy)
            .field("refresh", &self.refresh)
            .finish_non_exhaustive()
    }
}
