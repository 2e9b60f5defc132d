use std::{fmt, sync::Arc};

use http::{HeaderName, HeaderValue, Request, Uri, header::AUTHORIZATION, uri::PathAndQuery};

use super::AuthRefusal;
use crate::{error::ConfigError, head::RequestHead};

/// The longest credential that is taken from a request, in bytes: a JSON web token may be long, an API key
/// is held to [`MAX_KEY_BYTES`](super::MAX_KEY_BYTES) later.
pub const MAX_CREDENTIAL_BYTES: usize = 8 * 1024;

const MAX_SOURCES: usize = 32;

/// A place in a request where a credential may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeySource {
    /// A header field whose whole value is the credential.
    Header(HeaderName),
    /// `Authorization: Bearer <credential>` (RFC 6750 section 2.1); the scheme's case does not matter
    /// (RFC 9110 section 11.1), other schemes are left alone.
    Bearer,
    /// A parameter of the query. A key in an address ends up in logs and histories, so use this only for
    /// clients that cannot send a header.
    Query(Arc<str>),
}

impl KeySource {
    /// A header field of this name.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when the name is not a header field name.
    pub fn header(name: impl AsRef<str>) -> Result<Self, ConfigError> {
        HeaderName::from_bytes(name.as_ref().as_bytes())
            .map(Self::Header)
            .map_err(|source| {
                ConfigError::new("header", "not a name of a header field").caused_by(source)
            })
    }

    /// A query parameter of this name.
    #[must_use]
    pub fn query(name: impl Into<Arc<str>>) -> Self {
        Self::Query(name.into())
    }
}

/// Finds the credential of a request.
///
/// By default `X-API-Key`, then `Authorization: Bearer`; never the query unless told to. A request has one
/// credential or none: a header sent twice, a list joined by commas, or two sources that say different
/// things are refused as [`AuthRefusal::Ambiguous`], so that no two programs on the way can read two
/// different callers out of one request. The same value in two sources is one credential.
#[derive(Clone, Debug)]
pub struct Extractor {
    sources: Arc<[KeySource]>,
}

impl Extractor {
    /// Reads these sources, the first found first.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when there is no source, more than 32, one of them twice, or a query parameter without
    /// a name.
    pub fn new(sources: impl IntoIterator<Item = KeySource>) -> Result<Self, ConfigError> {
        let sources: Arc<[KeySource]> = sources.into_iter().collect();
        if sources.is_empty() || sources.len() > MAX_SOURCES {
            return Err(ConfigError::new(
                "sources",
                "name 1 to 32 sources of credentials",
            ));
        }
        for (index, source) in sources.iter().enumerate() {
            let fault = if matches!(source, KeySource::Query(name) if name.is_empty()) {
                "a query parameter needs a name"
            } else if sources
                .iter()
                .take(index)
                .any(|earlier| overlaps(earlier, source))
            {
                "this source is read twice: remove one"
            } else {
                continue;
            };
            return Err(ConfigError::new(format!("sources[{index}]"), fault));
        }
        Ok(Self { sources })
    }

    /// The sources, in the order in which they are read.
    #[must_use]
    pub fn sources(&self) -> &[KeySource] {
        &self.sources
    }

    /// The request's credential, `None` when it has none. Neither allocates nor waits.
    ///
    /// # Errors
    ///
    /// [`AuthRefusal::Ambiguous`] for more than one credential; [`AuthRefusal::Malformed`] when the value is
    /// empty, longer than [`MAX_CREDENTIAL_BYTES`] or holds anything but visible ASCII.
    pub fn extract<'a>(
        &self,
        head: &RequestHead<'a>,
    ) -> Result<Option<Credential<'a>>, AuthRefusal> {
        let mut found: Option<(&'a [u8], u32)> = None;
        for (index, source) in self.sources.iter().enumerate() {
            let value = match source {
                KeySource::Header(name) => single_value(head, name)?,
                KeySource::Bearer => bearer(head)?,
                KeySource::Query(name) => query_value(head.uri(), name)?,
            };
            let Some(value) = value else { continue };
            let mask = 1 << index;
            found = match found {
                None => Some((value, mask)),
                Some((first, masks)) if first == value => Some((first, masks | mask)),
                Some(_) => return Err(AuthRefusal::Ambiguous),
            };
        }
        let Some((value, sources)) = found else {
            return Ok(None);
        };
        if value.is_empty()
            || value.len() > MAX_CREDENTIAL_BYTES
            || !all(value, u8::is_ascii_graphic)
        {
            return Err(AuthRefusal::Malformed);
        }
        let value = std::str::from_utf8(value).map_err(|_| AuthRefusal::Malformed)?;
        let source = CredentialSource { sources };
        Ok(Some(Credential { value, source }))
    }

    /// Takes the credential out of the request, so that the inner service and its logs never see it: removes
    /// each header that held it, or rewrites the target without the query parameter, and with the `axum`
    /// feature the `OriginalUri` extension too. Nothing else changes.
    pub fn strip<B>(&self, source: &CredentialSource, request: &mut Request<B>) {
        for (index, place) in self.sources.iter().enumerate() {
            if source.sources & (1 << index) == 0 {
                continue;
            }
            match place {
                KeySource::Header(name) => {
                    request.headers_mut().remove(name);
                }
                KeySource::Bearer => {
                    request.headers_mut().remove(AUTHORIZATION);
                }
                KeySource::Query(name) => {
                    let stripped = without_parameter(request.uri(), name);
                    *request.uri_mut() = stripped;
                    #[cfg(feature = "axum")]
                    if let Some(original) = request
                        .extensions_mut()
                        .get_mut::<axum::extract::OriginalUri>()
                    {
                        original.0 = without_parameter(&original.0, name);
                    }
                }
            }
        }
    }
}

impl Default for Extractor {
    /// `X-API-Key`, then `Authorization: Bearer`.
    fn default() -> Self {
        let api_key = KeySource::Header(HeaderName::from_static("x-api-key"));
        Self {
            sources: Arc::new([api_key, KeySource::Bearer]),
        }
    }
}

fn overlaps(a: &KeySource, b: &KeySource) -> bool {
    let reads_authorization = |source: &KeySource| match source {
        KeySource::Bearer => true,
        KeySource::Header(name) => name == AUTHORIZATION,
        KeySource::Query(_) => false,
    };
    a == b || (reads_authorization(a) && reads_authorization(b))
}

/// Without an early end, so that the compiler can take many bytes at once: nearly every value is good.
#[inline]
pub(super) fn all(bytes: &[u8], is_good: impl Fn(&u8) -> bool) -> bool {
    bytes.iter().fold(true, |good, byte| good & is_good(byte))
}

/// The value of a header that may be sent once.
fn single_value<'a>(
    head: &RequestHead<'a>,
    name: &HeaderName,
) -> Result<Option<&'a [u8]>, AuthRefusal> {
    let mut values = head
        .headers()
        .get_all(name)
        .iter()
        .map(HeaderValue::as_bytes);
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() || value.contains(&b',') {
        return Err(AuthRefusal::Ambiguous);
    }
    Ok(Some(value))
}

fn bearer<'a>(head: &RequestHead<'a>) -> Result<Option<&'a [u8]>, AuthRefusal> {
    let mut n_values = 0;
    let mut found = None;
    for value in head.headers().get_all(AUTHORIZATION) {
        n_values += 1;
        let mut challenges = value.as_bytes().split(|&byte| byte == b',');
        let first = challenges.next().unwrap_or_default();
        let more = challenges.next().is_some();
        match bearer_token(first) {
            // No token holds a comma, so this is two credentials in one line.
            Some(_) if more => return Err(AuthRefusal::Ambiguous),
            Some(token) => found = Some(token),
            // Another scheme is not ours, unless a token of ours hides behind it.
            None if more && hides_bearer(value.as_bytes()) => return Err(AuthRefusal::Ambiguous),
            None => {}
        }
    }
    if found.is_some() && n_values > 1 {
        return Err(AuthRefusal::Ambiguous);
    }
    Ok(found)
}

/// What follows the scheme `Bearer`, `None` for another scheme.
fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    let end = value
        .iter()
        .position(|byte| matches!(byte, b' ' | b'\t'))
        .unwrap_or(value.len());
    let (scheme, rest) = value.split_at_checked(end)?;
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return None;
    }
    // RFC 6750 section 2.1 has one or more spaces here, and nothing else.
    let spaces = rest.iter().take_while(|&&byte| byte == b' ').count();
    rest.get(spaces..)
}

fn hides_bearer(value: &[u8]) -> bool {
    value
        .split(|&byte| byte == b',')
        .skip(1)
        .any(|part| bearer_token(part.trim_ascii_start()).is_some())
}

/// The value of a query parameter that may be sent once. The parameter's name is read with percent-escapes
/// resolved, as the service behind would; a value needs none, since keys have no character that does.
fn query_value<'a>(uri: &'a Uri, name: &str) -> Result<Option<&'a [u8]>, AuthRefusal> {
    let mut found = None;
    for parameter in uri.query().unwrap_or_default().split('&') {
        let (its_name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if is_named(its_name, name) && found.replace(value.as_bytes()).is_some() {
            return Err(AuthRefusal::Ambiguous);
        }
    }
    match found {
        Some(value) if value.contains(&b'%') || value.contains(&b'+') => {
            Err(AuthRefusal::Malformed)
        }
        found => Ok(found),
    }
}

fn is_named(encoded: &str, name: &str) -> bool {
    let mut rest = encoded.as_bytes();
    let decoded = std::iter::from_fn(|| {
        let (&first, tail) = rest.split_first()?;
        let escaped = match (first, tail) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        let (byte, used) = match (first, escaped) {
            (_, Some((high, low))) => (high << 4 | low, 3),
            (b'+', None) => (b' ', 1),
            (byte, None) => (byte, 1),
        };
        rest = rest.get(used..).unwrap_or_default();
        Some(byte)
    });
    decoded.eq(name.bytes())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

fn without_parameter(uri: &Uri, name: &str) -> Uri {
    let mut target = String::with_capacity(uri.path().len() + uri.query().map_or(0, str::len) + 1);
    target.push_str(uri.path());
    let mut separator = '?';
    for parameter in uri.query().unwrap_or_default().split('&') {
        let its_name = parameter
            .split_once('=')
            .map_or(parameter, |(name, _)| name);
        if parameter.is_empty() || is_named(its_name, name) {
            continue;
        }
        target.push(separator);
        target.push_str(parameter);
        separator = '&';
    }
    let mut parts = uri.clone().into_parts();
    // Each piece was part of a valid target. Were it refused all the same, losing the path is better than
    // passing the key on.
    let path = PathAndQuery::try_from(target).unwrap_or_else(|_| PathAndQuery::from_static("/"));
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).unwrap_or_default()
}

/// The credential of a request, before anybody has checked it.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Credential<'a> {
    /// The text: 1 to [`MAX_CREDENTIAL_BYTES`] bytes of visible ASCII.
    pub value: &'a str,
    /// Where it stood, for [`Extractor::strip`].
    pub source: CredentialSource,
}

impl fmt::Debug for Credential<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({})", super::ShownKey::of(self.value))
    }
}

/// Which of an [`Extractor`]'s sources held the credential; more than one when they agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CredentialSource {
    sources: u32,
}
