//! Whether a delivery comes from the payment provider: a MAC over the raw bytes of its body, under a shared secret.
//!
//! 1. Exactly one field of each name, in the provider's grammar and nothing looser; else it is malformed.
//! 2. One of the first [`MAX_SIGNATURES`] signatures fits under one of the secrets. All are compared, each in constant
//!    time.
//! 3. The signed time is at most the tolerance before or after the clock's.
//!
//! What is wrong is told as a [`SignatureError`]. Nothing of a body is read before, and a secret that is empty cannot be
//! set: a MAC under an empty key can be made by anybody.
//!
//! ```
//! use http::HeaderMap;
//! use std::time::Duration;
//! use tollgate::{billing::{SignatureError, StripeSignature}, clock::Timestamp};
//!
//! let secrets = ["whsec_tollgate_test_secret_one"];
//! let stripe = StripeSignature::new(secrets)?.tolerance(Duration::from_secs(300))?;
//!
//! let now = Timestamp::from_unix_seconds(1_763_769_600);
//! let header = stripe.sign(b"{}", now);
//! let mut headers = HeaderMap::new();
//! headers.insert("stripe-signature", header.parse()?);
//! assert!(stripe.verify(&headers, b"{}", now).is_ok());
//!
//! assert_eq!(stripe.verify(&headers, b"{ }", now), Err(SignatureError::Mismatch));
//! let late = now.saturating_add(Duration::from_secs(301));
//! assert_eq!(stripe.verify(&headers, b"{}", late), Err(SignatureError::TimestampTooOld));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod paddle;
mod standard_webhooks;
mod stripe;

use std::{fmt, time::Duration};

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderName};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq as _};
use zeroize::Zeroizing;

pub use self::{
    paddle::PaddleSignature, standard_webhooks::StandardWebhooksSignature, stripe::StripeSignature,
};
use crate::{clock::Timestamp, error::ConfigError};

/// How many signatures of a delivery are looked at; a provider sends one for each secret in use.
pub const MAX_SIGNATURES: usize = 8;

/// How old or how early a signed time may be unless set otherwise, as the providers' own libraries have it.
const DEFAULT_TOLERANCE: Duration = Duration::from_secs(300);
/// More digits than the seconds of any date have.
const MAX_TIME_DIGITS: usize = 12;

/// A delivery is not known to be the provider's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// A header field that the scheme needs is missing or empty.
    #[error("the header field `{0}` is missing")]
    MissingHeader(&'static str),
    /// A header field is not in the scheme's grammar, or is there twice.
    #[error("the header field `{0}` is not in the form that the provider writes")]
    MalformedHeader(&'static str),
    /// There are signatures, and none of the scheme's version.
    #[error("no signature of a version that is verified")]
    NoKnownSignature,
    /// No signature fits the body under any of the secrets.
    #[error("no signature fits the body")]
    Mismatch,
    /// The signature fits, and was made too long ago.
    #[error("the delivery was signed too long ago")]
    TimestampTooOld,
    /// The signature fits, and was made too far in the future: one of the clocks is wrong.
    #[error("the delivery was signed in the future")]
    TimestampInFuture,
}

impl SignatureError {
    /// The name that metrics and answers show.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MissingHeader(_) => "missing_header",
            Self::MalformedHeader(_) => "malformed_header",
            Self::NoKnownSignature => "no_v1_signature",
            Self::Mismatch => "signature_mismatch",
            Self::TimestampTooOld => "timestamp_too_old",
            Self::TimestampInFuture => "timestamp_in_future",
        }
    }
}

/// How deliveries of an endpoint are signed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Signature {
    /// `Paddle-Signature`.
    Paddle(PaddleSignature),
    /// `webhook-id`, `webhook-timestamp` and `webhook-signature`.
    StandardWebhooks(StandardWebhooksSignature),
    /// `Stripe-Signature`.
    Stripe(StripeSignature),
}

impl Signature {
    /// Verifies a delivery.
    ///
    /// # Errors
    ///
    /// [`SignatureError`] says what is wrong.
    pub fn verify(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        now: Timestamp,
    ) -> Result<(), SignatureError> {
        match self {
            Self::Paddle(paddle) => paddle.verify(headers, body, now),
            Self::StandardWebhooks(standard) => standard.verify(headers, body, now),
            Self::Stripe(stripe) => stripe.verify(headers, body, now),
        }
    }
}

impl From<PaddleSignature> for Signature {
    fn from(signature: PaddleSignature) -> Self {
        Self::Paddle(signature)
    }
}

impl From<StandardWebhooksSignature> for Signature {
    fn from(signature: StandardWebhooksSignature) -> Self {
        Self::StandardWebhooks(signature)
    }
}

impl From<StripeSignature> for Signature {
    fn from(signature: StripeSignature) -> Self {
        Self::Stripe(signature)
    }
}

/// The secrets of an endpoint; the first one signs. Cleared when dropped, and shown by number only.
#[derive(Clone)]
struct Secrets(Vec<Zeroizing<Vec<u8>>>);

impl Secrets {
    /// Takes the secrets as `key` makes their bytes.
    fn new<S: AsRef<str>>(
        secrets: impl IntoIterator<Item = S>,
        key: impl Fn(&str) -> Result<Zeroizing<Vec<u8>>, ConfigError>,
    ) -> Result<Self, ConfigError> {
        let mut keys = Vec::new();
        for (place, secret) in secrets.into_iter().enumerate() {
            let at = |error: ConfigError| error.under(format_args!("secrets[{place}]"));
            let empty = || {
                ConfigError::new(
                    "",
                    "the secret is empty, so anybody could sign: copy it from the provider's dashboard",
                )
            };
            if secret.as_ref().trim().is_empty() {
                return Err(at(empty()));
            }
            let key = key(secret.as_ref()).map_err(at)?;
            if key.is_empty() {
                return Err(at(empty()));
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err(ConfigError::new(
                "secrets",
                "name at least one secret, or every delivery would be refused",
            ));
        }
        Ok(Self(keys))
    }

    /// Takes the secrets' own bytes.
    fn verbatim<S: AsRef<str>>(secrets: impl IntoIterator<Item = S>) -> Result<Self, ConfigError> {
        Self::new(secrets, |secret| {
            Ok(Zeroizing::new(secret.as_bytes().to_vec()))
        })
    }

    /// Whether one of the signatures is the MAC of the parts, one after the other, under one of the secrets.
    fn fit(&self, parts: &[&[u8]], signatures: &[[u8; 32]]) -> bool {
        let mut fits = Choice::from(0);
        for secret in &self.0 {
            let expected = mac(secret, parts);
            for signature in signatures {
                fits |= expected.ct_eq(signature);
            }
        }
        fits.into()
    }

    /// The MAC under the first secret.
    fn sign(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.0.first().map_or([0; 32], |secret| mac(secret, parts))
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

fn mac(secret: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC takes a key of any length, so that there is no other case; a value that nobody can send stands for it.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else {
        return [0; 32];
    };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// How far a signed time may be from the clock's; any when `None`.
#[derive(Clone, Copy, Debug)]
struct Tolerance(Option<Duration>);

impl Tolerance {
    const DEFAULT: Self = Self(Some(DEFAULT_TOLERANCE));

    fn of(tolerance: Duration) -> Result<Self, ConfigError> {
        if tolerance.is_zero() {
            return Err(ConfigError::new(
                "tolerance",
                "no delivery arrives in the second in which it was signed: set some minutes, 5 is usual",
            ));
        }
        Ok(Self(Some(tolerance)))
    }

    /// Exactly the tolerance is still right, on both sides.
    fn check(self, signed: u64, now: Timestamp) -> Result<(), SignatureError> {
        let Some(tolerance) = self.0 else {
            return Ok(());
        };
        let now = now.as_unix_seconds();
        if now.saturating_sub(signed) > tolerance.as_secs() {
            return Err(SignatureError::TimestampTooOld);
        }
        if signed.saturating_sub(now) > tolerance.as_secs() {
            return Err(SignatureError::TimestampInFuture);
        }
        Ok(())
    }
}

/// The only field of this name, as text.
fn only<'a>(headers: &'a HeaderMap, name: &'static HeaderName) -> Result<&'a str, SignatureError> {
    let mut values = headers.get_all(name).iter();
    let value = values
        .next()
        .ok_or_else(|| SignatureError::MissingHeader(name_of(name)))?;
    if values.next().is_some() {
        return Err(SignatureError::MalformedHeader(name_of(name)));
    }
    let value = value
        .to_str()
        .map_err(|_| SignatureError::MalformedHeader(name_of(name)))?;
    if value.is_empty() {
        return Err(SignatureError::MissingHeader(name_of(name)));
    }
    Ok(value)
}

fn name_of(name: &'static HeaderName) -> &'static str {
    name.as_str()
}

/// Whole seconds since 1970 in decimal digits and nothing else.
fn seconds(text: &str) -> Option<u64> {
    let is_number = (1..=MAX_TIME_DIGITS).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

/// 64 lower-case hexadecimal digits.
fn hex(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: &u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(bytes)
}

fn to_hex(bytes: &[u8; 32]) -> String {
    use fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_that_of_rfc_4231() {
        // Test case 2: a key shorter than a block.
        assert_eq!(
            to_hex(&mac(b"Jefe", &[b"what do ya want ", b"for nothing?"])),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn only_plain_digits_are_a_number() {
        assert_eq!(seconds("1763769600"), Some(1_763_769_600));
        for text in [
            "",
            "+1",
            "-1",
            " 1",
            "1.0",
            "0x1",
            "1_0",
            "١",
            "1234567890123",
        ] {
            assert_eq!(seconds(text), None, "{text}");
            assert!(hex(text).is_none());
        }
        assert!(hex(&"A".repeat(64)).is_none());
        assert_eq!(hex(&"0f".repeat(32)), Some([15; 32]));
    }
}
