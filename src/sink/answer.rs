//! What an answer over HTTP says of the events that were sent.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};

use crate::clock::Timestamp;

/// What a receiver said of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// A 2xx.
    Accepted,
    /// Not now; the shortest wait that it asked for.
    Later(Duration),
    /// Not this request: another one may pass.
    Refused(&'static str),
    /// Not any request: the address or the credential is wrong.
    Closed,
}

/// Nothing that is sent will be taken until somebody changes a setting.
#[derive(Debug, thiserror::Error)]
#[error("the receiver answered {0} to whatever is sent: check its address and the credential")]
pub(super) struct Shut(pub(super) StatusCode);

/// Reads a status and `Retry-After`.
///
/// A status that would meet every event alike is no word on this one: events must not go to the dead letters because a
/// credential has lapsed.
pub(super) fn said(status: StatusCode, headers: &HeaderMap, now: Timestamp) -> Said {
    match status.as_u16() {
        200..300 => Said::Accepted,
        408 | 425 | 429 | 500.. => Said::Later(retry_after(headers, now)),
        // A redirect is not followed, as a request carries a credential.
        ..400 | 401..=407 | 410 | 411 | 415 | 417 | 421 | 426 | 428 | 431 | 451 => Said::Closed,
        409 => Said::Refused("conflict"),
        413 => Said::Refused("content_too_large"),
        422 => Said::Refused("unprocessable_content"),
        400..500 => Said::Refused("bad_request"),
    }
}

/// The wait of a `Retry-After` (RFC 9110 section 10.2.3): seconds or a date. Zero where there is none that can be read.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Duration {
    let Some(text) = headers
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
    else {
        return Duration::ZERO;
    };
    if let Ok(seconds) = text.trim().parse() {
        return Duration::from_secs(seconds);
    }
    let date = jiff::fmt::rfc2822::parse(text.trim());
    date.map_or(Duration::ZERO, |date| {
        Timestamp::from(date.timestamp()).saturating_since(now)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(value: &str) -> Duration {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, value.parse().unwrap());
        retry_after(&headers, Timestamp::from_unix_seconds(784_111_777))
    }

    #[test]
    fn a_wait_is_seconds_or_a_date() {
        assert_eq!(after("120"), Duration::from_secs(120));
        assert_eq!(
            after("Sun, 06 Nov 1994 08:50:07 GMT"),
            Duration::from_secs(30)
        );
        assert_eq!(after("Sun, 06 Nov 1994 08:49:07 GMT"), Duration::ZERO);
        for nonsense in ["", "soon", "-1", "1.5", "99999999999999999999"] {
            assert_eq!(after(nonsense), Duration::ZERO, "{nonsense}");
        }
    }

    #[test]
    fn what_meets_every_request_is_no_word_on_this_one() {
        let none = HeaderMap::new();
        let said = |status| {
            said(
                StatusCode::from_u16(status).unwrap(),
                &none,
                Timestamp::default(),
            )
        };
        for status in [200, 202, 204] {
            assert_eq!(said(status), Said::Accepted);
        }
        for status in [408, 425, 429, 500, 502, 503, 504] {
            assert_eq!(said(status), Said::Later(Duration::ZERO));
        }
        for status in [301, 307, 401, 403, 404, 405, 410, 415] {
            assert_eq!(said(status), Said::Closed);
        }
        for status in [400, 409, 413, 422] {
            assert!(matches!(said(status), Said::Refused(_)));
        }
    }
}
