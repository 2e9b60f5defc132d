use std::sync::Arc;

use http::{HeaderValue, header::WWW_AUTHENTICATE};
use tower_layer::Layer;

use super::service::{Guard, Guarded, identity, sealed::Sealed};
use crate::{
    error::{ErrorCode, Problem},
    head::RequestHead,
};

/// Lets only credentials with a scope reach a route; the others are answered 403 `insufficient_scope` with
/// the challenge of RFC 6750 section 3.1.
///
/// ```
/// use tollgate::identity::RequireScope;
///
/// let both = RequireScope::new("chat:read chat:write");
/// assert_eq!(both.scopes().collect::<Vec<_>>(), ["chat:read", "chat:write"]);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct RequireScope {
    required: Arc<Required>,
}

#[derive(Debug)]
struct Required {
    scopes: Box<[Box<str>]>,
    text: Box<str>,
    challenge: HeaderValue,
}

impl RequireScope {
    /// Asks for a scope, or for all of several that are separated by spaces (RFC 6749 section 3.3).
    ///
    /// Text without a scope asks only for an identity.
    pub fn new(scopes: impl AsRef<str>) -> Self {
        let scopes: Box<[Box<str>]> = scopes
            .as_ref()
            .split_ascii_whitespace()
            .map(Box::from)
            .collect();
        let text = scopes.join(" ").into_boxed_str();
        // What is no scope token cannot stand in the header field; the challenge then leaves it out.
        let challenge = Some(&text)
            .filter(|text| text.bytes().all(is_scope_byte))
            .and_then(|text| {
                let value = format!("Bearer error=\"insufficient_scope\", scope=\"{text}\"");
                HeaderValue::try_from(value).ok()
            })
            .unwrap_or(const { HeaderValue::from_static("Bearer error=\"insufficient_scope\"") });
        Self {
            required: Arc::new(Required {
                scopes,
                text,
                challenge,
            }),
        }
    }

    /// The scopes asked for.
    pub fn scopes(&self) -> impl Iterator<Item = &str> {
        self.required.scopes.iter().map(|scope| &**scope)
    }
}

/// A byte of a scope token (RFC 6749 section 3.3), or the space between two.
const fn is_scope_byte(byte: u8) -> bool {
    matches!(byte, 0x20..=0x7e) && !matches!(byte, b'"' | b'\\')
}

impl Sealed for RequireScope {}

impl Guard for RequireScope {
    fn check(&self, head: &RequestHead<'_>) -> Result<(), Box<Problem>> {
        let identity = identity(head, "RequireScope")?;
        if self.scopes().all(|scope| identity.has_scope(scope)) {
            return Ok(());
        }
        let problem = Problem::new(ErrorCode::InsufficientScope)
            .detail("The credential lacks a scope that this route asks for.")
            .with("scope", &*self.required.text)
            .header(WWW_AUTHENTICATE, self.required.challenge.clone());
        Err(Box::new(problem))
    }
}

impl<S> Layer<S> for RequireScope {
    type Service = Guarded<S, Self>;

    fn layer(&self, inner: S) -> Guarded<S, Self> {
        Guarded::new(inner, self.clone())
    }
}
