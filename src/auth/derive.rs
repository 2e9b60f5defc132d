//! Keys that follow from their cause.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{
    ApiKey, KeyFormat,
    format::{BODY_CHARACTERS, base62},
};
use crate::{
    error::ConfigError,
    id::{Environment, KeyId},
};

const MIN_SECRET_BYTES: usize = 32;

/// The server secret that keys are derived under: who has it can make every key that was ever derived.
///
/// Keep it apart from the database. Changing it gives every cause another key; those that were made stay as they are.
/// Cleared when dropped; `Debug` shows nothing of it.
#[derive(Clone)]
pub struct KeySecret(Zeroizing<Vec<u8>>);

impl KeySecret {
    /// Takes the secret's bytes, which are to be random.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when there are fewer than 32.
    pub fn new(secret: impl AsRef<[u8]>) -> Result<Self, ConfigError> {
        let secret = secret.as_ref();
        if secret.len() < MIN_SECRET_BYTES {
            return Err(ConfigError::new(
                "key_secret",
                "the secret is too short, and keys could be guessed: use 32 random bytes or more",
            ));
        }
        Ok(Self(Zeroizing::new(secret.to_vec())))
    }

    /// The name of the key of a cause: 128 bits that tell nothing of the key.
    #[must_use]
    pub fn id(&self, environment: Environment, cause: &str) -> KeyId {
        let block = self.block("id", 0, environment, cause);
        let mut text = String::from("key_");
        for byte in block.iter().take(16) {
            use fmt::Write as _;
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        KeyId::from_checked(&text)
    }

    /// HMAC-SHA256 of what it is for, a number, the environment and the cause, told apart by zero bytes.
    fn block(
        &self,
        purpose: &str,
        number: u8,
        environment: Environment,
        cause: &str,
    ) -> Zeroizing<[u8; 32]> {
        // HMAC takes a key of any length, so that there is no other case.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else {
            return Zeroizing::new([0; 32]);
        };
        mac.update(b"tollgate derived key\0");
        mac.update(purpose.as_bytes());
        mac.update(&[0, number]);
        mac.update(environment.as_str().as_bytes());
        mac.update(&[0]);
        mac.update(cause.as_bytes());
        Zeroizing::new(mac.finalize().into_bytes().into())
    }
}

impl fmt::Debug for KeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeySecret(..)")
    }
}

impl KeyFormat {
    /// The key of a cause: always the same one, and nobody can tell it from a random one without the secret.
    ///
    /// ```
    /// use tollgate::{auth::{KeyFormat, KeySecret}, id::Environment};
    ///
    /// let (format, secret) = (KeyFormat::default(), KeySecret::new([7; 32])?);
    /// let key = format.derive(Environment::Live, &secret, "cs_1");
    /// assert_eq!(format.derive(Environment::Live, &secret, "cs_1").expose(), key.expose());
    /// assert_ne!(format.derive(Environment::Live, &secret, "cs_2").expose(), key.expose());
    /// assert_eq!(format.check(key.expose()), Ok(Some(Environment::Live)));
    /// # Ok::<(), tollgate::error::ConfigError>(())
    /// ```
    #[must_use]
    pub fn derive(&self, environment: Environment, secret: &KeySecret, cause: &str) -> ApiKey {
        let mut body = Zeroizing::new(String::with_capacity(BODY_CHARACTERS));
        // A block gives 31 characters on average, and 256 of them always enough.
        for number in 0..=u8::MAX {
            let block = secret.block("body", number, environment, cause);
            let missing = BODY_CHARACTERS - body.len();
            // As for random keys: a remainder of 248 or more would favour the first characters.
            let fair = block.iter().filter(|&&byte| byte < 248).take(missing);
            body.extend(fair.map(|&byte| char::from(base62(u32::from(byte) % 62))));
            if body.len() == BODY_CHARACTERS {
                break;
            }
        }
        self.join(environment, &body)
    }
}
