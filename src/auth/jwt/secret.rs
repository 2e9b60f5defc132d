use std::fmt;

use jsonwebtoken::Algorithm;
use zeroize::Zeroizing;

use super::{key::VerifyingKey, set::Jwks};
use crate::error::ConfigError;

/// A secret shared with whoever issues tokens, for HMAC: the secret names the algorithm, and no other is
/// accepted of its issuer.
///
/// Prefer a key pair where you can: whoever can verify with a shared secret can also issue. Cleared when
/// dropped; `Debug` shows nothing of it.
#[derive(Clone)]
pub struct SharedSecret {
    algorithm: Algorithm,
    bytes: Zeroizing<Box<[u8]>>,
}

impl SharedSecret {
    /// A secret for HS256.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when it has fewer than 32 bytes (RFC 7518 section 3.2): a shorter one could be guessed
    /// from a single token.
    pub fn hs256(secret: impl AsRef<[u8]>) -> Result<Self, ConfigError> {
        Self::new(Algorithm::HS256, secret.as_ref(), 32)
    }

    /// A secret for HS384.
    ///
    /// # Errors
    ///
    /// As [`SharedSecret::hs256`], below 48 bytes.
    pub fn hs384(secret: impl AsRef<[u8]>) -> Result<Self, ConfigError> {
        Self::new(Algorithm::HS384, secret.as_ref(), 48)
    }

    /// A secret for HS512.
    ///
    /// # Errors
    ///
    /// As [`SharedSecret::hs256`], below 64 bytes.
    pub fn hs512(secret: impl AsRef<[u8]>) -> Result<Self, ConfigError> {
        Self::new(Algorithm::HS512, secret.as_ref(), 64)
    }

    fn new(algorithm: Algorithm, secret: &[u8], min_bytes: usize) -> Result<Self, ConfigError> {
        if secret.len() < min_bytes {
            let reason = format!(
                "the shared secret is too short for {algorithm:?}: use {min_bytes} random bytes or more"
            );
            return Err(ConfigError::new("secret", reason));
        }
        let bytes = Zeroizing::new(secret.into());
        Ok(Self { algorithm, bytes })
    }

    pub(super) fn keys(&self) -> Jwks {
        Jwks::of_secret(VerifyingKey::from_secret(self.algorithm, &self.bytes))
    }

    pub(super) const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedSecret({:?})", self.algorithm)
    }
}
