use std::time::Duration;

use serde_json::{Map, Value};

use super::{Claims, JwtAlgorithm, claims::date, compact::Parts};
use crate::{auth::AuthRefusal, clock::Timestamp, error::ConfigError};

/// What is asked of every token, whoever issued it.
#[derive(Clone, Debug)]
pub(crate) struct TokenPolicy {
    pub(crate) access_tokens_only: bool,
    pub(crate) algorithms: Vec<JwtAlgorithm>,
    /// `None` until one is named or any is allowed.
    pub(crate) audiences: Audiences,
    pub(crate) leeway: Duration,
    pub(crate) max_bytes: usize,
}

/// For whom tokens may be meant.
#[derive(Clone, Debug)]
pub(crate) enum Audiences {
    Any,
    OneOf(Vec<Box<str>>),
}

/// When a token counts, with leeway.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Validity {
    pub(crate) from: Timestamp,
    pub(crate) until: Timestamp,
}

impl Validity {
    /// # Errors
    ///
    /// [`AuthRefusal::Expired`] or [`AuthRefusal::NotYetValid`].
    pub(crate) fn check(self, now: Timestamp) -> Result<(), AuthRefusal> {
        if now >= self.until {
            Err(AuthRefusal::Expired)
        } else if now < self.from {
            Err(AuthRefusal::NotYetValid)
        } else {
            Ok(())
        }
    }
}

const MAX_LEEWAY: Duration = Duration::from_secs(300);

impl TokenPolicy {
    pub(crate) fn new() -> Self {
        Self {
            access_tokens_only: false,
            algorithms: JwtAlgorithm::ALL.to_vec(),
            audiences: Audiences::OneOf(Vec::new()),
            leeway: Duration::from_secs(60),
            max_bytes: crate::auth::MAX_CREDENTIAL_BYTES,
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let wrong = |field, reason: &'static str| Err(ConfigError::new(field, reason));
        match &self.audiences {
            Audiences::OneOf(audiences) if audiences.is_empty() => {
                return wrong(
                    "audience",
                    "tokens meant for another service would be accepted: name this one, or write `any_audience()`",
                );
            }
            Audiences::OneOf(audiences) if audiences.iter().any(|name| name.is_empty()) => {
                return wrong("audience", "an audience needs a name");
            }
            Audiences::Any | Audiences::OneOf(_) => {}
        }
        if self.algorithms.is_empty() {
            return wrong("algorithms", "no token could be accepted: name one or more");
        }
        if self.leeway > MAX_LEEWAY {
            return wrong(
                "leeway",
                "at most 5 minutes: clocks that differ by more are broken",
            );
        }
        if !(1..=crate::auth::MAX_CREDENTIAL_BYTES).contains(&self.max_bytes) {
            return wrong("max_bytes", "must be 1 to 8,192");
        }
        Ok(())
    }

    /// Whether the token is of a kind that may be presented to a service (RFC 8725 section 3.11): an access
    /// token by its type, or one that says of itself no more than that it is a JWT.
    pub(super) fn check_type(&self, parts: &Parts<'_>) -> Result<(), AuthRefusal> {
        // RFC 7515 section 4.1.9: a media type, of which `application/` may be left out; case does not matter.
        let named = parts.media_type.as_deref().map(|media_type| {
            let prefix = "application/";
            match media_type.split_at_checked(prefix.len()) {
                Some((start, rest)) if start.eq_ignore_ascii_case(prefix) => rest,
                _ => media_type,
            }
        });
        let is = |name: &str| named.is_some_and(|named| named.eq_ignore_ascii_case(name));
        let fits = is("at+jwt") || (!self.access_tokens_only && (named.is_none() || is("JWT")));
        fits.then_some(()).ok_or(AuthRefusal::Malformed)
    }

    /// Checks audience and times of claims whose signature was verified.
    pub(super) fn judge(
        &self,
        claims: Map<String, Value>,
        now: Timestamp,
    ) -> Result<(Claims, Validity), AuthRefusal> {
        self.check_audience(&claims)?;
        let expires_at = date(&claims, "exp")?.ok_or(AuthRefusal::Malformed)?;
        let not_before = date(&claims, "nbf")?.unwrap_or_default();
        // A token from the future is from a broken clock, or made to outlive what its issuer allows.
        let issued_at = date(&claims, "iat")?.unwrap_or_default();
        let validity = Validity {
            from: not_before.max(issued_at).saturating_sub(self.leeway),
            until: expires_at.saturating_add(self.leeway),
        };
        validity.check(now)?;
        Ok((Claims::new(claims, expires_at), validity))
    }

    /// RFC 7519 section 4.1.3: a text or a list of texts, of which one must name this service.
    fn check_audience(&self, claims: &Map<String, Value>) -> Result<(), AuthRefusal> {
        let Audiences::OneOf(own) = &self.audiences else {
            return Ok(());
        };
        let is_own = |value: &Value| {
            let name = value.as_str();
            name.is_some_and(|name| own.iter().any(|own| **own == *name))
        };
        let fits = match claims.get("aud") {
            Some(Value::Array(audiences)) => audiences.iter().any(is_own),
            Some(audience) => is_own(audience),
            None => false,
        };
        fits.then_some(()).ok_or(AuthRefusal::WrongAudience)
    }
}
