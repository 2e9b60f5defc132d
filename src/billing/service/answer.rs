//! What the provider is told, and what is counted.

use std::sync::atomic::{AtomicU64, Ordering};

use http::{
    HeaderValue, Method, Response,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE},
};
use metrics::Counter;

use super::super::{EventError, Handled, SignatureError};
use crate::{
    body::{FullBody, ResponseBody},
    clock::Timestamp,
    error::{ErrorCode, Problem},
    series::{BILLING_DELIVERIES, BILLING_SIGNATURE_FAILURES},
};

/// How a delivery ended.
#[derive(Debug)]
pub(super) enum Answer {
    AlreadyProcessed,
    BadEvent(EventError),
    BadSignature(SignatureError),
    BrokenBody,
    DeadLettered,
    Failed,
    InProgress,
    NotPost,
    OtherAccount,
    OtherContent,
    OtherMode,
    Processed(Handled),
    TooLarge,
    TooSlow,
    Unavailable,
}

const OUTCOMES: [&str; 16] = [
    "processed",
    "ignored",
    "stale",
    "waiting",
    "already_processed",
    "dead_lettered",
    "in_progress",
    "failed",
    "unavailable",
    "bad_signature",
    "bad_event",
    "mode_mismatch",
    "body_mismatch",
    "too_large",
    "too_slow",
    "bad_request",
];

impl Answer {
    /// The label of the outcome, one of [`OUTCOMES`].
    fn outcome(&self) -> &'static str {
        match self {
            Self::Processed(Handled::Applied) => "processed",
            Self::Processed(Handled::Ignored) => "ignored",
            Self::Processed(Handled::Stale) => "stale",
            Self::Processed(Handled::Waiting) => "waiting",
            Self::AlreadyProcessed => "already_processed",
            Self::DeadLettered => "dead_lettered",
            Self::InProgress => "in_progress",
            Self::Failed => "failed",
            Self::Unavailable => "unavailable",
            Self::BadSignature(_) => "bad_signature",
            Self::BadEvent(_) => "bad_event",
            Self::OtherMode | Self::OtherAccount => "mode_mismatch",
            Self::OtherContent => "body_mismatch",
            Self::TooLarge => "too_large",
            Self::TooSlow => "too_slow",
            Self::BrokenBody | Self::NotPost => "bad_request",
        }
    }

    pub(super) fn into_response(self, method: &Method) -> Response<FullBody> {
        let problem = match self {
            Self::Processed(Handled::Ignored) => return done(br#"{"status":"ignored"}"#),
            Self::Processed(_) => return done(br#"{"status":"processed"}"#),
            Self::AlreadyProcessed => return done(br#"{"status":"already_processed"}"#),
            Self::DeadLettered => return done(br#"{"status":"dead_lettered"}"#),
            Self::BadEvent(error) => {
                let problem = Problem::new(ErrorCode::InvalidEvent).detail(error.to_string());
                match error.field() {
                    Some(field) => problem.with("field", field),
                    None => problem,
                }
            }
            Self::BadSignature(error) => Problem::new(ErrorCode::InvalidSignature)
                .detail(error.to_string())
                .with("reason", error.as_str()),
            Self::BrokenBody => {
                Problem::new(ErrorCode::BadRequest).detail("the body did not arrive whole")
            }
            Self::Failed => Problem::new(ErrorCode::EventFailed),
            Self::InProgress => Problem::new(ErrorCode::EventInProgress)
                .detail("the event is being handled: send it again"),
            Self::NotPost => Problem::new(ErrorCode::MethodNotAllowed)
                .header(ALLOW, HeaderValue::from_static("POST")),
            Self::OtherAccount => Problem::new(ErrorCode::ModeMismatch)
                .detail("the event is of another account")
                .with("field", "account"),
            Self::OtherContent => Problem::new(ErrorCode::EventMismatch)
                .detail("an event of this id has come before, and said something else"),
            Self::OtherMode => Problem::new(ErrorCode::ModeMismatch)
                .detail("this endpoint takes events of the other mode: build one for each, the test mode's with `.environment(Environment::Test)`")
                .with("field", "livemode"),
            Self::TooLarge => Problem::new(ErrorCode::PayloadTooLarge),
            Self::TooSlow => Problem::new(ErrorCode::RequestTimeout),
            Self::Unavailable => Problem::new(ErrorCode::BillingUnavailable),
        };
        problem.into_response(method)
    }
}

fn done(body: &'static [u8]) -> Response<FullBody> {
    let mut response = Response::new(ResponseBody::full(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Tells of refused deliveries, once a minute at most: whoever finds the address can send as many as they like.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// The minute after that of the last line; zero before the first.
    logged: AtomicU64,
}

impl Refusals {
    pub(super) fn log(&self, answer: &Answer, endpoint: &str, now: Timestamp) {
        let reason = match answer {
            Answer::BadSignature(error) => error.as_str(),
            Answer::BadEvent(_)
            | Answer::OtherMode
            | Answer::OtherAccount
            | Answer::OtherContent
            | Answer::TooLarge => answer.outcome(),
            _ => return,
        };
        let minute = now.as_unix_seconds() / 60 + 1;
        if self.logged.swap(minute, Ordering::Relaxed) != minute {
            tracing::warn!(
                target: "tollgate::billing",
                endpoint,
                reason,
                "a delivery was refused; further ones of this minute are counted only"
            );
        }
    }
}

/// What is counted of an endpoint.
pub(super) struct Metrics {
    deliveries: [(&'static str, Counter); OUTCOMES.len()],
    signatures: Vec<(&'static str, Counter)>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let errors = [
            SignatureError::MissingHeader(""),
            SignatureError::MalformedHeader(""),
            SignatureError::NoKnownSignature,
            SignatureError::Mismatch,
            SignatureError::TimestampTooOld,
            SignatureError::TimestampInFuture,
        ];
        Self {
            deliveries: OUTCOMES.map(|outcome| {
                let counter = metrics::counter!(BILLING_DELIVERIES, "outcome" => outcome);
                (outcome, counter)
            }),
            signatures: errors
                .map(SignatureError::as_str)
                .map(|reason| {
                    let counter = metrics::counter!(BILLING_SIGNATURE_FAILURES, "reason" => reason);
                    (reason, counter)
                })
                .into(),
        }
    }

    pub(super) fn count(&self, answer: &Answer) {
        let outcome = answer.outcome();
        let mut counters = self.deliveries.iter();
        if let Some((_, counter)) = counters.find(|(name, _)| *name == outcome) {
            counter.increment(1);
        }
        if let Answer::BadSignature(error) = answer {
            let mut counters = self.signatures.iter();
            if let Some((_, counter)) = counters.find(|(name, _)| *name == error.as_str()) {
                counter.increment(1);
            }
        }
    }
}
