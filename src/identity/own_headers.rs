//! The header fields that speak of an identity: removed as clients send them, set for proxies when asked.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONNECTION, Entry},
};
use smallvec::SmallVec;

use super::Identity;

const CONSUMER_ID: HeaderName = HeaderName::from_static("x-consumer-id");
const PLAN: HeaderName = HeaderName::from_static("x-plan");
const TENANT_ID: HeaderName = HeaderName::from_static("x-tenant-id");

/// Removes every field that a service behind could take for our word: `X-Tenant-ID`, `X-Plan`,
/// `X-Consumer-*` and `X-Credential-*`, also with `_` or another mark where we write `-`. Servers that turn
/// field names into variables (CGI, WSGI) cannot tell those spellings apart.
pub(super) fn strip(headers: &mut HeaderMap) {
    let forged: SmallVec<[HeaderName; 2]> = headers
        .keys()
        .filter(|name| speaks_of_identity(name.as_str()))
        .cloned()
        .collect();
    for name in forged {
        if let Entry::Occupied(entry) = headers.entry(name) {
            entry.remove_entry_mult();
        }
    }
}

/// Field names reach us in lower case: `http` writes them so (RFC 9113 section 8.2).
fn speaks_of_identity(name: &str) -> bool {
    let Some(rest) = after(name.as_bytes(), b"x-") else {
        return false;
    };
    after(rest, b"consumer-").is_some()
        || after(rest, b"credential-").is_some()
        || after(rest, b"tenant-id") == Some(b"")
        || after(rest, b"plan") == Some(b"")
}

/// What follows `start`, whose hyphens stand for any mark that is neither a letter nor a digit.
fn after<'a>(name: &'a [u8], start: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = name.split_at_checked(start.len())?;
    let matches = head.iter().zip(start).all(|(found, wanted)| match wanted {
        b'-' => !found.is_ascii_alphanumeric(),
        _ => found == wanted,
    });
    matches.then_some(rest)
}

/// Says to a proxy behind who calls. [`strip`] comes first.
pub(super) fn forward(headers: &mut HeaderMap, identity: &Identity) {
    keep_our_fields(headers);
    let mut set = |name, text: &str| {
        // An identifier outside ASCII travels as UTF-8; control characters are not in it.
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            headers.insert(name, value);
        }
    };
    set(TENANT_ID, identity.tenant().id().as_str());
    set(PLAN, identity.plan().name().as_str());
    if let Some(key) = identity.key() {
        set(CONSUMER_ID, key.as_str());
    }
}

/// `Connection: X-Tenant-ID` would make the next proxy drop our field (RFC 9110 section 7.6.1).
fn keep_our_fields(headers: &mut HeaderMap) {
    let options = |value: &HeaderValue| -> Vec<String> {
        let text = String::from_utf8_lossy(value.as_bytes());
        text.split(',')
            .map(|option| option.trim().to_ascii_lowercase())
            .filter(|option| !option.is_empty())
            .collect()
    };
    let named: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(options)
        .collect();
    if !named.iter().any(|option| speaks_of_identity(option)) {
        return;
    }
    headers.remove(CONNECTION);
    let kept = named
        .into_iter()
        .filter(|option| !speaks_of_identity(option));
    for option in kept {
        if let Ok(value) = HeaderValue::try_from(option) {
            headers.append(CONNECTION, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_our_fields_is_recognised() {
        for name in [
            "x-tenant-id",
            "x_tenant_id",
            "x-tenant_id",
            "x.tenant.id",
            "x-plan",
            "x_plan",
            "x-consumer-id",
            "x_consumer_username",
            "x-consumer-custom-id",
            "x-credential-identifier",
            "x_credential_id",
            "x-consumer-",
        ] {
            assert!(speaks_of_identity(name), "{name}");
        }
        for name in [
            "x-tenant",
            "x-plane",
            "x-planet",
            "plan",
            "x-api-key",
            "xtenantid",
            "x-",
            "x",
        ] {
            assert!(!speaks_of_identity(name), "{name}");
        }
    }

    #[test]
    fn a_connection_option_cannot_make_a_proxy_drop_our_fields() {
        let mut headers = HeaderMap::new();
        headers.append(CONNECTION, HeaderValue::from_static("close, X-Tenant-Id"));
        headers.append(CONNECTION, HeaderValue::from_static("x_plan"));
        keep_our_fields(&mut headers);
        let kept: Vec<_> = headers.get_all(CONNECTION).iter().collect();
        assert_eq!(kept, ["close"]);
    }
}
