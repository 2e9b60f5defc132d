use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response,
    header::{self, CACHE_CONTROL, CONTENT_TYPE},
    response::Parts,
};
use http_body::Body;
use pin_project_lite::pin_project;

use super::{
    ErrorCode, Problem, RenderError,
    response::{NO_STORE, fill},
    service::RequestFacts,
};
use crate::{body::ResponseBody, grpc::GrpcKind};

/// The longest text body that becomes the `detail` of a problem.
const MAX_TEXT_BYTES: u64 = 1024;

pin_project! {
    /// The future of [`ProblemService`](super::ProblemService).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, B, R: ?Sized> {
        #[pin]
        state: State<F, B>,
        facts: RequestFacts,
        render: Arc<R>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, B> {
        Calling { #[pin] future: F },
        Reading { #[pin] reading: Reading<B> },
    }
}

impl<F, B, R: ?Sized> ResponseFuture<F, B, R> {
    pub(super) const fn new(future: F, facts: RequestFacts, render: Arc<R>) -> Self {
        Self {
            state: State::Calling { future },
            facts,
            render,
        }
    }
}

impl<F, B, R: ?Sized> fmt::Debug for ResponseFuture<F, B, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<F, B, E, R> Future for ResponseFuture<F, B, R>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes>,
    R: RenderError + ?Sized,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProjection::Calling { future } => {
                    let response = ready!(future.poll(cx))?;
                    if passes(&response, this.facts) {
                        return Poll::Ready(Ok(response.map(ResponseBody::inner)));
                    }
                    match replace(response, this.facts, &**this.render) {
                        Replaced::Answer(response) => {
                            return Poll::Ready(Ok(response.map(ResponseBody::full)));
                        }
                        Replaced::Reading(reading) => State::Reading { reading },
                    }
                }
                StateProjection::Reading { reading } => {
                    let response = ready!(reading.poll_answer(this.facts, &**this.render, cx));
                    return Poll::Ready(Ok(response.map(ResponseBody::full)));
                }
            };
            this.state.set(next);
        }
    }
}

/// What takes the place of an answer that does not [pass](passes).
pub(crate) enum Replaced<B> {
    /// Known at once.
    Answer(Response<Bytes>),
    /// The service's own text is to become the detail.
    Reading(Reading<B>),
}

pin_project! {
    /// Reads the short text of an answer, of which a problem is made.
    pub(crate) struct Reading<B> {
        #[pin]
        body: B,
        parts: Option<Parts>,
        text: Vec<u8>,
    }
}

/// The step after the call, for an answer that does not [pass](passes).
#[cold]
pub(crate) fn replace<B, R>(response: Response<B>, facts: &RequestFacts, render: &R) -> Replaced<B>
where
    B: Body<Data = Bytes>,
    R: RenderError + ?Sized,
{
    let (mut parts, body) = response.into_parts();
    if let Some(problem) = parts.extensions.remove::<Problem>() {
        // A layer in between may have changed the status; the document must agree with it.
        let status = parts.status;
        return Replaced::Answer(answer(parts, problem.status(status), facts, render));
    }
    let explained = explains_itself(&parts);
    if explained && facts.method == Method::HEAD {
        // The text that a GET is told is not here, so the length of its answer is not known.
        let problem = bare(&parts);
        let mut response = answer(parts, problem, facts, render);
        response.headers_mut().remove(header::CONTENT_LENGTH);
        return Replaced::Answer(response);
    }
    if !explained || !is_short(&body) {
        let problem = bare(&parts);
        return Replaced::Answer(answer(parts, problem, facts, render));
    }
    Replaced::Reading(Reading {
        body,
        parts: Some(parts),
        text: Vec::new(),
    })
}

impl<B: Body<Data = Bytes>> Reading<B> {
    /// The problem, once the text is read.
    pub(crate) fn poll_answer<R: RenderError + ?Sized>(
        self: Pin<&mut Self>,
        facts: &RequestFacts,
        render: &R,
        cx: &mut Context<'_>,
    ) -> Poll<Response<Bytes>> {
        let this = self.project();
        let complete = ready!(read(this.body, this.text, cx));
        // `parts` is there: a future is not polled again after it was ready.
        let Some(parts) = this.parts.take() else {
            return Poll::Pending;
        };
        let problem = match String::from_utf8(std::mem::take(this.text)) {
            Ok(text) if complete && !text.trim().is_empty() => {
                bare(&parts).detail(text.trim().to_owned())
            }
            _ => bare(&parts),
        };
        Poll::Ready(answer(parts, problem, facts, render))
    }
}

/// Reads what is left of a short body; false when it ended with an error or was longer than it said.
fn read<B: Body<Data = Bytes>>(
    mut body: Pin<&mut B>,
    text: &mut Vec<u8>,
    cx: &mut Context<'_>,
) -> Poll<bool> {
    loop {
        match ready!(body.as_mut().poll_frame(cx)) {
            None => return Poll::Ready(true),
            Some(Err(_)) => return Poll::Ready(false),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    text.extend_from_slice(data);
                }
                if text.len() as u64 > MAX_TEXT_BYTES {
                    return Poll::Ready(false);
                }
            }
        }
    }
}

/// Whether an answer leaves as it is.
#[inline]
pub(crate) fn passes<B>(response: &Response<B>, facts: &RequestFacts) -> bool {
    response.status().as_u16() < 400
        || GrpcKind::of(response.headers()).is_some()
        || (facts.grpc.is_some() && !cfg!(feature = "grpc"))
        || (facts.grpc.is_none()
            && is_json(response.headers())
            && response.extensions().get::<Problem>().is_none())
}

/// Whether the answer is a text for the caller. What a failing service says is not for the caller.
fn explains_itself(parts: &Parts) -> bool {
    parts.status.is_client_error()
        && media_type(&parts.headers).is_some_and(|name| name.eq_ignore_ascii_case(b"text/plain"))
        && !parts.headers.contains_key(header::CONTENT_ENCODING)
}

fn is_short<B: Body>(body: &B) -> bool {
    body.size_hint()
        .upper()
        .is_some_and(|bytes| bytes <= MAX_TEXT_BYTES)
}

fn bare(parts: &Parts) -> Problem {
    Problem::new(ErrorCode::for_status(parts.status)).status(parts.status)
}

fn answer<R: RenderError + ?Sized>(
    mut parts: Parts,
    problem: Problem,
    facts: &RequestFacts,
    render: &R,
) -> Response<Bytes> {
    for name in &DESCRIBES_BODY {
        parts.headers.remove(name);
    }
    parts.headers.entry(CACHE_CONTROL).or_insert(NO_STORE);
    #[cfg(feature = "grpc")]
    if let Some(kind) = facts.grpc {
        let body = super::grpc::render(&mut parts, &problem, kind);
        parts.extensions.insert(problem);
        return Response::from_parts(parts, body);
    }
    let rendered = render.render(&problem, &facts.context());
    let body = fill(
        &mut parts.headers,
        parts.status,
        &facts.method,
        rendered.content_type,
        rendered.body,
    );
    parts.extensions.insert(problem);
    Response::from_parts(parts, body)
}

/// The fields that speak of the representation that is replaced (RFC 9110 section 8, RFC 9530, RFC 6266) or of
/// its framing.
const DESCRIBES_BODY: [HeaderName; 15] = [
    header::ACCEPT_RANGES,
    header::CONTENT_DISPOSITION,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LENGTH,
    header::CONTENT_LOCATION,
    header::CONTENT_RANGE,
    CONTENT_TYPE,
    header::ETAG,
    header::LAST_MODIFIED,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("repr-digest"),
];

fn is_json(headers: &HeaderMap) -> bool {
    media_type(headers).is_some_and(|name| {
        let name = name.to_ascii_lowercase();
        name == b"application/json"
            || (name.starts_with(b"application/") && name.ends_with(b"+json"))
    })
}

/// The media type without its parameters.
fn media_type(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes)?;
    Some(
        value
            .split(|byte| *byte == b';')
            .next()
            .unwrap_or(value)
            .trim_ascii(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_known_by_its_media_type() {
        let is_json = |value: &'static str| {
            let value = HeaderValue::from_static(value);
            is_json(&HeaderMap::from_iter([(CONTENT_TYPE, value)]))
        };
        for yes in [
            "application/json",
            "application/json; charset=utf-8",
            "Application/Problem+JSON",
            "application/vnd.api+json;profile=x",
        ] {
            assert!(is_json(yes), "{yes}");
        }
        for no in [
            "text/plain",
            "application/jsonx",
            "application/x-ndjson",
            "text/html; a=application/json",
            "",
        ] {
            assert!(!is_json(no), "{no}");
        }
    }
}
