use std::{borrow::Cow, fmt::Write as _, time::Duration};

use http::{
    HeaderValue,
    header::{RETRY_AFTER, WWW_AUTHENTICATE},
};

use super::{AuthRefusal, Extractor, KeySource};
use crate::error::{ConfigError, ErrorCode, Problem};

const SEND_A_KEY: &str = "Send an API key with the request.";
const INVALID: &str = "The credential is not valid.";
const ONE_CREDENTIAL: &str = "Send one credential, once.";

/// An error code of RFC 6750 section 3.1 and its description, the same whatever is wrong with a credential.
type BearerError = (&'static str, &'static str);
const INVALID_TOKEN: BearerError = ("invalid_token", INVALID);
const INVALID_REQUEST: BearerError = ("invalid_request", ONE_CREDENTIAL);

/// What a caller without a valid credential is told: which schemes are served, under which realm.
///
/// A 401 must carry `WWW-Authenticate` (RFC 9110 section 15.5.2). Each scheme has a field line of its own:
/// `ApiKey realm="api"` and, where `Authorization` is read, `Bearer realm="api"` with the error codes of
/// RFC 6750 section 3.1. The values are made once, when the challenge is built.
#[derive(Clone, Debug)]
pub struct Challenge {
    missing: Vec<HeaderValue>,
    invalid: Vec<HeaderValue>,
    ambiguous: Vec<HeaderValue>,
    how_to_send: Cow<'static, str>,
}

impl Challenge {
    /// A challenge with the schemes `ApiKey` and `Bearer`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when the realm is empty or holds anything but ASCII without control characters, `"`
    /// and `\`.
    pub fn new(realm: &str) -> Result<Self, ConfigError> {
        Self::with_schemes(realm, ["ApiKey", "Bearer"])
    }

    /// A challenge with the schemes that fit an extractor's sources: `ApiKey` for a header or a query
    /// parameter, `Bearer` for `Authorization: Bearer`.
    ///
    /// # Errors
    ///
    /// As [`Challenge::new`].
    pub fn for_extractor(realm: &str, extractor: &Extractor) -> Result<Self, ConfigError> {
        let reads_bearer = extractor.sources().contains(&KeySource::Bearer);
        let reads_other = extractor
            .sources()
            .iter()
            .any(|source| *source != KeySource::Bearer);
        let api_key = reads_other.then_some("ApiKey");
        let bearer = reads_bearer.then_some("Bearer");
        let mut challenge = Self::with_schemes(realm, api_key.into_iter().chain(bearer))?;
        let places: Vec<String> = extractor.sources().iter().filter_map(place).collect();
        if !places.is_empty() {
            challenge.how_to_send = format!("Send an API key as {}.", places.join(" or ")).into();
        }
        Ok(challenge)
    }

    /// A challenge with schemes of your own, in this order. Only `Bearer` carries error codes.
    ///
    /// # Errors
    ///
    /// As [`Challenge::new`]; also when no scheme is named or one is not a token (RFC 9110 section 5.6.2).
    pub fn with_schemes<S: AsRef<str>>(
        realm: &str,
        schemes: impl IntoIterator<Item = S>,
    ) -> Result<Self, ConfigError> {
        let quotable = |byte: u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
        if realm.is_empty() || !realm.bytes().all(quotable) {
            return Err(ConfigError::new(
                "realm",
                "a realm is printable ASCII without quotes and backslashes",
            ));
        }
        let mut challenge = Self {
            missing: Vec::new(),
            invalid: Vec::new(),
            ambiguous: Vec::new(),
            how_to_send: SEND_A_KEY.into(),
        };
        for (index, scheme) in schemes.into_iter().enumerate() {
            challenge
                .add(scheme.as_ref(), realm)
                .map_err(|error| error.under(format_args!("schemes[{index}]")))?;
        }
        if challenge.missing.is_empty() {
            return Err(ConfigError::new("schemes", "name at least one scheme"));
        }
        Ok(challenge)
    }

    /// Also tells a caller without a credential that an access token is one.
    #[must_use]
    pub fn or_access_tokens(mut self) -> Self {
        let keys = self.how_to_send.trim_end_matches('.');
        self.how_to_send = format!("{keys}, or an access token in its place.").into();
        self
    }

    fn add(&mut self, scheme: &str, realm: &str) -> Result<(), ConfigError> {
        if scheme.is_empty() || !scheme.bytes().all(is_token_byte) {
            return Err(ConfigError::new(
                "",
                "an authentication scheme is one token",
            ));
        }
        let plain = value(scheme, realm, None)?;
        if scheme.eq_ignore_ascii_case("bearer") {
            self.invalid
                .push(value(scheme, realm, Some(INVALID_TOKEN))?);
            self.ambiguous
                .push(value(scheme, realm, Some(INVALID_REQUEST))?);
        } else {
            self.invalid.push(plain.clone());
        }
        self.missing.push(plain);
        Ok(())
    }

    /// The answer to whoever's account has ended.
    pub(crate) fn account_closed(&self) -> Problem {
        challenged(ErrorCode::AccountClosed, &self.missing)
    }

    /// The answer to a refusal.
    ///
    /// | refusal | answer |
    /// | --- | --- |
    /// | missing | 401 `missing_credentials`, no `error` attribute |
    /// | malformed, unknown, expired, revoked, unknown tenant, any fault of a token | 401 `invalid_credentials`, byte for byte the same |
    /// | ambiguous | 400 `ambiguous_credentials` |
    /// | wrong environment | 400 `mode_mismatch` |
    /// | address not allowed | 403 `ip_not_allowed` |
    /// | too many failures | 429 `too_many_failed_attempts` with `Retry-After`, rounded up |
    /// | store unavailable, unknown plan | 503 `auth_unavailable` with `Retry-After: 1` |
    ///
    /// An unknown plan is a 503, since another process may have put the plan on sale before this one heard.
    #[must_use]
    pub fn problem(&self, refusal: &AuthRefusal) -> Problem {
        match refusal {
            AuthRefusal::Missing => challenged(ErrorCode::MissingCredentials, &self.missing)
                .detail(self.how_to_send.clone()),
            AuthRefusal::Malformed
            | AuthRefusal::Unknown
            | AuthRefusal::BadSignature
            | AuthRefusal::WrongIssuer
            | AuthRefusal::WrongAudience
            | AuthRefusal::NotYetValid
            | AuthRefusal::Expired
            | AuthRefusal::Revoked
            | AuthRefusal::TenantUnknown => {
                challenged(ErrorCode::InvalidCredentials, &self.invalid).detail(INVALID)
            }
            AuthRefusal::Ambiguous => {
                challenged(ErrorCode::AmbiguousCredentials, &self.ambiguous).detail(ONE_CREDENTIAL)
            }
            AuthRefusal::WrongEnvironment => Problem::new(ErrorCode::ModeMismatch)
                .detail("The credential belongs to another environment, live or test."),
            AuthRefusal::AddressNotAllowed => Problem::new(ErrorCode::IpNotAllowed)
                .detail("The credential may not be used from this address."),
            AuthRefusal::StoreUnavailable | AuthRefusal::PlanUnknown => {
                Problem::new(ErrorCode::AuthUnavailable)
                    .detail("The credential cannot be checked now; try again shortly.")
                    .header(RETRY_AFTER, HeaderValue::from_static("1"))
            }
            AuthRefusal::TooManyFailures { retry_after } => {
                Problem::new(ErrorCode::TooManyFailedAttempts)
                    .detail("Too many requests from this address failed to authenticate.")
                    .header(RETRY_AFTER, HeaderValue::from(whole_seconds(*retry_after)))
            }
        }
    }
}

impl Default for Challenge {
    /// `ApiKey realm="api"` and `Bearer realm="api"`.
    fn default() -> Self {
        let api_key = HeaderValue::from_static("ApiKey realm=\"api\"");
        let bearer = |value| HeaderValue::from_static(value);
        Self {
            missing: vec![api_key.clone(), bearer("Bearer realm=\"api\"")],
            invalid: vec![
                api_key,
                bearer(concat!(
                    "Bearer realm=\"api\", error=\"invalid_token\", ",
                    "error_description=\"The credential is not valid.\""
                )),
            ],
            ambiguous: vec![bearer(concat!(
                "Bearer realm=\"api\", error=\"invalid_request\", ",
                "error_description=\"Send one credential, once.\""
            ))],
            how_to_send: SEND_A_KEY.into(),
        }
    }
}

fn challenged(code: ErrorCode, values: &[HeaderValue]) -> Problem {
    values.iter().fold(Problem::new(code), |problem, value| {
        problem.header(WWW_AUTHENTICATE, value.clone())
    })
}

fn value(
    scheme: &str,
    realm: &str,
    error: Option<BearerError>,
) -> Result<HeaderValue, ConfigError> {
    let mut text = format!("{scheme} realm=\"{realm}\"");
    if let Some((code, description)) = error {
        let _ = write!(
            text,
            ", error=\"{code}\", error_description=\"{description}\""
        );
    }
    HeaderValue::try_from(text)
        .map_err(|source| ConfigError::new("realm", "not a header value").caused_by(source))
}

/// How a caller sends a key there. A query parameter is not recommended to anybody.
fn place(source: &KeySource) -> Option<String> {
    match source {
        KeySource::Header(name) => Some(format!("`{name}: <key>`")),
        KeySource::Bearer => Some("`Authorization: Bearer <key>`".to_owned()),
        KeySource::Query(_) => None,
    }
}

const fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'+' | b'!' | b'~')
}

/// Rounded up and at least 1: who waits this long has waited long enough (RFC 9110 section 10.2.3).
fn whole_seconds(duration: Duration) -> u64 {
    let part = u64::from(duration.subsec_nanos() > 0);
    duration.as_secs().saturating_add(part).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_what_the_constructor_makes() {
        let (default, made) = (Challenge::default(), Challenge::new("api").unwrap());
        assert_eq!(default.missing, made.missing);
        assert_eq!(default.invalid, made.invalid);
        assert_eq!(default.ambiguous, made.ambiguous);
    }

    #[test]
    fn a_wait_is_rounded_up() {
        assert_eq!(whole_seconds(Duration::ZERO), 1);
        assert_eq!(whole_seconds(Duration::from_millis(900)), 1);
        assert_eq!(whole_seconds(Duration::from_millis(1_001)), 2);
        assert_eq!(whole_seconds(Duration::MAX), u64::MAX);
    }
}
