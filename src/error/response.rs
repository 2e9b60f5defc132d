//! From a problem to a response.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE},
};

use super::{
    Problem,
    json::{DEFAULT_TYPE_BASE, problem_json},
};
use crate::body::ResponseBody;

pub(super) const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
pub(super) const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

impl Problem {
    /// The problem as the answer to a request of this method.
    ///
    /// The body is `application/problem+json` (RFC 9457); it is empty for HEAD and for a status that has no
    /// content (RFC 9110 sections 9.3.2 and 15). The answer is not cached unless the problem has a
    /// `Cache-Control` of its own. The problem travels along in the response extensions, so that an outer
    /// [`ProblemLayer`](super::ProblemLayer) can add the request id or render it in another form.
    #[must_use]
    pub fn into_response<B>(self, method: &Method) -> Response<ResponseBody<B>> {
        let bytes = problem_json(&self, DEFAULT_TYPE_BASE, None);
        let mut headers = HeaderMap::with_capacity(self.headers().len() + 3);
        self.write_headers(&mut headers);
        let status = self.status_code();
        let body = fill(&mut headers, status, method, PROBLEM_JSON, bytes);
        let mut response = Response::new(ResponseBody::full(body));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response.extensions_mut().insert(self);
        response
    }

    /// Adds the problem's own fields and forbids caching where it says nothing about it.
    pub(super) fn write_headers(&self, headers: &mut HeaderMap) {
        for (name, value) in self.headers() {
            headers.append(name, value.clone());
        }
        if !self.headers().contains_key(CACHE_CONTROL) {
            headers.insert(CACHE_CONTROL, NO_STORE);
        }
    }
}

/// Describes the content in the header fields and gives what of it may be sent with them.
pub(super) fn fill(
    headers: &mut HeaderMap,
    status: StatusCode,
    method: &Method,
    content_type: HeaderValue,
    bytes: Bytes,
) -> Bytes {
    if has_no_content(status) {
        return Bytes::new();
    }
    headers.insert(CONTENT_TYPE, content_type);
    if *method == Method::HEAD {
        // The length that a GET would have had; without it a server would write the length of no body.
        headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
        return Bytes::new();
    }
    bytes
}

fn has_no_content(status: StatusCode) -> bool {
    status.is_informational()
        || matches!(
            status,
            StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED
        )
}

/// Lets a handler return `Result<_, Problem>`.
///
/// Under axum the method is not known here; axum and hyper send no body in answer to HEAD.
#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl axum::response::IntoResponse for Problem {
    fn into_response(self) -> axum::response::Response {
        Self::into_response::<axum::body::Body>(self, &Method::GET).map(axum::body::Body::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;
    use http_body::Body as _;

    #[test]
    fn a_status_without_content_has_an_empty_body() {
        for status in [100, 204, 205, 304] {
            let problem = Problem::new(ErrorCode::Internal)
                .status(StatusCode::from_u16(status).expect("a valid status"));
            let response = problem.into_response::<String>(&Method::GET);
            assert!(response.body().is_end_stream(), "{status}");
            assert!(!response.headers().contains_key(CONTENT_TYPE), "{status}");
        }
    }

    #[test]
    fn a_head_request_is_told_the_length_of_the_answer_to_get() {
        let problem = Problem::new(ErrorCode::NotFound);
        let get = problem.clone().into_response::<String>(&Method::GET);
        let head = problem.into_response::<String>(&Method::HEAD);
        assert!(head.body().is_end_stream());
        assert_eq!(
            head.headers()[CONTENT_LENGTH].to_str().ok(),
            get.body()
                .size_hint()
                .exact()
                .map(|n| n.to_string())
                .as_deref()
        );
    }
}
