use std::time::Duration;

use http::{HeaderMap, HeaderName};

use super::{MAX_SIGNATURES, Secrets, SignatureError, Tolerance, hex, only, seconds, to_hex};
use crate::{clock::Timestamp, error::ConfigError};

static HEADER: HeaderName = HeaderName::from_static("paddle-signature");

/// The `Paddle-Signature` field: `ts=<seconds>;h1=<hex>`, HMAC-SHA256 of `<seconds>:<body>`
/// (developer.paddle.com/webhooks/signature-verification).
///
/// The key is the secret as it stands. Every `h1` counts, as Paddle sends one for each secret while one is rolled over.
#[derive(Clone, Debug)]
#[must_use]
pub struct PaddleSignature {
    secrets: Secrets,
    tolerance: Tolerance,
}

impl PaddleSignature {
    /// Accepts what any of these secrets has signed.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the secret that is empty, `secrets[1]`, or says that there is none.
    pub fn new<S: AsRef<str>>(secrets: impl IntoIterator<Item = S>) -> Result<Self, ConfigError> {
        Ok(Self {
            secrets: Secrets::verbatim(secrets)?,
            tolerance: Tolerance::DEFAULT,
        })
    }

    /// How long ago, or ahead, a delivery may have been signed; 5 minutes unless set, counted in whole seconds. Paddle's
    /// own libraries take 5 seconds, which a slow network exceeds.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when it is zero.
    pub fn tolerance(mut self, tolerance: Duration) -> Result<Self, ConfigError> {
        self.tolerance = Tolerance::of(tolerance)?;
        Ok(self)
    }

    /// Verifies a delivery: the bytes as they came, before anything has read them as JSON.
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
        const MALFORMED: SignatureError = SignatureError::MalformedHeader("paddle-signature");
        let mut time = None;
        let mut signatures = Vec::new();
        let mut n_h1 = 0_usize;
        for element in only(headers, &HEADER)?.split(';') {
            match element.split_once('=').ok_or(MALFORMED)? {
                ("ts", value) if time.is_none() => {
                    time = Some((value, seconds(value).ok_or(MALFORMED)?));
                }
                ("ts", _) => return Err(MALFORMED),
                ("h1", value) => {
                    n_h1 += 1;
                    if n_h1 <= MAX_SIGNATURES {
                        signatures.extend(hex(value));
                    }
                }
                _ => {}
            }
        }
        let (text, signed) = time.ok_or(MALFORMED)?;
        if n_h1 == 0 {
            return Err(SignatureError::NoKnownSignature);
        }
        if !self
            .secrets
            .fit(&[text.as_bytes(), b":", body], &signatures)
        {
            return Err(SignatureError::Mismatch);
        }
        self.tolerance.check(signed, now)
    }

    /// The value of the header field for a body signed now under the first secret: for tests.
    #[must_use]
    pub fn sign(&self, body: &[u8], now: Timestamp) -> String {
        let time = now.as_unix_seconds().to_string();
        let mac = self.secrets.sign(&[time.as_bytes(), b":", body]);
        format!("ts={time};h1={}", to_hex(&mac))
    }
}
