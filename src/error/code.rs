use std::fmt;

use http::StatusCode;

macro_rules! error_codes {
    ($($(#[$docs:meta])* $variant:ident = $text:literal, $status:ident, $title:literal;)+) => {
        /// The stable, machine-readable reason of an error answer.
        ///
        /// Clients branch on [`ErrorCode::as_str`]; it never changes once published. The page
        /// [`guide::errors`](crate::guide::errors) explains each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$docs])* $variant,)+
        }

        impl ErrorCode {
            /// Every code, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The code as clients read it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// The status that goes with the code unless a setting changes it.
            #[must_use]
            pub const fn status(self) -> StatusCode {
                match self {
                    $(Self::$variant => StatusCode::$status,)+
                }
            }

            /// A short sentence for people, the same for every occurrence (RFC 9457 section 3.1.4).
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self {
                    $(Self::$variant => $title,)+
                }
            }
        }
    };
}

error_codes! {
    /// No credential was sent.
    MissingCredentials = "missing_credentials", UNAUTHORIZED, "Missing credentials";
    /// Two credentials that differ, or one header twice.
    AmbiguousCredentials = "ambiguous_credentials", BAD_REQUEST, "Ambiguous credentials";
    /// The credential is malformed, unknown, expired or revoked; the answer never tells which.
    InvalidCredentials = "invalid_credentials", UNAUTHORIZED, "Invalid credentials";
    /// A test credential where only live ones are served, or the other way round.
    ModeMismatch = "mode_mismatch", BAD_REQUEST, "Wrong environment";
    /// Too many failed attempts came from this address.
    TooManyFailedAttempts = "too_many_failed_attempts", TOO_MANY_REQUESTS, "Too many failed attempts";
    /// The store of credentials does not answer, so nobody can be told valid from invalid.
    AuthUnavailable = "auth_unavailable", SERVICE_UNAVAILABLE, "Authentication unavailable";
    /// The tenant's plan does not include this API.
    NotSubscribed = "not_subscribed", FORBIDDEN, "Not subscribed";
    /// The credential lacks a scope that the route asks for.
    InsufficientScope = "insufficient_scope", FORBIDDEN, "Insufficient scope";
    /// The caller's address is not on the allow list.
    IpNotAllowed = "ip_not_allowed", FORBIDDEN, "Address not allowed";
    /// The tenant's plan lacks a feature that the route asks for.
    FeatureNotInPlan = "feature_not_in_plan", FORBIDDEN, "Feature not in plan";
    /// Access is suspended until an invoice is paid.
    PaymentRequired = "payment_required", PAYMENT_REQUIRED, "Payment required";
    /// Access is read-only until an invoice is paid.
    ReadOnly = "read_only", PAYMENT_REQUIRED, "Read-only access";
    /// The account is closed.
    AccountClosed = "account_closed", UNAUTHORIZED, "Account closed";
    /// A rate rule refused the call; it may pass later.
    RateLimited = "rate_limited", TOO_MANY_REQUESTS, "Rate limit exceeded";
    /// A quota refused the call until its period ends or the plan changes.
    QuotaExceeded = "quota_exceeded", TOO_MANY_REQUESTS, "Quota exceeded";
    /// Too many calls of the tenant are in flight.
    ConcurrencyLimited = "concurrency_limited", TOO_MANY_REQUESTS, "Too many concurrent requests";
    /// The store behind a limit does not answer and its rule says to refuse then.
    StoreUnavailable = "store_unavailable", SERVICE_UNAVAILABLE, "Limits unavailable";
    /// This version of the API has ended.
    Sunset = "sunset", GONE, "This version has ended";
    /// A delivery of the payment provider is not known to be its own.
    InvalidSignature = "invalid_signature", BAD_REQUEST, "Invalid signature";
    /// A delivery of the payment provider is signed and is no event.
    InvalidEvent = "invalid_event", BAD_REQUEST, "Invalid event";
    /// An event of the payment provider has come before and said something else.
    EventMismatch = "event_mismatch", BAD_REQUEST, "Not the same event";
    /// An event of the payment provider is being handled.
    EventInProgress = "event_in_progress", CONFLICT, "Event in progress";
    /// An event of the payment provider was not handled.
    EventFailed = "event_failed", INTERNAL_SERVER_ERROR, "Event not handled";
    /// What an event of the payment provider needs does not answer.
    BillingUnavailable = "billing_unavailable", SERVICE_UNAVAILABLE, "Billing unavailable";
    /// A layer is missing from the service: a fault of its configuration, not of the caller.
    LayerMissing = "layer_missing", INTERNAL_SERVER_ERROR, "Internal error";
    /// An upstream did not answer in time.
    UpstreamTimeout = "upstream_timeout", GATEWAY_TIMEOUT, "Upstream timeout";
    /// An upstream answered with an error.
    UpstreamError = "upstream_error", BAD_GATEWAY, "Upstream error";
    /// The request cannot be understood.
    BadRequest = "bad_request", BAD_REQUEST, "Bad request";
    /// The credential is not enough; the inner service said so.
    Unauthorized = "unauthorized", UNAUTHORIZED, "Unauthorized";
    /// The caller may not do this; the inner service said so.
    Forbidden = "forbidden", FORBIDDEN, "Forbidden";
    /// Nothing is served under this path.
    NotFound = "not_found", NOT_FOUND, "Not found";
    /// The path does not serve this method.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, "Method not allowed";
    /// The request did not arrive in time.
    RequestTimeout = "request_timeout", REQUEST_TIMEOUT, "Request timeout";
    /// The request conflicts with the state of the resource.
    Conflict = "conflict", CONFLICT, "Conflict";
    /// What was served under this path is gone for good; the inner service said so.
    Gone = "gone", GONE, "Gone";
    /// The request body is larger than the service accepts.
    PayloadTooLarge = "payload_too_large", PAYLOAD_TOO_LARGE, "Payload too large";
    /// The body's media type is not served.
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE, "Unsupported media type";
    /// The body is well-formed, but its content is not acceptable.
    UnprocessableContent = "unprocessable_content", UNPROCESSABLE_ENTITY, "Unprocessable content";
    /// Too many requests; the inner service said so.
    TooManyRequests = "too_many_requests", TOO_MANY_REQUESTS, "Too many requests";
    /// Any other refusal of the inner service in the 400 range.
    ClientError = "client_error", BAD_REQUEST, "Client error";
    /// The service failed; nothing about the cause leaves it.
    Internal = "internal", INTERNAL_SERVER_ERROR, "Internal error";
    /// The service is not ready.
    Unavailable = "unavailable", SERVICE_UNAVAILABLE, "Service unavailable";
}

impl ErrorCode {
    /// Whether a layer of this crate refuses a call by this code, as opposed to a failure and to what a service
    /// says by itself. Such a call did not use what it was charged for.
    #[must_use]
    pub const fn is_refusal(self) -> bool {
        matches!(
            self,
            Self::MissingCredentials
                | Self::AmbiguousCredentials
                | Self::InvalidCredentials
                | Self::ModeMismatch
                | Self::TooManyFailedAttempts
                | Self::AuthUnavailable
                | Self::NotSubscribed
                | Self::InsufficientScope
                | Self::IpNotAllowed
                | Self::FeatureNotInPlan
                | Self::PaymentRequired
                | Self::ReadOnly
                | Self::AccountClosed
                | Self::RateLimited
                | Self::QuotaExceeded
                | Self::ConcurrencyLimited
                | Self::StoreUnavailable
                | Self::Sunset
        )
    }

    /// The code for an error answer that the inner service made without saying more than its status.
    #[must_use]
    pub fn for_status(status: StatusCode) -> Self {
        match status {
            StatusCode::BAD_REQUEST => Self::BadRequest,
            StatusCode::UNAUTHORIZED => Self::Unauthorized,
            StatusCode::PAYMENT_REQUIRED => Self::PaymentRequired,
            StatusCode::FORBIDDEN => Self::Forbidden,
            StatusCode::NOT_FOUND => Self::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed,
            StatusCode::REQUEST_TIMEOUT => Self::RequestTimeout,
            StatusCode::CONFLICT => Self::Conflict,
            StatusCode::GONE => Self::Gone,
            StatusCode::PAYLOAD_TOO_LARGE => Self::PayloadTooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Self::UnsupportedMediaType,
            StatusCode::UNPROCESSABLE_ENTITY => Self::UnprocessableContent,
            StatusCode::TOO_MANY_REQUESTS => Self::TooManyRequests,
            StatusCode::BAD_GATEWAY => Self::UpstreamError,
            StatusCode::SERVICE_UNAVAILABLE => Self::Unavailable,
            StatusCode::GATEWAY_TIMEOUT => Self::UpstreamTimeout,
            other if other.is_client_error() => Self::ClientError,
            _ => Self::Internal,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
