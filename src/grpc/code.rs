use std::fmt;

use http::StatusCode;

use crate::error::{ErrorCode, Problem};

/// How a gRPC call ended, as its `grpc-status` says.
///
/// The codes are those of the [gRPC documentation](https://grpc.io/docs/guides/status-codes/).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum GrpcCode {
    /// The call succeeded.
    Ok = 0,
    /// The call was cancelled, typically by the caller.
    Cancelled = 1,
    /// Nobody said how the call ended, or by a code that does not exist.
    Unknown = 2,
    /// The caller sent an argument that is wrong whatever the state of the system is.
    InvalidArgument = 3,
    /// The deadline passed before the call was complete.
    DeadlineExceeded = 4,
    /// Something that was asked for does not exist.
    NotFound = 5,
    /// Something that was to be made exists.
    AlreadyExists = 6,
    /// The caller is known and may not do this.
    PermissionDenied = 7,
    /// A limit or a quota is used up.
    ResourceExhausted = 8,
    /// The system is not in the state that the call needs.
    FailedPrecondition = 9,
    /// The call conflicted with another one.
    Aborted = 10,
    /// The call went past a valid range.
    OutOfRange = 11,
    /// The method is not served.
    Unimplemented = 12,
    /// The service failed.
    Internal = 13,
    /// The service cannot answer at the moment.
    Unavailable = 14,
    /// Data is lost or corrupt.
    DataLoss = 15,
    /// The caller is not known.
    Unauthenticated = 16,
}

/// Every code in the order of its number, with its name in the specification.
const CODES: [(GrpcCode, &str); 17] = [
    (GrpcCode::Ok, "OK"),
    (GrpcCode::Cancelled, "CANCELLED"),
    (GrpcCode::Unknown, "UNKNOWN"),
    (GrpcCode::InvalidArgument, "INVALID_ARGUMENT"),
    (GrpcCode::DeadlineExceeded, "DEADLINE_EXCEEDED"),
    (GrpcCode::NotFound, "NOT_FOUND"),
    (GrpcCode::AlreadyExists, "ALREADY_EXISTS"),
    (GrpcCode::PermissionDenied, "PERMISSION_DENIED"),
    (GrpcCode::ResourceExhausted, "RESOURCE_EXHAUSTED"),
    (GrpcCode::FailedPrecondition, "FAILED_PRECONDITION"),
    (GrpcCode::Aborted, "ABORTED"),
    (GrpcCode::OutOfRange, "OUT_OF_RANGE"),
    (GrpcCode::Unimplemented, "UNIMPLEMENTED"),
    (GrpcCode::Internal, "INTERNAL"),
    (GrpcCode::Unavailable, "UNAVAILABLE"),
    (GrpcCode::DataLoss, "DATA_LOSS"),
    (GrpcCode::Unauthenticated, "UNAUTHENTICATED"),
];

impl GrpcCode {
    /// The number that stands in `grpc-status`, 0 to 16.
    #[must_use]
    pub const fn as_u8(self) -> u8 {
        self as u8
    }

    /// The name in the specification, such as `RESOURCE_EXHAUSTED`.
    #[must_use]
    pub fn name(self) -> &'static str {
        CODES
            .get(usize::from(self.as_u8()))
            .map_or("UNKNOWN", |(_, name)| name)
    }

    /// The code of a number; `None` above 16.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        CODES.get(usize::from(number)).map(|(code, _)| *code)
    }

    /// The code of a `grpc-status` field. What is no number of a code is [`Unknown`](Self::Unknown), which is
    /// what clients make of it.
    #[must_use]
    pub fn from_field(value: &[u8]) -> Self {
        std::str::from_utf8(value)
            .ok()
            .filter(|text| text.bytes().all(|digit| digit.is_ascii_digit()))
            .and_then(|text| text.parse().ok())
            .and_then(Self::from_u8)
            .unwrap_or(Self::Unknown)
    }

    /// The code for an answer of plain HTTP.
    ///
    /// | status | code |
    /// | --- | --- |
    /// | 400 | `INVALID_ARGUMENT` |
    /// | 401 | `UNAUTHENTICATED` |
    /// | 402, 403 | `PERMISSION_DENIED` |
    /// | 404 | `UNIMPLEMENTED` |
    /// | 410 | `FAILED_PRECONDITION` |
    /// | 429 | `RESOURCE_EXHAUSTED` |
    /// | 500 | `INTERNAL` |
    /// | 502, 503, 504 | `UNAVAILABLE` |
    /// | any other | `UNKNOWN` |
    ///
    /// Where gRPC has a mapping (`http-grpc-status-mapping.md`) it is that one, but for 400, 402, 410, 429 and
    /// 500: it serves a client that meets a stranger's answer and must guess, whereas these are known to speak of
    /// the call itself.
    #[must_use]
    pub const fn from_http(status: StatusCode) -> Self {
        match status.as_u16() {
            400 => Self::InvalidArgument,
            401 => Self::Unauthenticated,
            402 | 403 => Self::PermissionDenied,
            404 => Self::Unimplemented,
            410 => Self::FailedPrecondition,
            429 => Self::ResourceExhausted,
            500 => Self::Internal,
            502..=504 => Self::Unavailable,
            _ => Self::Unknown,
        }
    }

    /// The code of a problem: a refusal's by its [`ErrorCode`], whatever status it was set to have in plain HTTP,
    /// any other by its status.
    #[must_use]
    pub fn from_problem(problem: &Problem) -> Self {
        let code = problem.code();
        Self::from_http(if code.is_refusal() {
            code.status()
        } else {
            problem.status_code()
        })
    }

    /// Whether the service has failed, as opposed to the caller: such a call is metered as
    /// [`Failed`](crate::meter::CallOutcome::Failed) and given back to quotas, as after a 5xx.
    ///
    /// These are `UNKNOWN`, `DEADLINE_EXCEEDED`, `UNIMPLEMENTED`, `INTERNAL`, `UNAVAILABLE` and `DATA_LOSS`: the codes
    /// that `google.rpc.Code` maps to a 5xx, and that OpenTelemetry's conventions call errors of a server.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        matches!(
            self,
            Self::Unknown
                | Self::DeadlineExceeded
                | Self::Unimplemented
                | Self::Internal
                | Self::Unavailable
                | Self::DataLoss
        )
    }
}

impl From<ErrorCode> for GrpcCode {
    fn from(code: ErrorCode) -> Self {
        Self::from_http(code.status())
    }
}

impl fmt::Display for GrpcCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_stands_at_the_place_of_its_number() {
        for (place, (code, _)) in CODES.iter().enumerate() {
            assert_eq!(usize::from(code.as_u8()), place);
            assert_eq!(GrpcCode::from_field(place.to_string().as_bytes()), *code);
        }
        assert_eq!(GrpcCode::from_u8(17), None);
    }

    #[test]
    fn what_is_no_code_is_unknown() {
        for field in ["", "17", "256", "-1", "+0", "OK", "0 ", "0x0", "\u{660}"] {
            let code = GrpcCode::from_field(field.as_bytes());
            assert_eq!(code, GrpcCode::Unknown, "{field}");
        }
        assert_eq!(GrpcCode::from_field(b"\xff"), GrpcCode::Unknown);
    }
}
