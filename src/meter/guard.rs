//! The one owner of a call's end.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header::CONTENT_LENGTH};
use http_body::{Frame, SizeHint};

use super::{
    event::CallOutcome,
    layer::Shared,
    meter::{Ending, Meter},
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
pub(super) struct Guard {
    meter: Meter,
    shared: Arc<Shared>,
    status: Option<StatusCode>,
    refused: Option<ErrorCode>,
    service_failed: bool,
    /// Code of the service is running. Still set when the guard is dropped, that code has panicked: whoever
    /// catches the panic may drop the future later, when no panic is under way any more.
    running: bool,
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
            body: Seen::default(),
            grpc,
        }
    }

    /// Code of the service begins to run.
    pub(super) const fn enter(&mut self) {
        self.running = true;
    }

    /// Code of the service has returned.
    pub(super) const fn leave(&mut self) {
        self.running = false;
    }

    /// The service failed without an answer.
    pub(super) const fn failed(&mut self) {
        self.service_failed = true;
    }

    /// The service answered.
    pub(super) fn answered<B: http_body::Body>(&mut self, response: &http::Response<B>) {
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
        }
    }

    /// The body gave a frame.
    pub(super) fn saw(&mut self, frame: &Frame<Bytes>) {
        if let Some(grpc) = &mut self.grpc {
            grpc.saw(frame);
        }
    }

    /// The body is asked for a frame.
    pub(super) const fn polled(&mut self) {
        self.body.polled = true;
    }

    pub(super) const fn sent(&mut self, bytes: usize) {
        self.body.bytes = self.body.bytes.saturating_add(bytes as u64);
    }

    pub(super) const fn ended(&mut self) {
        self.body.ended = true;
    }

    pub(super) const fn body_failed(&mut self) {
        self.body.failed = true;
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
        } else if self.grpc.as_ref().is_some_and(Watch::failed) {
            CallOutcome::Failed
        } else {
            CallOutcome::Served
        };
        (status.as_u16(), outcome, self.refused)
    }

    /// Notes that there is nothing more to learn of a gRPC call, where that is so.
    fn conclude_grpc(&mut self) {
        let Some(grpc) = &mut self.grpc else { return };
        match self.status {
            None if self.running => grpc.panicked(),
            None => {}
            Some(status) => {
                if grpc.ends_with_trailers() {
                    self.body.expected = None;
                }
                if !self.running && !self.body.failed && self.body.is_complete(status) {
                    grpc.ended();
                }
            }
        }
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
        self.conclude_grpc();
        let (status, outcome, reason) = self.outcome();
        let now = self.shared.clock.now();
        let call = &self.meter.0;
        let latency = now.since(call.started.monotonic_micros());
        let identified = call.settle(Ending {
            status,
            grpc_status: self.grpc.as_ref().and_then(Watch::code),
            outcome,
            refused: reason.filter(|_| outcome == CallOutcome::Refused),
            latency_micros: crate::clock::micros(latency),
            response_bytes: self.body.bytes,
        });
        if identified {
            self.shared.recorder.record(Arc::clone(call), now);
        } else {
            self.shared.site.tally.unidentified(status, reason);
        }
    }
}

/// A server stops at the declared length as well as at the body's own.
fn expected_length(headers: &HeaderMap, hint: &SizeHint) -> Option<u64> {
    hint.exact().or_else(|| content_length(headers))
}

pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
