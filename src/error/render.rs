//! How a problem looks on the wire.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderValue, Method};
use serde_json::Value;

use super::{
    Problem,
    json::{DEFAULT_TYPE_BASE, problem_json},
    response::PROBLEM_JSON,
};

/// Turns a problem into the content of its answer. A closure works.
///
/// Status and header fields stay as they are; the hook decides the body and its media type. For an answer to
/// HEAD the body is not sent, but its length is told. With the feature `grpc` the hook is
/// not asked for a gRPC call, whose errors have [one form](crate::guide::grpc).
///
/// # Contract
///
/// Runs on the request's own task, once for each error answer: it must not block. It must not panic, as it
/// runs outside [`catch_panic`](super::catch_panic()). The body goes to the caller: what is not in the problem
/// should not be in it.
pub trait RenderError: Send + Sync + 'static {
    /// The content for this problem.
    fn render(&self, problem: &Problem, context: &ErrorContext<'_>) -> Rendered;
}

impl<F> RenderError for F
where
    F: Fn(&Problem, &ErrorContext<'_>) -> Rendered + Send + Sync + 'static,
{
    fn render(&self, problem: &Problem, context: &ErrorContext<'_>) -> Rendered {
        self(problem, context)
    }
}

/// What a [`RenderError`] hook may know of the request.
#[derive(Clone, Copy, Debug)]
pub struct ErrorContext<'a> {
    method: &'a Method,
    request_id: Option<&'a str>,
    accept: Option<&'a HeaderValue>,
}

impl<'a> ErrorContext<'a> {
    /// A request of this method, without a request id or an `Accept` field.
    #[must_use]
    pub const fn new(method: &'a Method) -> Self {
        Self {
            method,
            request_id: None,
            accept: None,
        }
    }

    /// Sets the request id.
    #[must_use]
    pub const fn with_request_id(mut self, request_id: Option<&'a str>) -> Self {
        self.request_id = request_id;
        self
    }

    /// Sets the request's `Accept` field.
    #[must_use]
    pub const fn with_accept(mut self, accept: Option<&'a HeaderValue>) -> Self {
        self.accept = accept;
        self
    }

    /// The request's method.
    #[must_use]
    pub const fn method(&self) -> &'a Method {
        self.method
    }

    /// The id that [`RequestIdLayer`](crate::request_id::RequestIdLayer), or an outer layer of tower-http, gave
    /// the request; `None` where there is no such layer.
    #[must_use]
    pub const fn request_id(&self) -> Option<&'a str> {
        self.request_id
    }

    /// The request's `Accept` field, the first where there are several: for a hook that has a page for people
    /// beside the JSON for programs.
    #[must_use]
    pub const fn accept(&self) -> Option<&'a HeaderValue> {
        self.accept
    }
}

/// The content of an error answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rendered {
    /// The media type, such as `application/problem+json`.
    pub content_type: HeaderValue,
    /// The body.
    pub body: Bytes,
}

impl Rendered {
    /// Content from its parts.
    #[must_use]
    pub fn new(content_type: HeaderValue, body: impl Into<Bytes>) -> Self {
        Self {
            content_type,
            body: body.into(),
        }
    }

    /// A JSON document of the service's own form, sent as `application/json`.
    #[must_use]
    pub fn json(document: &Value) -> Self {
        Self::new(
            HeaderValue::from_static("application/json"),
            document.to_string(),
        )
    }
}

/// The default form: `application/problem+json` (RFC 9457).
///
/// The members are `type`, `title`, `status`, `code`, `detail` where there is one, `instance` (the request id,
/// where there is one) and the problem's extension members.
#[derive(Clone, Debug)]
pub struct ProblemJson {
    type_base: Cow<'static, str>,
}

impl ProblemJson {
    /// Problems whose `type` is [`DEFAULT_TYPE_BASE`] and the code.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            type_base: Cow::Borrowed(DEFAULT_TYPE_BASE),
        }
    }

    /// Points `type` at documentation of your own: the code is put behind `base`, which therefore ends in `#`
    /// or `/`.
    #[must_use]
    pub fn type_base(mut self, base: impl Into<Cow<'static, str>>) -> Self {
        self.type_base = base.into();
        self
    }
}

impl Default for ProblemJson {
    fn default() -> Self {
        Self::new()
    }
}

impl RenderError for ProblemJson {
    fn render(&self, problem: &Problem, context: &ErrorContext<'_>) -> Rendered {
        let body = problem_json(problem, &self.type_base, context.request_id());
        Rendered::new(PROBLEM_JSON, body)
    }
}
