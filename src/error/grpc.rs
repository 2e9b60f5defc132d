//! Problems in gRPC's form: an answer without messages, whose status stands in its header fields.

use std::borrow::Cow;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
    response::Parts,
};
use serde_json::Value;

use super::Problem;
use crate::grpc::{GRPC_STATUS, GrpcCode, GrpcKind, TRAILERS};

const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const STATUS_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// The longest message, in bytes before it is encoded; a client takes 8 KiB of fields in all by default.
const MAX_MESSAGE_BYTES: usize = 1024;

/// The most bytes of members that the details carry.
const MAX_MEMBERS_BYTES: usize = 2048;

/// The `domain` of an `ErrorInfo`: whose table of reasons it is.
const DOMAIN: &str = "tollgate";

/// Turns the head of an answer into gRPC's, and gives its body.
///
/// A gRPC answer is "Trailers-Only" (`PROTOCOL-HTTP2.md`): the status 200, the fields, no body. gRPC-Web allows
/// the same, but a page reads a header field only where CORS exposes it, and a frame of the body always.
pub(super) fn render(parts: &mut Parts, problem: &Problem, kind: GrpcKind) -> Bytes {
    let status = GrpcCode::from_problem(problem);
    let message = message_of(problem);
    let retry_after = parts.headers.get(RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    let details = details(status, message, problem, retry_after);
    let fields = [
        (GRPC_STATUS, HeaderValue::from(u16::from(status.as_u8()))),
        (GRPC_MESSAGE, field(&percent_encoded(message))),
        (STATUS_DETAILS, field(&STANDARD_NO_PAD.encode(details))),
    ];
    parts.status = StatusCode::OK;
    let media_type = match kind {
        GrpcKind::Grpc => "application/grpc",
        GrpcKind::Web => "application/grpc-web",
        GrpcKind::WebText => "application/grpc-web-text",
    };
    parts
        .headers
        .insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    let body = match kind {
        GrpcKind::Grpc => {
            parts.headers.extend(fields);
            return Bytes::new();
        }
        GrpcKind::Web | GrpcKind::WebText => trailers_frame(&fields),
    };
    if kind == GrpcKind::WebText {
        STANDARD.encode(body).into()
    } else {
        body.into()
    }
}

/// A frame of trailers in the body (`PROTOCOL-WEB.md`): lines as in HTTP/1, without the empty one at the end.
fn trailers_frame(fields: &[(HeaderName, HeaderValue)]) -> Vec<u8> {
    let mut frame = vec![TRAILERS, 0, 0, 0, 0];
    for (name, value) in fields {
        frame.extend_from_slice(name.as_str().as_bytes());
        frame.push(b':');
        frame.extend_from_slice(value.as_bytes());
        frame.extend_from_slice(b"\r\n");
    }
    let length = frame.len().saturating_sub(5) as u32;
    if let Some(place) = frame.get_mut(1..5) {
        place.copy_from_slice(&length.to_be_bytes());
    }
    frame
}

fn message_of(problem: &Problem) -> &str {
    let text = problem
        .detail_text()
        .unwrap_or_else(|| problem.code().title());
    let end = (0..=MAX_MESSAGE_BYTES.min(text.len())).rev();
    let end = end.into_iter().find(|end| text.is_char_boundary(*end));
    end.and_then(|end| text.get(..end)).unwrap_or(text)
}

/// The fields are made of visible ASCII.
fn field(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

/// `Percent-Encoded` of `PROTOCOL-HTTP2.md`: the bytes from space to tilde stand for themselves, but for the
/// percent sign.
fn percent_encoded(text: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'%';
    if text.bytes().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut encoded = String::with_capacity(text.len() + 32);
    for byte in text.bytes() {
        if is_plain(byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.extend([byte >> 4, byte & 15].map(hex_digit));
        }
    }
    Cow::Owned(encoded)
}

fn hex_digit(nibble: u8) -> char {
    char::from_digit(nibble.into(), 16).map_or('0', |digit| digit.to_ascii_uppercase())
}

/// A `google.rpc.Status` with an `ErrorInfo`, and a `RetryInfo` where the answer says when to come back.
fn details(code: GrpcCode, message: &str, problem: &Problem, retry_after: Option<u64>) -> Vec<u8> {
    let mut status = Message::default();
    status.number(1, code.as_u8().into());
    status.bytes(2, message.as_bytes());
    status.message(3, &any("google.rpc.ErrorInfo", &error_info(problem)));
    if let Some(seconds) = retry_after {
        let mut delay = Message::default();
        delay.number(1, seconds);
        let mut info = Message::default();
        info.message(1, &delay);
        status.message(3, &any("google.rpc.RetryInfo", &info));
    }
    status.0
}

/// The code, in the upper case that the field asks for, and the members that the problem has of its own.
fn error_info(problem: &Problem) -> Message {
    let mut info = Message::default();
    info.bytes(1, problem.code().as_str().to_ascii_uppercase().as_bytes());
    info.bytes(2, DOMAIN.as_bytes());
    let mut left = MAX_MEMBERS_BYTES;
    for (name, value) in problem.extensions() {
        let value = match value {
            Value::String(text) => Cow::Borrowed(text.as_str()),
            other => Cow::Owned(other.to_string()),
        };
        let mut entry = Message::default();
        entry.bytes(1, name.as_bytes());
        entry.bytes(2, value.as_bytes());
        if let Some(rest) = left.checked_sub(entry.0.len()) {
            left = rest;
            info.message(3, &entry);
        }
    }
    info
}

fn any(name: &str, message: &Message) -> Message {
    let mut any = Message::default();
    any.bytes(1, format!("type.googleapis.com/{name}").as_bytes());
    any.message(2, message);
    any
}

/// A protocol buffer message as it is written; the few kinds of fields that are needed here.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(&mut self, field: u8, value: u64) {
        self.0.push(field << 3);
        self.varint(value);
    }

    fn bytes(&mut self, field: u8, value: &[u8]) {
        self.0.push(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn message(&mut self, field: u8, value: &Self) {
        self.bytes(field, &value.0);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_encoded_as_the_protocol_says() {
        for (text, encoded) in [
            ("Slow down: too many calls", "Slow down: too many calls"),
            ("100%", "100%25"),
            ("a\r\nb", "a%0D%0Ab"),
            ("\u{e9}\u{2603}\u{7f}", "%C3%A9%E2%98%83%7F"),
            ("~ !", "~ !"),
            ("", ""),
        ] {
            assert_eq!(percent_encoded(text), encoded, "{text:?}");
        }
    }
}
