use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::{Map, Value};

use super::{ErrorCode, json::RESERVED};

/// One error answer: an RFC 9457 problem with a stable code, extension members and header fields.
///
/// Every refusal of this crate is a `Problem`. It also travels in the response extensions, so that outer
/// layers can log or re-render it.
#[derive(Clone, Debug)]
pub struct Problem {
    code: ErrorCode,
    status: StatusCode,
    detail: Option<Cow<'static, str>>,
    extensions: Map<String, Value>,
    headers: HeaderMap,
}

impl Problem {
    /// A problem with the code's own status and title.
    #[must_use]
    pub fn new(code: ErrorCode) -> Self {
        Self {
            code,
            status: code.status(),
            detail: None,
            extensions: Map::new(),
            headers: HeaderMap::new(),
        }
    }

    /// Answers with another status than the code's own.
    #[must_use]
    pub const fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// Says what was wrong with this request and how to mend it. Must hold no secret and nothing about the
    /// service's inside: it goes to the caller.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds an extension member (RFC 9457 section 3.2). The members that every problem has (`type`, `title`,
    /// `status`, `code`, `detail`, `instance`) cannot be replaced: such a call changes nothing.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        let name = name.into();
        if !RESERVED.contains(&name.as_str()) {
            self.extensions.insert(name, value.into());
        }
        self
    }

    /// Adds a header field to the answer; a second field of the same name is appended.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }

    /// The stable reason.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        self.code
    }

    /// The status of the answer.
    #[must_use]
    pub const fn status_code(&self) -> StatusCode {
        self.status
    }

    /// What was wrong with this request.
    #[must_use]
    pub fn detail_text(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// The extension members.
    #[must_use]
    pub const fn extensions(&self) -> &Map<String, Value> {
        &self.extensions
    }

    /// The header fields of the answer.
    #[must_use]
    pub const fn headers(&self) -> &HeaderMap {
        &self.headers
    }
}

impl From<ErrorCode> for Problem {
    fn from(code: ErrorCode) -> Self {
        Self::new(code)
    }
}
