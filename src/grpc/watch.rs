//! Reads from an answer how a gRPC call ended.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Response, StatusCode};
use http_body::Frame;

use super::{GrpcCode, GrpcKind, web::WebTrailers};
use crate::error::Problem;

pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// What is known so far of the end of one call.
#[derive(Debug)]
pub(crate) struct Watch {
    kind: GrpcKind,
    told: Option<GrpcCode>,
    /// The answer has no gRPC status of its own: its HTTP status speaks, and so says the code.
    by_http: bool,
    web: Option<Box<WebTrailers>>,
}

impl Watch {
    /// What a caller is told after a panic of the service.
    pub(crate) const AFTER_PANIC: u8 = GrpcCode::Internal.as_u8();

    /// For a gRPC call; `None` for any other.
    #[inline]
    pub(crate) fn of(kind: Option<GrpcKind>) -> Option<Self> {
        kind.map(|kind| Self {
            kind,
            told: None,
            by_http: false,
            web: None,
        })
    }

    /// Reads the head of the answer.
    pub(crate) fn answered<B>(&mut self, response: &Response<B>) {
        self.told = status_field(response.headers());
        if self.told.is_some() {
            return;
        }
        if response.status() != StatusCode::OK {
            let problem = response.extensions().get::<Problem>();
            let by_status = || GrpcCode::from_http(response.status());
            self.told = Some(problem.map_or_else(by_status, GrpcCode::from_problem));
            self.by_http = true;
            return;
        }
        self.kind = GrpcKind::of(response.headers()).unwrap_or(self.kind);
        if self.kind != GrpcKind::Grpc {
            self.web = Some(Box::new(WebTrailers::new(self.kind)));
        }
    }

    /// Reads a frame of the answer's body.
    pub(crate) fn saw(&mut self, frame: &Frame<Bytes>) {
        if let Some(trailers) = frame.trailers_ref() {
            self.told = self.told.or_else(|| status_field(trailers));
        } else if let (Some(web), Some(data)) = (&mut self.web, frame.data_ref()) {
            self.told = self.told.or_else(|| web.read(data));
        }
    }

    /// A call whose answer is complete and has not said how it ended, has ended as `UNKNOWN`, which is what
    /// clients must take it for (`statuscodes.md` of gRPC).
    fn end(&self, is_complete: bool) -> Option<GrpcCode> {
        self.told
            .or_else(|| is_complete.then_some(GrpcCode::Unknown))
    }

    /// The number of the status that the caller is told.
    pub(crate) fn code(&self, is_complete: bool) -> Option<u8> {
        self.end(is_complete).map(GrpcCode::as_u8)
    }

    /// Whether the call says by itself that the service failed.
    pub(crate) fn failed(&self, is_complete: bool) -> bool {
        !self.by_http && self.end(is_complete).is_some_and(GrpcCode::is_failure)
    }

    /// Whether the answer is complete with its trailers only, whatever length its body has.
    pub(crate) fn ends_with_trailers(&self) -> bool {
        self.told.is_none() && self.kind == GrpcKind::Grpc
    }
}

fn status_field(headers: &HeaderMap) -> Option<GrpcCode> {
    let value = headers.get(GRPC_STATUS)?;
    Some(GrpcCode::from_field(value.as_bytes()))
}
