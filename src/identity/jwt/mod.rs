//! From a token of an identity provider to an identity.

mod builder;
mod inner;
mod mapping;

use std::{fmt, sync::Arc};

use self::inner::Inner;
pub use self::{
    builder::JwtAuthenticatorBuilder,
    mapping::{ClaimMapping, ClaimsToIdentity, TokenGrant},
};
use super::{Attempt, Authenticate};
use crate::{
    auth::{Credential, KeyHasher, jwt::looks_like_token},
    clock::Now,
    head::RequestHead,
};

/// Authenticates tokens that an identity provider signed (JSON web tokens).
///
/// 1. A text that has not the form of a token is left to other authenticators; API keys have no dots.
/// 2. A token not seen before is verified, see [`auth::jwt`](crate::auth::jwt) for what is checked, by keys in
///    memory. A forged one ends here: it costs no trip to a store.
/// 3. Its claims become a tenant, scopes and a key id ([`ClaimsToIdentity`]). The tenant must be in the tenant
///    store; its plan and its access state count as they do for keys.
/// 4. A token seen before costs one hash and one look-up in memory, until it ends, until its issuer withdraws
///    the key that signed it, or until newer tokens displace it. Its times, the issuer's keys, the tenant's
///    record and the plans are checked each time.
/// 5. While an issuer's keys cannot be fetched the last ones stay in use ([`JwksRefresh::stale_if_error`]); before
///    there were any, and for a token signed by a key that is not among them, the answer is 503, never 401.
///
/// A token counts until it ends: there is no list of revoked ones, so have the provider issue short ones. Closing
/// or suspending its tenant takes effect on the next call. Fetches run as tasks of the tokio runtime, which must
/// have its timer on.
///
/// [`JwksRefresh::stale_if_error`]: crate::auth::jwt::JwksRefresh::stale_if_error
///
/// ```
/// use std::sync::Arc;
/// use tollgate::{
///     auth::jwt::StaticJwks,
///     identity::{ClaimMapping, JwtAuthenticator},
///     plan::{Plan, PlanCatalog},
///     tenant::MemoryTenantStore,
/// };
///
/// let document = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a",
///     "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
/// let tenants = Arc::new(MemoryTenantStore::new());
/// let plans = PlanCatalog::new([Plan::new("free")])?;
/// let builder = || {
///     JwtAuthenticator::builder()
///         .issuer("https://idp.example/", StaticJwks::from_json(document).unwrap())
///         .claims(ClaimMapping::new().tenant("org_id"))
/// };
/// // Tokens for somebody else's service would pass: that must be said.
/// let error = builder().build(tenants.clone(), plans.clone()).unwrap_err();
/// assert_eq!(error.path(), "audience");
/// let tokens = builder().audience("https://api.example/").build(tenants, plans)?;
/// assert_eq!(tokens.n_cached(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Cloning gives a second handle to the same cache.
#[derive(Clone)]
pub struct JwtAuthenticator {
    hasher: KeyHasher,
    inner: Arc<Inner>,
}

impl JwtAuthenticator {
    /// Starts without issuers; at least one, and an audience, must be named.
    pub fn builder() -> JwtAuthenticatorBuilder {
        JwtAuthenticatorBuilder::new()
    }

    /// How many verified tokens are remembered now.
    #[must_use]
    pub fn n_cached(&self) -> usize {
        self.inner.cache.len()
    }
}

impl Authenticate for JwtAuthenticator {
    fn authenticate(
        &self,
        credential: Option<&Credential<'_>>,
        _head: &RequestHead<'_>,
        now: Now,
    ) -> Attempt {
        match credential {
            Some(credential) if looks_like_token(credential.value) => {
                let digest = self.hasher.digest(credential.value);
                self.inner.authenticate(credential.value, digest, now)
            }
            _ => Attempt::NotMine,
        }
    }
}

impl fmt::Debug for JwtAuthenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtAuthenticator")
            .field("issuers", &self.inner.issuers)
            .field("policy", &self.inner.policy)
            .field("tenants", &self.inner.tenants)
            .finish_non_exhaustive()
    }
}
