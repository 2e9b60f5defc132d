use std::{fmt, iter};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use super::KeyDigest;
use crate::error::ConfigError;

/// The block of SHA-256: a longer HMAC key is hashed first (RFC 2104 section 2).
const BLOCK_BYTES: usize = 64;
const MIN_PEPPER_BYTES: usize = 16;

/// A server secret that goes into every digest, so that a stolen table of digests is of no use without it.
///
/// Cleared when dropped; `Debug` shows nothing of it.
#[derive(Clone)]
pub struct Pepper(Zeroizing<[u8; BLOCK_BYTES]>);

impl Pepper {
    /// Takes the secret's bytes; 32 random ones are enough.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when there are fewer than 16.
    pub fn new(secret: impl AsRef<[u8]>) -> Result<Self, ConfigError> {
        let secret = secret.as_ref();
        if secret.is_empty() {
            return Err(ConfigError::new(
                "pepper",
                "the pepper is empty: set a secret of 16 bytes or more",
            ));
        }
        if secret.len() < MIN_PEPPER_BYTES {
            return Err(ConfigError::new(
                "pepper",
                "the pepper is too short: use 16 random bytes or more",
            ));
        }
        Ok(Self::block(secret))
    }

    /// The HMAC key padded to a block, so that preparing the state cannot fail.
    fn block(secret: &[u8]) -> Self {
        let mut block = Zeroizing::new([0; BLOCK_BYTES]);
        if secret.len() > BLOCK_BYTES {
            let digest = Sha256::digest(secret);
            block
                .iter_mut()
                .zip(digest)
                .for_each(|(to, from)| *to = from);
        } else {
            block
                .iter_mut()
                .zip(secret)
                .for_each(|(to, from)| *to = *from);
        }
        Self(block)
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper(..)")
    }
}

/// Turns keys into the digests that stores and caches know them by.
///
/// HMAC-SHA256 under a [`Pepper`], or SHA-256 alone. Keys have 214 random bits, so a fast hash is enough: no
/// word list leads to one. The HMAC state is prepared once.
#[derive(Clone)]
pub struct KeyHasher {
    current: Scheme,
    older: Vec<Scheme>,
}

#[derive(Clone)]
enum Scheme {
    Sha256,
    Hmac(Box<Hmac<Sha256>>),
}

impl KeyHasher {
    /// SHA-256 without a secret.
    #[must_use]
    pub const fn sha256() -> Self {
        Self {
            current: Scheme::Sha256,
            older: Vec::new(),
        }
    }

    /// HMAC-SHA256 under a server secret.
    #[must_use]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the hasher is the last that needs the pepper, so it is dropped and cleared here"
    )]
    pub fn hmac(pepper: Pepper) -> Self {
        Self {
            current: Scheme::hmac(&pepper),
            older: Vec::new(),
        }
    }

    /// Still finds keys whose digests were made under an older pepper; new digests use the current one.
    ///
    /// Each one accepted costs a hash, and in a remote store a trip, for every key that is not found at once.
    #[must_use]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the hasher is the last that needs the pepper, so it is dropped and cleared here"
    )]
    pub fn accept_old(mut self, pepper: Pepper) -> Self {
        self.older.push(Scheme::hmac(&pepper));
        self
    }

    /// Still finds keys whose digests were made by SHA-256 alone, before there was a pepper.
    #[must_use]
    pub fn accept_unpeppered(mut self) -> Self {
        self.older.push(Scheme::Sha256);
        self
    }

    /// The digest of a key, as new records are kept.
    #[must_use]
    pub fn digest(&self, candidate: &str) -> KeyDigest {
        self.current.digest(candidate)
    }

    /// The digests under which a key may be kept: the current one first, then those of older peppers in the
    /// order in which they were accepted. Each is computed when it is asked for.
    pub fn digests<'a>(&'a self, candidate: &'a str) -> impl Iterator<Item = KeyDigest> + 'a {
        iter::once(&self.current)
            .chain(&self.older)
            .map(|scheme| scheme.digest(candidate))
    }

    /// How many digests [`digests`](Self::digests) yields.
    #[must_use]
    pub fn n_digests(&self) -> usize {
        1 + self.older.len()
    }
}

impl Scheme {
    fn hmac(pepper: &Pepper) -> Self {
        let mut block = (*pepper.0).into();
        let state = Hmac::new(&block);
        block.zeroize();
        Self::Hmac(Box::new(state))
    }

    fn digest(&self, candidate: &str) -> KeyDigest {
        let bytes = match self {
            Self::Sha256 => Sha256::digest(candidate).into(),
            Self::Hmac(state) => {
                let mut state = Hmac::clone(state);
                state.update(candidate.as_bytes());
                state.finalize().into_bytes().into()
            }
        };
        KeyDigest::from_bytes(bytes)
    }
}

impl Default for KeyHasher {
    fn default() -> Self {
        Self::sha256()
    }
}

impl fmt::Debug for KeyHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |scheme: &Scheme| match scheme {
            Scheme::Sha256 => "sha256",
            Scheme::Hmac(_) => "hmac-sha256",
        };
        f.debug_struct("KeyHasher")
            .field("current", &name(&self.current))
            .field("older", &self.older.iter().map(name).collect::<Vec<_>>())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "tg_live_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ3d9ffH";

    #[test]
    fn the_published_digests_are_met() {
        assert_eq!(
            KeyHasher::sha256().digest(KEY).to_string(),
            "03ba3280d3163edc18a9e4ed19cf57a4ba49c1f822c84e7191cbe9cd6048223a"
        );
        // The vector's pepper is shorter than the constructor accepts.
        assert_eq!(
            KeyHasher::hmac(Pepper::block(b"pepper-0001"))
                .digest(KEY)
                .to_string(),
            "e599a4b4f822729e4c9d2a841735f60038f8e683585b4818132bcb5fd72f8189"
        );
    }

    #[test]
    fn a_pepper_longer_than_a_block_is_hashed_as_rfc_2104_says() {
        // RFC 4231 test case 6.
        let pepper = Pepper::new([0xaa; 131]).unwrap();
        let text = "Test Using Larger Than Block-Size Key - Hash Key First";
        assert_eq!(
            KeyHasher::hmac(pepper).digest(text).to_string(),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }
}
