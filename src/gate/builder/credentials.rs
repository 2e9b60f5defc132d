use std::sync::Arc;

use super::TollgateBuilder;
#[cfg(feature = "jwt")]
use crate::identity::JwtAuthenticatorBuilder;
use crate::{
    auth::{AuthEventSink, Challenge, Extractor, FailureLimit, KeyFormat, KeyHasher, KeyStore},
    gate::stores::Kept,
    id::Environment,
    identity::{Authenticate, CacheSettings, PathSet},
};

/// Who is calling.
impl TollgateBuilder {
    /// Where keys are kept; in memory unless set.
    pub fn keys(mut self, store: impl KeyStore) -> Self {
        self.stores.keys = Kept::given(Arc::new(store));
        self
    }

    /// The form of keys; the first is the one that new keys have. `tg_live_…` unless set.
    pub fn key_format(mut self, format: KeyFormat) -> Self {
        self.formats.push(format);
        self
    }

    /// How keys become digests; SHA-256 unless set. HMAC with a pepper kept outside the store makes a stolen
    /// store useless even for weak, imported keys.
    pub fn key_hasher(mut self, hasher: KeyHasher) -> Self {
        self.hasher = hasher;
        self
    }

    /// How long and how many identities are cached.
    pub const fn cache(mut self, settings: CacheSettings) -> Self {
        self.cache = settings;
        self
    }

    /// Serves keys of this environment alone; both unless set.
    pub const fn only(mut self, environment: Environment) -> Self {
        self.environment = Some(environment);
        self
    }

    /// Accepts another kind of credential beside API keys; several calls accept several.
    pub fn authenticator(self, authenticator: impl Authenticate) -> Self {
        self.auth(|layer| layer.or(authenticator))
    }

    /// Accepts tokens of an identity provider beside API keys, for the tenants and plans of this gate. What is
    /// not set there of cache, environment and sandbox plan is as it is for keys.
    #[cfg(feature = "jwt")]
    #[cfg_attr(docsrs, doc(cfg(feature = "jwt")))]
    pub fn jwt(mut self, tokens: JwtAuthenticatorBuilder) -> Self {
        self.jwt.push(tokens);
        self
    }

    /// Where a credential may stand in a request; `X-API-Key`, then `Authorization: Bearer`, unless set.
    pub fn extractor(mut self, extractor: Extractor) -> Self {
        self.extractor = extractor;
        self
    }

    /// What a caller without a valid credential is told; the schemes of the extractor under the realm `api`
    /// unless set.
    pub fn challenge(mut self, challenge: Challenge) -> Self {
        self.challenge = Some(challenge);
        self
    }

    /// Who hears of refused attempts; the log, at target `tollgate::auth`, unless set.
    pub fn auth_events(self, sink: Arc<dyn AuthEventSink>) -> Self {
        self.auth(|layer| layer.events(sink))
    }

    /// How many failed attempts an address may have; `None` turns the limit off.
    pub fn failure_limit(self, limit: impl Into<Option<FailureLimit>>) -> Self {
        let limit = limit.into();
        self.auth(|layer| layer.failure_limit(limit))
    }

    /// Takes an `Identity` that an outer layer of yours has put into the request's extensions as it is, without
    /// a credential; off unless set. For authentication of your own in front of the gate.
    pub fn inserted_identity(self, on: bool) -> Self {
        self.auth(move |layer| layer.inserted_identity(on))
    }

    /// Sets `X-Tenant-ID`, `X-Plan` and `X-Consumer-ID` on the request, for a proxy behind; off unless set.
    pub fn forward_headers(self, on: bool) -> Self {
        self.auth(move |layer| layer.forward_headers(on))
    }

    /// Paths within the gate that need no key, such as `/health` or `/docs/*`; several calls add up.
    pub fn public<P: Into<String>>(mut self, paths: impl IntoIterator<Item = P>) -> Self {
        self.public.extend(paths.into_iter().map(Into::into));
        self
    }

    /// Lets every CORS preflight pass without a credential; off unless set. Not needed where a CORS layer outside
    /// the gate answers it. It is metered to no tenant and counted under [`ceiling`](Self::ceiling), or under
    /// [`preflight_limit`](Self::preflight_limit); see
    /// [`AuthLayer::pass_preflight`](crate::AuthLayer::pass_preflight) for what is one.
    pub fn pass_preflight(self, on: bool) -> Self {
        self.auth(move |layer| layer.pass_preflight(on))
    }

    /// Lets CORS preflights pass on these paths alone, such as `/v1/*`; in place of
    /// [`pass_preflight`](Self::pass_preflight).
    pub fn pass_preflight_on<P: AsRef<str>>(mut self, paths: impl IntoIterator<Item = P>) -> Self {
        match PathSet::new(paths) {
            Ok(paths) => self.auth(move |layer| layer.pass_preflight_on(paths)),
            Err(error) => {
                self.faults.push(error.renamed("pass_preflight_on"));
                self
            }
        }
    }
}
