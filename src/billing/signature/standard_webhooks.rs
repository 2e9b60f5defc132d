use std::time::Duration;

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use zeroize::Zeroizing;

use super::{MAX_SIGNATURES, Secrets, SignatureError, Tolerance, only, seconds};
use crate::{clock::Timestamp, error::ConfigError};

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// The longest id that is taken; those of the field have 31 characters.
const MAX_ID_BYTES: usize = 255;

struct Names {
    id: HeaderName,
    time: HeaderName,
    signature: HeaderName,
}

static STANDARD_NAMES: Names = Names {
    id: HeaderName::from_static("webhook-id"),
    time: HeaderName::from_static("webhook-timestamp"),
    signature: HeaderName::from_static("webhook-signature"),
};
static SVIX_NAMES: Names = Names {
    id: HeaderName::from_static("svix-id"),
    time: HeaderName::from_static("svix-timestamp"),
    signature: HeaderName::from_static("svix-signature"),
};

/// Standard Webhooks 1.0: `webhook-signature` is a list of `v1,<base64>`, HMAC-SHA256 of `<id>.<timestamp>.<body>`
/// (standardwebhooks.com).
///
/// The key is what the secret, without its `whsec_`, is in base64. Signatures of other versions are skipped, those with a
/// public key (`v1a`) among them: the sender of one sends a `v1` too where a shared secret is set up.
#[derive(Clone, Debug)]
#[must_use]
pub struct StandardWebhooksSignature {
    secrets: Secrets,
    tolerance: Tolerance,
    svix: bool,
}

impl StandardWebhooksSignature {
    /// Accepts what any of these secrets has signed: while one is rolled over, name the new and the old.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the secret that is empty or not base64, `secrets[1]`, or says that there is none.
    pub fn new<S: AsRef<str>>(secrets: impl IntoIterator<Item = S>) -> Result<Self, ConfigError> {
        let decoded = |secret: &str| {
            let text = secret.strip_prefix("whsec_").unwrap_or(secret);
            // The error would quote a byte of the secret.
            let key = BASE64.decode(text).map_err(|_| {
                ConfigError::new(
                    "",
                    "the secret is not base64: copy it as the sender shows it, `whsec_` and all",
                )
            })?;
            Ok(Zeroizing::new(key))
        };
        Ok(Self {
            secrets: Secrets::new(secrets, decoded)?,
            tolerance: Tolerance::DEFAULT,
            svix: false,
        })
    }

    /// Also takes `svix-id`, `svix-timestamp` and `svix-signature`, where a delivery has none of the standard's fields;
    /// off unless set.
    pub const fn svix_names(mut self, on: bool) -> Self {
        self.svix = on;
        self
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
        let names = self.names(headers);
        let id = self.id(headers)?;
        let time = only(headers, &names.time)?;
        let malformed = SignatureError::MalformedHeader(super::name_of(&names.time));
        let signed = seconds(time).ok_or(malformed)?;
        let items = only(headers, &names.signature)?.split(' ');
        let of_version = items.filter_map(|item| item.strip_prefix("v1,"));
        let mut n_v1 = 0_usize;
        let mut signatures = Vec::new();
        for text in of_version {
            n_v1 += 1;
            if n_v1 <= MAX_SIGNATURES {
                // One that is no digest fits nothing.
                let bytes = BASE64.decode(text).ok();
                signatures.extend(bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()));
            }
        }
        if n_v1 == 0 {
            return Err(SignatureError::NoKnownSignature);
        }
        let parts: [&[u8]; 5] = [id.as_bytes(), b".", time.as_bytes(), b".", body];
        if !self.secrets.fit(&parts, &signatures) {
            return Err(SignatureError::Mismatch);
        }
        self.tolerance.check(signed, now)
    }

    /// The id of a delivery, which stays the same when it is sent again.
    ///
    /// # Errors
    ///
    /// [`SignatureError`] when it is missing, there twice, or not of 1 to 255 visible characters.
    pub fn id<'a>(&self, headers: &'a HeaderMap) -> Result<&'a str, SignatureError> {
        let name = &self.names(headers).id;
        let id = only(headers, name)?;
        if id.len() > MAX_ID_BYTES || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(SignatureError::MalformedHeader(super::name_of(name)));
        }
        Ok(id)
    }

    /// The signed time of a delivery; the start of 1970 where there is none.
    pub(crate) fn signed_at(&self, headers: &HeaderMap) -> Timestamp {
        let time = only(headers, &self.names(headers).time).ok();
        Timestamp::from_unix_seconds(time.and_then(seconds).unwrap_or(0))
    }

    /// The header fields for a body signed now under the first secret: for tests.
    #[must_use]
    pub fn sign(&self, id: &str, body: &[u8], now: Timestamp) -> HeaderMap {
        let time = now.as_unix_seconds().to_string();
        let parts: [&[u8]; 5] = [id.as_bytes(), b".", time.as_bytes(), b".", body];
        let signature = format!("v1,{}", BASE64.encode(self.secrets.sign(&parts)));
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (&STANDARD_NAMES.id, id),
            (&STANDARD_NAMES.time, &time),
            (&STANDARD_NAMES.signature, &signature),
        ] {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
        headers
    }

    /// The standard's names, unless none of them is there and the other sender's are taken.
    fn names(&self, headers: &HeaderMap) -> &'static Names {
        let has = |names: &Names| {
            [&names.id, &names.time, &names.signature]
                .iter()
                .any(|name| headers.contains_key(*name))
        };
        if self.svix && !has(&STANDARD_NAMES) && has(&SVIX_NAMES) {
            &SVIX_NAMES
        } else {
            &STANDARD_NAMES
        }
    }
}
