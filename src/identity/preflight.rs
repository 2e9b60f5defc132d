//! Browsers that ask whether they may send the real request.

use http::{
    HeaderValue, Method,
    header::{ACCESS_CONTROL_REQUEST_METHOD, HeaderName, ORIGIN},
};

use super::PathSet;
use crate::head::RequestHead;

/// Which preflights pass without a credential.
#[derive(Clone, Debug, Default)]
pub(super) enum Preflights {
    #[default]
    None,
    All,
    On(PathSet),
}

impl Preflights {
    pub(super) fn let_pass(&self, head: &RequestHead<'_>) -> bool {
        match self {
            Self::None => false,
            Self::All => is_preflight(head),
            Self::On(paths) => is_preflight(head) && paths.contains(head.uri().path()),
        }
    }
}

/// Whether this is a CORS-preflight request of the Fetch standard: OPTIONS with one origin and the one method that
/// is to follow. Anything else that calls itself one needs a credential like every request.
fn is_preflight(head: &RequestHead<'_>) -> bool {
    *head.method() == Method::OPTIONS
        && one(head, &ORIGIN).is_some_and(is_origin)
        && one(head, &ACCESS_CONTROL_REQUEST_METHOD)
            .is_some_and(|method| Method::from_bytes(method.as_bytes()).is_ok())
}

fn one<'a>(head: &RequestHead<'a>, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = head.headers().get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// `null`, or a scheme and a host with an optional port (RFC 6454 section 7.1); one origin, never a list, as
/// browsers send it.
fn is_origin(value: &HeaderValue) -> bool {
    let Ok(text) = value.to_str() else {
        return false;
    };
    text == "null"
        || text.split_once("://").is_some_and(|(scheme, host)| {
            let in_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
            !scheme.is_empty()
                && scheme.chars().all(in_scheme)
                && !host.is_empty()
                && !host.contains(['/', '?', '#', '@', '\\', ',', ' ', '\t'])
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    #[test]
    fn only_a_complete_preflight_counts_as_one() {
        let request = |method: &str, headers: &[(&str, &str)]| {
            let mut builder = Request::builder().method(method).uri("/v1/a");
            for (name, value) in headers {
                builder = builder.header(*name, *value);
            }
            let request = builder.body(()).unwrap();
            let head = RequestHead::from(&request);
            assert!(!Preflights::None.let_pass(&head));
            let on = Preflights::On(PathSet::new(["/v1/*"]).unwrap());
            assert_eq!(on.let_pass(&head), Preflights::All.let_pass(&head));
            let elsewhere = Preflights::On(PathSet::new(["/v2/*"]).unwrap());
            assert!(!elsewhere.let_pass(&head));
            is_preflight(&head)
        };
        let origin = ("origin", "https://example.com:8443");
        let asked = ("access-control-request-method", "POST");
        assert!(request("OPTIONS", &[origin, asked]));
        assert!(request("OPTIONS", &[("origin", "null"), asked]));
        assert!(!request("OPTIONS", &[origin]));
        assert!(!request("OPTIONS", &[asked]));
        assert!(!request("GET", &[origin, asked]));
        assert!(!request("POST", &[origin, asked]));
        assert!(!request("OPTIONS", &[origin, origin, asked]));
        assert!(!request("OPTIONS", &[origin, asked, asked]));
        for bad in [
            "",
            "example.com",
            "https://",
            "://a",
            "https://a/b",
            "https://a https://b",
        ] {
            assert!(!request("OPTIONS", &[("origin", bad), asked]), "{bad}");
        }
        for bad in ["", "PO ST", "POST, GET", "(POST)"] {
            let asked = ("access-control-request-method", bad);
            assert!(!request("OPTIONS", &[origin, asked]), "{bad}");
        }
    }
}
