//! What a span says of its call.

use http::{HeaderMap, HeaderName, Method, Request, Response, Version, header::USER_AGENT};
use tracing::{
    Span,
    field::{Empty, display},
    span::Entered,
};

use super::TraceContext;
use crate::{
    error::Problem,
    head::RequestHead,
    meter::printable,
    route::{MatchedRoute, RouteOf, RouteTemplate},
};

const MAX_PATH_BYTES: usize = 1_024;
const MAX_USER_AGENT_BYTES: usize = 256;
const MAX_REQUEST_ID_BYTES: usize = 128;
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The span of one call; nothing where there is to be none.
///
/// Boxed, so that a call without a span carries no room for one.
pub(crate) struct CallSpan(Option<Box<Span>>);

impl CallSpan {
    pub(crate) const NONE: Self = Self(None);

    pub(super) fn of<Q>(request: &Request<Q>, route_of: &impl RouteOf) -> Self {
        let span = span_of(request, route_of);
        Self((!span.is_disabled()).then(|| Box::new(span)))
    }

    /// Everything until the end of what is given happens within the span.
    #[inline]
    pub(crate) fn enter(&self) -> Option<Entered<'_>> {
        self.0.as_ref().map(|span| span.enter())
    }

    /// The answer is there: takes the span out, for its body.
    #[inline]
    pub(crate) fn answered<B>(&mut self, response: &Response<B>) -> Self {
        if let Some(span) = &self.0 {
            tell_answer(span, response);
        }
        Self(self.0.take())
    }

    /// The service gave an error instead of an answer.
    pub(crate) fn failed(&self) {
        if let Some(span) = &self.0 {
            span.record("error.type", "service_error");
            span.record("otel.status_code", "ERROR");
        }
    }
}

/// The span of a request, with the route that [`MatchedRoute`] finds: for tower-http's
/// `TraceLayer::make_span_with`, outside of the gate. The answer's fields are then yours to record.
#[must_use]
pub fn make_span<Q>(request: &Request<Q>) -> Span {
    span_of(request, &MatchedRoute)
}

fn span_of<Q>(request: &Request<Q>, route_of: &impl RouteOf) -> Span {
    let method = known(request.method());
    let span = tracing::info_span!(
        target: "tollgate::call",
        "call",
        "otel.name" = Empty,
        "otel.kind" = "server",
        "otel.status_code" = Empty,
        "http.request.method" = method,
        "http.response.status_code" = Empty,
        "http.route" = Empty,
        "url.path" = Empty,
        "url.scheme" = request.uri().scheme_str(),
        "network.protocol.version" = version(request.version()),
        "user_agent.original" = Empty,
        "error.type" = Empty,
        "trace_id" = Empty,
        "parent_id" = Empty,
        "request_id" = Empty,
        "tollgate.tenant" = Empty,
        "tollgate.plan" = Empty,
        "tollgate.key_id" = Empty,
        "tollgate.refused" = Empty,
    );
    if span.is_disabled() {
        return span;
    }
    let head = RequestHead::from(request);
    match route_of.route_of(&head) {
        Some(route) => record_route(&span, method, &route),
        None => {
            span.record("otel.name", method);
        }
    }
    span.record(
        "url.path",
        &*printable(cut(request.uri().path(), MAX_PATH_BYTES)),
    );
    let text = |headers: &HeaderMap, name, most| {
        let value = headers.get(name)?.to_str().ok()?;
        Some(printable(cut(value, most)).into_owned())
    };
    if let Some(agent) = text(request.headers(), USER_AGENT, MAX_USER_AGENT_BYTES) {
        span.record("user_agent.original", agent);
    }
    if let Some(id) = text(request.headers(), X_REQUEST_ID, MAX_REQUEST_ID_BYTES) {
        span.record("request_id", id);
    }
    if let Some(context) = TraceContext::from_headers(request.headers()) {
        span.record(
            "trace_id",
            display(format_args!("{:032x}", context.trace_id)),
        );
        span.record(
            "parent_id",
            display(format_args!("{:016x}", context.parent_id)),
        );
    }
    span
}

/// Tells the current span of a route that was found after the span was made.
pub(crate) fn tell_route(method: &Method, route: &RouteTemplate) {
    let span = Span::current();
    if !span.is_disabled() {
        record_route(&span, known(method), route);
    }
}

fn record_route(span: &Span, method: &str, route: &RouteTemplate) {
    let route = printable(route.as_str());
    span.record("http.route", &*route);
    span.record("otel.name", display(format_args!("{method} {route}")));
}

#[cold]
fn tell_answer<B>(span: &Span, response: &Response<B>) {
    let status = response.status();
    span.record("http.response.status_code", status.as_u16());
    // The conventions call a 4xx no error of the server.
    if status.is_server_error() {
        span.record("error.type", status.as_str());
        span.record("otel.status_code", "ERROR");
    }
    let code = response.extensions().get::<Problem>().map(Problem::code);
    if let Some(code) = code.filter(|code| code.is_refusal()) {
        span.record("tollgate.refused", code.as_str());
    }
}

/// The method, or the word that the conventions have for all others: a client can make up any number.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::CONNECT => "CONNECT",
        Method::DELETE => "DELETE",
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::TRACE => "TRACE",
        _ => "_OTHER",
    }
}

const fn version(version: Version) -> Option<&'static str> {
    match version {
        Version::HTTP_10 => Some("1.0"),
        Version::HTTP_11 => Some("1.1"),
        Version::HTTP_2 => Some("2"),
        Version::HTTP_3 => Some("3"),
        _ => None,
    }
}

/// The longest beginning of a text that is no longer than this and ends between two characters.
fn cut(text: &str, most: usize) -> &str {
    let fits = |end: &usize| text.is_char_boundary(*end);
    let end = (0..=most.min(text.len())).rev().find(fits);
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_leaves_whole_characters() {
        assert_eq!(cut("aäb", 2), "a");
        assert_eq!(cut("aäb", 3), "aä");
        assert_eq!(cut("aäb", 100), "aäb");
    }

    #[test]
    fn a_method_that_no_standard_names_is_another() {
        let made_up = Method::from_bytes(b"BREW").unwrap();
        assert_eq!(
            (known(&Method::PATCH), known(&made_up)),
            ("PATCH", "_OTHER")
        );
    }
}
