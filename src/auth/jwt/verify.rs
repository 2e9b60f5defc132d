//! From a token to its claims.

use std::sync::Arc;

use super::{
    Claims, JwksRefresh, JwksSource, SharedSecret, TokenPolicy, Validity,
    compact::Parts,
    key::VerifyingKey,
    ring::{KeyRing, Ready},
    set::Found,
};
use crate::{auth::AuthRefusal, clock::Now};

/// An issuer that is trusted, and the keys that vouch for it and for nobody else.
#[derive(Clone, Debug)]
pub(crate) struct Issuer {
    name: Box<str>,
    pub(crate) ring: Arc<KeyRing>,
    /// Whether its keys are a shared secret: the only ones for which HMAC is an algorithm at all.
    secret: Option<jsonwebtoken::Algorithm>,
}

impl Issuer {
    pub(crate) fn fetched(
        name: Box<str>,
        source: Box<dyn JwksSource>,
        refresh: JwksRefresh,
    ) -> Self {
        Self {
            name,
            ring: Arc::new(KeyRing::fetched(source, refresh)),
            secret: None,
        }
    }

    pub(crate) fn with_secret(name: Box<str>, secret: &SharedSecret) -> Self {
        Self {
            name,
            ring: Arc::new(KeyRing::fixed(secret.keys())),
            secret: Some(secret.algorithm()),
        }
    }

    fn accepts(&self, algorithm: jsonwebtoken::Algorithm, policy: &TokenPolicy) -> bool {
        match self.secret {
            Some(own) => algorithm == own,
            None => policy.algorithms.iter().any(|one| one.inner() == algorithm),
        }
    }
}

/// A token that counts.
pub(crate) struct Verified {
    pub(crate) claims: Claims,
    pub(crate) validity: Validity,
    /// The issuer's place among the trusted.
    pub(crate) issuer: usize,
    /// Which key verified it, and of which set.
    pub(crate) fingerprint: [u8; 32],
    pub(crate) generation: u64,
}

/// Why a token does not count, or not yet.
pub(crate) enum Fault {
    Refused(AuthRefusal),
    /// The keys of this issuer must be fetched first.
    NeedsKeys(usize),
}

impl From<AuthRefusal> for Fault {
    fn from(refusal: AuthRefusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Verifies a token, by keys that are in memory.
///
/// The claim `iss` picks the issuer before anything is verified, and with it the keys; so a signature that is
/// verified says that this issuer made the token, and no other. Nothing else of the token is used before.
pub(crate) fn verify(
    token: &str,
    issuers: &[Issuer],
    policy: &TokenPolicy,
    now: Now,
) -> Result<Verified, Fault> {
    if token.len() > policy.max_bytes {
        return Err(AuthRefusal::Malformed.into());
    }
    let parts = Parts::of(token)?;
    policy.check_type(&parts)?;
    let named = parts.claims.get("iss").and_then(serde_json::Value::as_str);
    let place = named.and_then(|name| issuers.iter().position(|one| *one.name == *name));
    let Some((place, issuer)) = place.and_then(|place| Some((place, issuers.get(place)?))) else {
        return Err(AuthRefusal::WrongIssuer.into());
    };
    if !issuer.accepts(parts.algorithm, policy) {
        return Err(AuthRefusal::Malformed.into());
    }
    let monotonic = now.monotonic_micros();
    let set = match issuer.ring.ready(monotonic) {
        Ready::Keys(set) => set,
        Ready::Wait => return Err(Fault::NeedsKeys(place)),
        Ready::Unavailable => return Err(AuthRefusal::StoreUnavailable.into()),
    };
    // There is one secret, whatever the token calls it.
    let id = parts.key_id.as_deref().filter(|_| issuer.secret.is_none());
    let key = match set.keys.find(id, parts.algorithm) {
        Found::Keys(keys) => signer(&keys, &parts).ok_or(AuthRefusal::BadSignature)?,
        Found::Unfit => return Err(AuthRefusal::Malformed.into()),
        Found::Unknown if issuer.ring.may_refresh(monotonic) => {
            return Err(Fault::NeedsKeys(place));
        }
        // Nobody can tell while the newest keys cannot be had.
        Found::Unknown if issuer.ring.is_failing() => {
            return Err(AuthRefusal::StoreUnavailable.into());
        }
        Found::Unknown => return Err(AuthRefusal::Unknown.into()),
    };
    let fingerprint = key.fingerprint;
    let (claims, validity) = policy.judge(parts.claims, now.wall())?;
    Ok(Verified {
        claims,
        validity,
        issuer: place,
        fingerprint,
        generation: set.generation,
    })
}

/// The key that made the signature; the first few alone, as nobody needs more of one id.
fn signer<'a>(keys: &[&'a VerifyingKey], parts: &Parts<'_>) -> Option<&'a VerifyingKey> {
    const MAX_TRIED: usize = 4;
    let verifies =
        |key: &&&VerifyingKey| key.verifies(parts.algorithm, parts.signed, &parts.signature);
    keys.iter().take(MAX_TRIED).find(verifies).copied()
}
