use std::time::Duration;

use http::{HeaderMap, HeaderName};

use super::{MAX_SIGNATURES, Secrets, SignatureError, Tolerance, hex, only, seconds, to_hex};
use crate::{clock::Timestamp, error::ConfigError};

static HEADER: HeaderName = HeaderName::from_static("stripe-signature");

/// The `Stripe-Signature` field: `t=<seconds>,v1=<hex>`, HMAC-SHA256 of `<seconds>.<body>`
/// (docs.stripe.com/webhooks/signature).
///
/// The key is the secret as it stands, its `whsec_` included. Every `v1` counts, as Stripe sends one for each active
/// secret while one is rolled over; `v0` and unknown keys are ignored. Stricter than the libraries of Stripe where these
/// differ: exactly one `t` of digits, lower-case hexadecimal, no white space, and the time is bounded on both sides.
#[derive(Clone, Debug)]
#[must_use]
pub struct StripeSignature {
    secrets: Secrets,
    tolerance: Tolerance,
}

impl StripeSignature {
    /// Accepts what any of these secrets has signed: while one is rolled over, name the new and the old.
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

    /// How long ago, or ahead, a delivery may have been signed; 5 minutes unless set, counted in whole seconds.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when it is zero.
    pub fn tolerance(mut self, tolerance: Duration) -> Result<Self, ConfigError> {
        self.tolerance = Tolerance::of(tolerance)?;
        Ok(self)
    }

    /// Accepts a signature of any age: to read deliveries that were stored, never at an endpoint, where whoever has
    /// seen one could send it again for ever.
    pub const fn dangerous_any_age(mut self) -> Self {
        self.tolerance = Tolerance(None);
        self
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
        let header = read(only(headers, &HEADER)?)?;
        let parts: [&[u8]; 3] = [header.time.as_bytes(), b".", body];
        let signatures = header.signatures.get(..header.n).unwrap_or_default();
        if !self.secrets.fit(&parts, signatures) {
            return Err(SignatureError::Mismatch);
        }
        self.tolerance.check(header.seconds, now)
    }

    /// The value of the header field for a body signed now under the first secret: for tests and for a service that
    /// sends deliveries to itself.
    #[must_use]
    pub fn sign(&self, body: &[u8], now: Timestamp) -> String {
        let time = now.as_unix_seconds().to_string();
        let mac = self.secrets.sign(&[time.as_bytes(), b".", body]);
        format!("t={time},v1={}", to_hex(&mac))
    }
}

struct Header<'a> {
    time: &'a str,
    seconds: u64,
    signatures: [[u8; 32]; MAX_SIGNATURES],
    n: usize,
}

fn read(text: &str) -> Result<Header<'_>, SignatureError> {
    const MALFORMED: SignatureError = SignatureError::MalformedHeader("stripe-signature");
    let mut time = None;
    let mut header = Header {
        time: "",
        seconds: 0,
        signatures: [[0; 32]; MAX_SIGNATURES],
        n: 0,
    };
    let mut n_v1 = 0_usize;
    for element in text.split(',') {
        let (key, value) = element.split_once('=').ok_or(MALFORMED)?;
        match key {
            "t" if time.is_none() => {
                time = Some((value, seconds(value).ok_or(MALFORMED)?));
            }
            "t" => return Err(MALFORMED),
            "v1" => {
                n_v1 += 1;
                // One that is no digest fits nothing.
                if n_v1 <= MAX_SIGNATURES
                    && let Some(signature) = hex(value)
                    && let Some(place) = header.signatures.get_mut(header.n)
                {
                    *place = signature;
                    header.n += 1;
                }
            }
            _ => {}
        }
    }
    (header.time, header.seconds) = time.ok_or(MALFORMED)?;
    if n_v1 == 0 {
        return Err(SignatureError::NoKnownSignature);
    }
    Ok(header)
}
