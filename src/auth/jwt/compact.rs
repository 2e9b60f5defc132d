//! The compact form of a token (RFC 7515 section 3.1), before anything in it is believed.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

use super::{algorithm, json};
use crate::auth::{AuthRefusal, extract::all, key::is_key_byte};

/// Whether a text has the form of a signed token: three parts of base64url, separated by dots.
pub(crate) fn looks_like_token(text: &str) -> bool {
    let n_dots = text.bytes().filter(|byte| *byte == b'.').count();
    n_dots == 2 && all(text.as_bytes(), |byte| is_key_byte(*byte) || *byte == b'.')
}

/// A token taken apart. Its claims are hearsay until a signature was verified over `signed`.
pub(super) struct Parts<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) key_id: Option<Box<str>>,
    pub(super) media_type: Option<Box<str>>,
    pub(super) claims: Map<String, Value>,
    pub(super) signature: Vec<u8>,
    pub(super) signed: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Takes a token apart.
    ///
    /// - Base64url without padding and without stray bits, so that no second text stands for the same token.
    /// - No JSON member twice.
    /// - `crit` lists extensions that must be understood, and none is (RFC 7515 section 4.1.11).
    /// - `jwk`, `jku`, `x5c` and `x5u` are never looked at: a token does not bring the key that vouches for it
    ///   (RFC 8725 section 3.10).
    pub(super) fn of(token: &'a str) -> Result<Self, AuthRefusal> {
        let malformed = AuthRefusal::Malformed;
        let (signed, signature) = token.rsplit_once('.').ok_or(malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(malformed)?;
        let header = json::object(&decode(header)?).ok_or(malformed)?;
        if header.contains_key("crit") {
            return Err(malformed);
        }
        let name = text(&header, "alg")?.ok_or(malformed)?;
        let signature = decode(signature)?;
        if signature.is_empty() {
            return Err(malformed);
        }
        Ok(Self {
            algorithm: algorithm::parse(&name).ok_or(malformed)?,
            key_id: text(&header, "kid")?,
            media_type: text(&header, "typ")?,
            claims: json::object(&decode(payload)?).ok_or(malformed)?,
            signature,
            signed: signed.as_bytes(),
        })
    }
}

fn decode(part: &str) -> Result<Vec<u8>, AuthRefusal> {
    URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| AuthRefusal::Malformed)
}

/// A member that must be a text where it is present.
fn text(header: &Map<String, Value>, name: &str) -> Result<Option<Box<str>>, AuthRefusal> {
    match header.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str().into())),
        Some(_) => Err(AuthRefusal::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_told_by_its_form() {
        for text in ["a.b.c", "e30.e30.-_", "..", "a.b."] {
            assert!(looks_like_token(text), "{text}");
        }
        for text in [
            "",
            "abc",
            "a.b",
            "a.b.c.d.e",
            "a.b.c=",
            "a.b.c+",
            "a.b.c ",
            "tg_live_x",
        ] {
            assert!(!looks_like_token(text), "{text}");
        }
    }

    #[test]
    fn what_has_two_readings_is_refused() {
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let token = |header: &str, payload: &str, signature: &str| {
            format!("{}.{}.{signature}", encode(header), encode(payload))
        };
        let good = r#"{"alg":"ES256"}"#;
        assert!(Parts::of(&token(good, "{}", "AA")).is_ok());
        for bad in [
            token(good, "{}", ""),
            // The same byte, with a stray bit behind it.
            token(good, "{}", "AB"),
            token(good, "{}", "AA="),
            token(good, "[]", "AA"),
            token(good, r#"{"sub":"a","sub":"b"}"#, "AA"),
            token(r#"{"alg":"ES256","alg":"HS256"}"#, "{}", "AA"),
            token(r#"{"alg":"ES256","crit":[]}"#, "{}", "AA"),
            token(r#"{"alg":"ES256","kid":7}"#, "{}", "AA"),
            token(r#"{"alg":"none"}"#, "{}", "AA"),
            token(r#"{"alg":"None"}"#, "{}", "AA"),
            token(r#"{"alg":"es256"}"#, "{}", "AA"),
            token(r#"{"alg":["ES256"]}"#, "{}", "AA"),
            token("{}", "{}", "AA"),
        ] {
            let refusal = Parts::of(&bad).err();
            assert_eq!(refusal, Some(AuthRefusal::Malformed), "{bad}");
        }
    }
}
