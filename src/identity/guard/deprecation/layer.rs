use std::{fmt, sync::Arc};

use http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::{Entry, LINK},
};
use jiff::fmt::rfc2822::DateTimePrinter;
use tower_layer::Layer;

use super::service::Deprecated;
use crate::{
    clock::{Clock, SystemClock, Timestamp},
    error::{ConfigError, ErrorCode, Problem},
    meter::Meter,
};

pub(super) const DEPRECATION: HeaderName = HeaderName::from_static("deprecation");
pub(super) const SUNSET: HeaderName = HeaderName::from_static("sunset");

/// Tells the callers of a route that its version comes to an end: `Deprecation` (RFC 9745), `Sunset` (RFC 8594) and
/// `Link` to what they should read.
///
/// The fields are sent from the first call on, also before the day: both may lie in the future. From the day on,
/// usage events say `deprecated`. Which tenants still call, `usage::DeprecationReport` tells from them.
///
/// What a limit outside of this layer refuses carries none of the fields, nor does a refusal by a layer inside of it. A
/// field that the service sets itself stands. Place it with the other route layers, inside the limit:
///
/// ```
/// use http::{Request, Response};
/// use tollgate::{clock::Timestamp, identity::DeprecationLayer};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let march = Timestamp::from_unix_seconds(1_772_323_200);
/// let december = Timestamp::from_unix_seconds(1_796_083_200);
/// let layer = DeprecationLayer::since(march)
///     .sunset(december)?
///     .document("https://docs.example.com/v0")?
///     .successor("/v1/hello")?;
/// let service = layer.layer(service_fn(|_: Request<String>| async {
///     Ok::<_, std::convert::Infallible>(Response::new(String::from("hello")))
/// }));
/// let answer = service.oneshot(Request::new(String::new())).await?;
/// assert_eq!(answer.headers()["deprecation"], "@1772323200");
/// assert_eq!(answer.headers()["sunset"], "Tue, 01 Dec 2026 00:00:00 GMT");
/// assert_eq!(answer.headers().get_all("link").iter().count(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
#[must_use]
pub struct DeprecationLayer {
    pub(super) terms: Arc<Terms>,
}

/// What is told, ready to be sent.
#[derive(Clone)]
pub(super) struct Terms {
    since: Timestamp,
    sunset: Option<Timestamp>,
    successor: Option<Arc<str>>,
    deprecation: HeaderValue,
    sunset_date: Option<HeaderValue>,
    links: Vec<HeaderValue>,
    gone_after_sunset: bool,
    clock: Arc<dyn Clock>,
}

impl DeprecationLayer {
    /// The version is deprecated from a point of time on, past or future; told in whole seconds.
    pub fn since(since: Timestamp) -> Self {
        Self {
            terms: Arc::new(Terms {
                since,
                sunset: None,
                successor: None,
                deprecation: date_of_deprecation(since),
                sunset_date: None,
                links: Vec::new(),
                gone_after_sunset: false,
                clock: SystemClock::shared(),
            }),
        }
    }

    /// When the version stops working: sent as `Sunset`. Calls pass after it all the same, unless
    /// [`gone_after_sunset`](Self::gone_after_sunset) is set.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names `sunset` when it is before the deprecation (RFC 9745 section 4).
    pub fn sunset(mut self, sunset: Timestamp) -> Result<Self, ConfigError> {
        let terms = Arc::make_mut(&mut self.terms);
        if sunset < terms.since {
            let reason = format!(
                "{sunset} is before the deprecation at {}: a version ends no earlier than it is deprecated",
                terms.since
            );
            return Err(ConfigError::new("sunset", reason));
        }
        let date = DateTimePrinter::new()
            .timestamp_to_rfc9110_string(&sunset.to_jiff())
            .ok()
            .and_then(|date| HeaderValue::try_from(date).ok())
            .ok_or_else(|| ConfigError::new("sunset", "this point of time is no HTTP date"))?;
        terms.sunset = Some(sunset);
        terms.sunset_date = Some(date);
        Ok(self)
    }

    /// A page about the deprecation: `Link` with `rel="deprecation"`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names `document` when it is not the address of a page or a path.
    pub fn document(self, url: &str) -> Result<Self, ConfigError> {
        self.link("document", url, "deprecation", "; type=\"text/html\"")
    }

    /// A page about the end of versions: `Link` with `rel="sunset"`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names `sunset_document` when it is not the address of a page or a path.
    pub fn sunset_document(self, url: &str) -> Result<Self, ConfigError> {
        self.link("sunset_document", url, "sunset", "; type=\"text/html\"")
    }

    /// What to call instead: `Link` with `rel="successor-version"` (RFC 5829), and the member `successor` of the
    /// problem after the sunset.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names `successor` when it is not an address or a path.
    pub fn successor(self, url: &str) -> Result<Self, ConfigError> {
        let mut layer = self.link("successor", url, "successor-version", "")?;
        Arc::make_mut(&mut layer.terms).successor = Some(url.into());
        Ok(layer)
    }

    /// Answers 410 `sunset` from the sunset on, without asking the service. What was charged for such a call is given
    /// back. Off unless set; needs a [`sunset`](Self::sunset).
    pub fn gone_after_sunset(mut self) -> Self {
        Arc::make_mut(&mut self.terms).gone_after_sunset = true;
        self
    }

    /// The clock where no `MeterLayer` stands outside; the system's unless set. A metered call has been read the clock
    /// for already.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        Arc::make_mut(&mut self.terms).clock = clock;
        self
    }

    fn link(
        mut self,
        field: &'static str,
        url: &str,
        relation: &str,
        more: &str,
    ) -> Result<Self, ConfigError> {
        let wrong = |reason: &str| ConfigError::new(field, format!("`{url}` {reason}"));
        let uri = url
            .parse::<Uri>()
            .map_err(|source| wrong("is no address").caused_by(source))?;
        if uri.scheme().is_none() && !url.starts_with('/') {
            return Err(wrong(
                "is neither an address such as https://docs.example.com/v0 nor a path such as /v1",
            ));
        }
        // A URI-Reference in angle brackets (RFC 8288 section 3).
        if !url.is_ascii() || url.contains(['<', '>', '"']) {
            return Err(wrong("holds a character that must be percent-encoded"));
        }
        let value = HeaderValue::try_from(format!("<{url}>; rel=\"{relation}\"{more}"))
            .map_err(|source| wrong("cannot stand in a header field").caused_by(source))?;
        Arc::make_mut(&mut self.terms).links.push(value);
        Ok(self)
    }
}

/// A structured field's date (RFC 9651 section 3.3.7), as RFC 9745 section 2.1 asks for.
fn date_of_deprecation(since: Timestamp) -> HeaderValue {
    // Digits after an ASCII sign are a valid value; the other arm is never taken.
    HeaderValue::try_from(format!("@{}", since.as_unix_seconds()))
        .unwrap_or_else(|_| HeaderValue::from_static("@0"))
}

impl Terms {
    /// Marks the call, and refuses it where the version has ended.
    pub(super) fn check(&self, meter: Option<&Meter>) -> Result<(), Box<Problem>> {
        let now = meter
            .map_or_else(|| self.clock.now(), Meter::started)
            .wall();
        if let Some(meter) = meter.filter(|_| now >= self.since) {
            meter.mark_deprecated();
        }
        match self.sunset {
            Some(sunset) if self.gone_after_sunset && now >= sunset => {
                Err(Box::new(self.gone(sunset)))
            }
            _ => Ok(()),
        }
    }

    fn gone(&self, sunset: Timestamp) -> Problem {
        let mut problem = Problem::new(ErrorCode::Sunset)
            .detail("This version of the API is no longer served.")
            .with("sunset", sunset.to_string());
        if let Some(successor) = &self.successor {
            problem = problem.with("successor", &**successor);
        }
        let mut headers = HeaderMap::new();
        self.tell(&mut headers);
        for (name, value) in &headers {
            problem = problem.header(name.clone(), value.clone());
        }
        problem
    }

    /// Adds the fields. What the service says of itself stands; links add up.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        if let Entry::Vacant(entry) = headers.entry(DEPRECATION) {
            entry.insert(self.deprecation.clone());
        }
        if let Some(date) = &self.sunset_date
            && let Entry::Vacant(entry) = headers.entry(SUNSET)
        {
            entry.insert(date.clone());
        }
        for link in &self.links {
            headers.append(LINK, link.clone());
        }
    }
}

impl<S> Layer<S> for DeprecationLayer {
    type Service = Deprecated<S>;

    fn layer(&self, inner: S) -> Deprecated<S> {
        Deprecated::new(inner, Arc::clone(&self.terms))
    }
}

impl fmt::Debug for DeprecationLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.terms, f)
    }
}

impl fmt::Debug for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeprecationLayer")
            .field("since", &self.since)
            .field("sunset", &self.sunset)
            .field("gone_after_sunset", &self.gone_after_sunset)
            .finish_non_exhaustive()
    }
}
