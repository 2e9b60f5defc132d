//! The one owner of a call's end.

use std::{
    sync::{Arc, atomic::Ordering},
    task::Poll,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header::CONTENT_LENGTH};
use http_body::{Frame, SizeHint};

use super::{
    event::CallOutcome,
    head_fields::{at_head, without_head},
    hold::Verdict,
    layer::Shared,
    meter::Meter,
};
use crate::{
    error::{ErrorCode, Problem},
    grpc::Watch,
};

/// Status of a call whose client left before the answer: not registered, but what proxies have long logged.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Settles its call when it is dropped, and only then.
///
/// It lives in the response future and moves into the response body. Dropping is the one thing that happens
/// to every call: a server drops a full body without asking for its end, never polls the body of an answer to
/// HEAD, and drops the future when the client leaves. What it sees before only decides the outcome.
pub(crate) struct Guard {
    meter: Meter,
    shared: Arc<Shared>,
    status: Option<StatusCode>,
    refused: Option<ErrorCode>,
    service_failed: bool,
    /// Code of the service is running. Still set when the guard is dropped, that code has panicked: whoever
    /// catches the panic may drop the future later, when no panic is under way any more.
    running: bool,
    is_watched: bool,
    body: Seen,
    /// Of a gRPC call alone.
    grpc: Option<Watch>,
}

/// What was seen of a response body.
#[derive(Default)]
struct Seen {
    bytes: u64,
    /// The body's length where it is known: a server does not ask a body for more.
    expected: Option<u64>,
    polled: bool,
    ended: bool,
    failed: bool,
    /// The answer has no content by its kind, whatever its body would say.
    without_content: bool,
}

impl Guard {
    pub(super) fn new(meter: Meter, shared: Arc<Shared>, grpc: Option<Watch>) -> Self {
        Self {
            meter,
            shared,
            status: None,
            refused: None,
            service_failed: false,
            running: false,
            is_watched: false,
            body: Seen::default(),
            grpc,
        }
    }

    /// The meter of the call.
    pub(crate) const fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Code of the service begins to run.
    pub(crate) const fn enter(&mut self) {
        self.running = true;
    }

    /// Code of the service has returned.
    pub(crate) const fn leave(&mut self) {
        self.running = false;
    }

    /// The service failed without an answer.
    pub(crate) const fn failed(&mut self) {
        self.service_failed = true;
    }

    /// The service answered.
    pub(crate) fn answered<B: http_body::Body>(&mut self, response: &mut http::Response<B>) {
        at_head(&self.shared, &self.meter, response.headers_mut());
        let status = response.status();
        self.status = Some(status);
        self.refused = response
            .extensions()
            .get::<Problem>()
            .map(Problem::code)
            .or_else(|| self.meter.0.refused());
        // RFC 9110 sections 9.3.2, 15.2, 15.3.5 and 15.4.5.
        self.body.without_content = self.meter.0.method == Method::HEAD
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        self.body.expected = expected_length(response.headers(), &response.body().size_hint());
        self.body.ended = response.body().is_end_stream();
        if let Some(grpc) = &mut self.grpc {
            grpc.answered(response);
            if grpc.ends_with_trailers() {
                // The messages may have a length; the answer is complete with what follows them.
                self.body.expected = None;
            }
        }
        let is_stream =
            !self.body.ended && !self.body.without_content && self.body.expected.is_none();
        let call = &self.meter.0;
        if call.is_watched() || (is_stream && self.meter.watch()) {
            call.status.store(status.as_u16(), Ordering::Release);
            self.is_watched = true;
        }
    }

    /// A frame is on its way to the connection, and with it what was added before.
    fn handed_over(&self) {
        let call = &self.meter.0;
        call.handed_over();
        if self.is_watched {
            call.sent_bytes.store(self.body.bytes, Ordering::Release);
        }
    }

    /// The call ends: says whether its client left, before its charges are settled.
    pub(crate) fn ending(&self) {
        let (_, outcome, _) = self.outcome();
        if outcome == CallOutcome::Aborted {
            let call = &self.meter.0;
            call.left(call.on_abort().billed(self.body.bytes));
        }
    }

    /// The response body is asked for a frame.
    pub(crate) const fn before_frame(&mut self) {
        self.body.polled = true;
        self.enter();
    }

    /// The response body has answered; `is_end` says whether it has nothing more to give.
    pub(crate) fn after_frame<E>(
        &mut self,
        polled: &Poll<Option<Result<Frame<Bytes>, E>>>,
        is_end: impl FnOnce() -> bool,
    ) {
        self.leave();
        let Poll::Ready(frame) = polled else { return };
        match frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    let bytes = data.len() as u64;
                    self.body.bytes = self.body.bytes.saturating_add(bytes);
                }
                if let Some(grpc) = &mut self.grpc {
                    grpc.saw(frame);
                }
                self.handed_over();
                // Nothing follows trailers.
                if frame.is_trailers() || is_end() {
                    self.body.ended = true;
                }
            }
            Some(Err(_)) => self.body.failed = true,
            None => self.body.ended = true,
        }
    }

    fn outcome(&self) -> (u16, CallOutcome, Option<ErrorCode>) {
        let internal = StatusCode::INTERNAL_SERVER_ERROR.as_u16();
        if self.running {
            let status = self.status.map_or(internal, |status| status.as_u16());
            return (status, CallOutcome::Panicked, None);
        }
        let Some(status) = self.status else {
            return if self.service_failed {
                (internal, CallOutcome::Failed, None)
            } else {
                (CLIENT_CLOSED_REQUEST, CallOutcome::Aborted, None)
            };
        };
        let refused = self.refused.filter(|code| code.is_refusal());
        let outcome = if refused.is_some() {
            CallOutcome::Refused
        } else if status.is_server_error() || self.body.failed {
            CallOutcome::Failed
        } else if !self.body.is_complete(status) {
            CallOutcome::Aborted
        } else if self.grpc.as_ref().is_some_and(|grpc| grpc.failed(true)) {
            CallOutcome::Failed
        } else {
            CallOutcome::Served
        };
        (status.as_u16(), outcome, self.refused)
    }

    /// The status that a gRPC caller is told.
    fn grpc_status(&self) -> Option<u8> {
        let grpc = self.grpc.as_ref()?;
        if self.running && self.status.is_none() {
            return Some(Watch::AFTER_PANIC);
        }
        let is_complete =
            |status| !self.running && !self.body.failed && self.body.is_complete(status);
        grpc.code(self.status.is_some_and(is_complete))
    }
}

impl Seen {
    fn is_complete(&self, status: StatusCode) -> bool {
        let is_error = status.is_client_error() || status.is_server_error();
        self.ended
            || self.without_content
            || self.expected.is_some_and(|expected| self.bytes >= expected)
            || (is_error && !self.polled)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let (status, outcome, reason) = self.outcome();
        if self.status.is_none() {
            without_head(&self.shared, &self.meter);
        }
        Verdict {
            status,
            outcome,
            grpc_status: self.grpc_status(),
            reason,
            response_bytes: self.body.bytes,
        }
        .reach(&self.meter.0, &self.shared);
    }
}

/// A server stops at the declared length as well as at the body's own.
fn expected_length(headers: &HeaderMap, hint: &SizeHint) -> Option<u64> {
    hint.exact().or_else(|| content_length(headers))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH).and_then(length)
}

/// A `Content-Length` as a number.
pub(super) fn length(value: &HeaderValue) -> Option<u64> {
    value.to_str().ok()?.parse().ok()
}
