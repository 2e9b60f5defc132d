use std::sync::Arc;

use jsonwebtoken::Algorithm;
use serde::Deserialize;
use serde_json::Value;
use smallvec::SmallVec;

use super::{JwksError, key::VerifyingKey};

/// The keys of an identity provider: its JWKS document (RFC 7517 section 5), read and checked.
///
/// Holds asymmetric keys alone. Keys of another type, curve or use, weak ones (RSA below 2,048 bits) and those
/// that cannot be read are left out, as a provider may add a kind that is not known here yet.
#[derive(Clone, Debug)]
pub struct Jwks {
    keys: Arc<[VerifyingKey]>,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

/// Which key of a set may have signed a token.
pub(super) enum Found<'a> {
    /// Nearly always one; more when the set has an id twice.
    Keys(SmallVec<[&'a VerifyingKey; 1]>),
    /// The set has none: it may be older than the key.
    Unknown,
    /// The token names no key and several would do, or names one of another algorithm.
    Unfit,
}

impl Jwks {
    /// The most keys that a document may have; providers have two to five.
    pub const MAX_KEYS: usize = 100;

    /// Reads a document.
    ///
    /// # Errors
    ///
    /// [`JwksError::Malformed`] when it is not a JSON object with a list `keys`, [`JwksError::TooManyKeys`] above
    /// [`Jwks::MAX_KEYS`], [`JwksError::NoKeys`] when no key in it can verify signatures.
    pub fn from_json(document: impl AsRef<[u8]>) -> Result<Self, JwksError> {
        let document: Document =
            serde_json::from_slice(document.as_ref()).map_err(JwksError::Malformed)?;
        if document.keys.len() > Self::MAX_KEYS {
            return Err(JwksError::TooManyKeys);
        }
        let keys = document.keys.into_iter();
        let keys: Arc<[_]> = keys.filter_map(VerifyingKey::from_jwk).collect();
        if keys.is_empty() {
            return Err(JwksError::NoKeys);
        }
        Ok(Self { keys })
    }

    pub(super) fn of_secret(key: VerifyingKey) -> Self {
        let keys = Arc::new([key]);
        Self { keys }
    }

    /// The number of keys that can verify signatures.
    #[must_use]
    pub fn n_keys(&self) -> usize {
        self.keys.len()
    }

    /// The ids of the keys that have one, in the document's order.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().filter_map(|key| key.id.as_deref())
    }

    /// The keys that may have signed a token with this `kid` and `alg`.
    ///
    /// A token without a `kid` is judged only where one key alone could have signed it: to try all of them
    /// would have a weak key vouch for what a strong one should.
    pub(super) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Found<'_> {
        let mut has_id = false;
        let mut fit = SmallVec::new();
        for key in &*self.keys {
            let is_named = id.is_none() || key.id.as_deref() == id;
            has_id |= is_named && id.is_some();
            if is_named && key.can(algorithm) {
                fit.push(key);
            }
        }
        match (fit.len(), has_id) {
            (0, false) => Found::Unknown,
            (0, true) => Found::Unfit,
            (1, _) | (_, true) => Found::Keys(fit),
            (_, false) => Found::Unfit,
        }
    }

    pub(super) fn has(&self, fingerprint: &[u8; 32]) -> bool {
        self.keys.iter().any(|key| key.fingerprint == *fingerprint)
    }

    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        let of = |set: &Self| -> Vec<[u8; 32]> {
            let mut all: Vec<_> = set.keys.iter().map(|key| key.fingerprint).collect();
            all.sort_unstable();
            all
        };
        of(self) == of(other)
    }
}
