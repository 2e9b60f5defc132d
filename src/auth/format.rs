use std::sync::Arc;

use zeroize::Zeroizing;

use super::{
    ApiKey,
    extract::all,
    key::{is_key_byte, is_prefix},
};
use crate::{error::ConfigError, id::Environment};

/// The longest key that any format accepts, in bytes.
pub const MAX_KEY_BYTES: usize = 128;

pub(super) const BODY_CHARACTERS: usize = 36;
const CHECK_CHARACTERS: usize = 6;
const MIN_OPAQUE_BYTES: usize = 16;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A text is not a key of the format: wrong shape, alphabet, length or checksum.
///
/// Which of them it was is not told: the answer to the client is the same for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the text is not a key of this format")]
#[expect(clippy::exhaustive_structs, reason = "says all it may")]
pub struct Malformed;

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("no random bytes for a new key")]
pub struct RandomError(#[source] pub(crate) getrandom::Error);

/// The shape of API keys: makes new ones and recognises its own without a look-up.
///
/// A key is `prefix "_" environment "_" body check`: `tg_live_` followed by 36 random base-62 characters (214
/// bits) and 6 of checksum, the CRC-32 (IEEE) of everything before it in base 62 (`0-9A-Za-z`), padded with
/// `0` on the left. The checksum lets a mistyped or invented key be refused without asking a store; it proves
/// nothing, as anybody can compute it.
///
/// ```
/// use tollgate::{auth::KeyFormat, id::Environment};
///
/// let format = KeyFormat::new("acme")?;
/// let key = format.generate(Environment::Test)?;
/// assert!(key.expose().starts_with("acme_test_"));
/// assert_eq!(format.check(key.expose()), Ok(Some(Environment::Test)));
/// assert!(format.check("acme_test_guess").is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct KeyFormat {
    shape: Shape,
}

#[derive(Clone, Debug)]
enum Shape {
    Checked { prefix: Arc<str>, covers: Covers },
    Opaque,
}

/// What the checksum is computed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Covers {
    Everything,
    Body,
}

impl KeyFormat {
    /// Keys that begin with `prefix`, such as `acme_live_…`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] unless the prefix is 2 to 16 lower-case letters and digits and begins with a letter.
    pub fn new(prefix: impl AsRef<str>) -> Result<Self, ConfigError> {
        Self::checked(prefix.as_ref(), Covers::Everything)
    }

    /// Keys whose checksum covers the body alone, as GitHub's tokens have it, so that existing ones keep
    /// working.
    ///
    /// Accepts bodies of 30 to 64 characters, with or without an environment after the prefix; makes keys
    /// of 36 characters with one.
    ///
    /// # Errors
    ///
    /// As [`KeyFormat::new`].
    pub fn github_checksum(prefix: impl AsRef<str>) -> Result<Self, ConfigError> {
        Self::checked(prefix.as_ref(), Covers::Body)
    }

    /// Imported keys without a checksum: 16 to 128 bytes of `[A-Za-z0-9_-]`.
    ///
    /// An invented key of this form costs a look-up, so keep the cache of unknown keys and the
    /// [`FailureLimit`](super::FailureLimit) on.
    #[must_use]
    pub const fn opaque() -> Self {
        Self {
            shape: Shape::Opaque,
        }
    }

    fn checked(prefix: &str, covers: Covers) -> Result<Self, ConfigError> {
        if !is_prefix(prefix) {
            return Err(ConfigError::new(
                "prefix",
                "a key prefix is 2 to 16 lower-case letters and digits and begins with a letter",
            ));
        }
        let prefix = Arc::from(prefix);
        Ok(Self {
            shape: Shape::Checked { prefix, covers },
        })
    }

    /// Whether a text can be a key of this format, and the environment that stands in it. Neither allocates
    /// nor waits; compares upper and lower case as different.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when it cannot, also when it is longer than [`MAX_KEY_BYTES`].
    pub fn check(&self, candidate: &str) -> Result<Option<Environment>, Malformed> {
        if candidate.len() > MAX_KEY_BYTES {
            return Err(Malformed);
        }
        match &self.shape {
            Shape::Checked { prefix, covers } => check_parts(candidate, prefix, *covers),
            Shape::Opaque => {
                if candidate.len() < MIN_OPAQUE_BYTES || !candidate.bytes().all(is_key_byte) {
                    return Err(Malformed);
                }
                Ok(None)
            }
        }
    }

    /// Makes a new key from the operating system's random bytes. An opaque format makes 42 base-62
    /// characters.
    ///
    /// # Errors
    ///
    /// [`RandomError`] when the operating system gives none.
    pub fn generate(&self, environment: Environment) -> Result<ApiKey, RandomError> {
        let characters = match &self.shape {
            Shape::Checked { .. } => BODY_CHARACTERS,
            Shape::Opaque => BODY_CHARACTERS + CHECK_CHARACTERS,
        };
        let body = random_base62(characters).map_err(RandomError)?;
        Ok(self.join(environment, &body))
    }

    /// Makes the key with a given body: for keys that are derived, so that the same cause gives the same key.
    /// The body is the whole secret; an opaque format uses it as the key.
    ///
    /// # Errors
    ///
    /// [`Malformed`] unless the body is 36 base-62 characters.
    pub fn assemble(&self, environment: Environment, body: &str) -> Result<ApiKey, Malformed> {
        if body.len() != BODY_CHARACTERS || !body.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(Malformed);
        }
        Ok(self.join(environment, body))
    }

    pub(super) fn join(&self, environment: Environment, body: &str) -> ApiKey {
        let (prefix, covers) = match &self.shape {
            Shape::Checked { prefix, covers } => (prefix, *covers),
            Shape::Opaque => return ApiKey::new(body),
        };
        // Room for all of it at once: a string that grows would leave copies of the key behind.
        let bytes = prefix.len() + environment.as_str().len() + 2 + body.len() + CHECK_CHARACTERS;
        let mut key = Zeroizing::new(String::with_capacity(bytes));
        key.push_str(prefix);
        key.push('_');
        key.push_str(environment.as_str());
        key.push('_');
        key.push_str(body);
        let covered = match covers {
            Covers::Everything => key.as_str(),
            Covers::Body => body,
        };
        let check = checksum(covered);
        key.extend(check.iter().copied().map(char::from));
        ApiKey::new(key.as_str())
    }
}

impl Default for KeyFormat {
    /// Keys that begin with `tg`.
    fn default() -> Self {
        Self {
            shape: Shape::Checked {
                prefix: Arc::from("tg"),
                covers: Covers::Everything,
            },
        }
    }
}

/// Reads from right to left: the check part has a length, and the body has one or no `_` in it, so that the first
/// one met ends it.
fn check_parts(
    candidate: &str,
    prefix: &str,
    covers: Covers,
) -> Result<Option<Environment>, Malformed> {
    let (covered, check) = candidate
        .len()
        .checked_sub(CHECK_CHARACTERS)
        .and_then(|end| candidate.split_at_checked(end))
        .ok_or(Malformed)?;
    let (head, body) = match covers {
        Covers::Everything => {
            let end = covered.len().checked_sub(BODY_CHARACTERS);
            let (head, body) = end
                .and_then(|end| covered.split_at_checked(end))
                .ok_or(Malformed)?;
            (head.strip_suffix('_').ok_or(Malformed)?, body)
        }
        Covers::Body => covered.rsplit_once('_').ok_or(Malformed)?,
    };
    let right_length = covers == Covers::Everything || (30..=64).contains(&body.len());
    if !right_length || !all(body.as_bytes(), u8::is_ascii_alphanumeric) {
        return Err(Malformed);
    }
    let environment = match head.strip_prefix(prefix).ok_or(Malformed)? {
        "_live" => Some(Environment::Live),
        "_test" => Some(Environment::Test),
        "" if covers == Covers::Body => None,
        _ => return Err(Malformed),
    };
    let expected = match covers {
        Covers::Everything => checksum(covered),
        Covers::Body => checksum(body),
    };
    if expected != check.as_bytes() {
        return Err(Malformed);
    }
    Ok(environment)
}

/// The CRC-32 (IEEE) of a text in base 62, six characters wide; 62^6 exceeds 2^32.
fn checksum(text: &str) -> [u8; CHECK_CHARACTERS] {
    let mut rest = crc32fast::hash(text.as_bytes());
    let mut digits = [b'0'; CHECK_CHARACTERS];
    for digit in digits.iter_mut().rev() {
        *digit = base62(rest % 62);
        rest /= 62;
    }
    digits
}

pub(super) fn base62(value: u32) -> u8 {
    usize::try_from(value)
        .ok()
        .and_then(|index| BASE62.get(index))
        .copied()
        .unwrap_or(b'0')
}

/// Evenly distributed characters: a byte of 248 (four times 62) or more is thrown away, since its remainder
/// would favour the first characters.
fn random_base62(characters: usize) -> Result<Zeroizing<String>, getrandom::Error> {
    let mut text = Zeroizing::new(String::with_capacity(characters));
    let mut random = Zeroizing::new([0_u8; 64]);
    while text.len() < characters {
        getrandom::fill(random.as_mut_slice())?;
        let missing = characters - text.len();
        let fair = random.iter().filter(|&&byte| byte < 248).take(missing);
        text.extend(fair.map(|&byte| char::from(base62(u32::from(byte) % 62))));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";

    #[test]
    fn a_random_text_uses_the_whole_alphabet_evenly() {
        let text = random_base62(62_000).unwrap();
        for character in BASE62 {
            let n = text.bytes().filter(|byte| byte == character).count();
            // Six standard deviations around 1,000: a false alarm once in 10 million runs.
            assert!((810..=1_190).contains(&n), "{character}: {n}");
        }
    }

    #[test]
    fn a_checksum_is_padded_on_the_left() {
        assert_eq!(&checksum(""), b"000000");
        assert_eq!(&checksum(BODY), b"0TyBiU");
    }
}
