//! Finding things in JSON whose shape changes from version to version.

use serde_json::Value;

use super::EventError;
use crate::clock::Timestamp;

/// The longest id and type that an event may have.
const MAX_NAME_BYTES: usize = 255;

/// The first text under one of these paths (RFC 6901).
pub(super) fn text(value: &Value, paths: &[&str]) -> Option<Box<str>> {
    paths
        .iter()
        .find_map(|path| value.pointer(path)?.as_str())
        .filter(|text| !text.is_empty())
        .map(Box::from)
}

/// The first id under one of these paths: a text, or an object in its place, which has the id.
pub(super) fn id(value: &Value, paths: &[&str]) -> Option<Box<str>> {
    paths.iter().find_map(|path| match value.pointer(path)? {
        Value::String(id) if !id.is_empty() => Some(Box::from(id.as_str())),
        Value::Object(object) => object.get("id")?.as_str().map(Box::from),
        _ => None,
    })
}

pub(super) fn flag(value: &Value, path: &str) -> bool {
    value.pointer(path).and_then(Value::as_bool) == Some(true)
}

/// A whole number, also one that is written as text.
pub(super) fn integer(value: &Value, paths: &[&str]) -> Option<i64> {
    paths.iter().find_map(|path| match value.pointer(path)? {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    })
}

/// A time: seconds since 1970, or RFC 3339.
pub(super) fn time(value: &Value, paths: &[&str]) -> Option<Timestamp> {
    paths.iter().find_map(|path| as_time(value.pointer(path)?))
}

pub(super) fn as_time(value: &Value) -> Option<Timestamp> {
    match value {
        Value::Number(number) => number.as_u64().map(Timestamp::from_unix_seconds),
        Value::String(text) => {
            let time: jiff::Timestamp = text.parse().ok()?;
            (time.as_second() >= 0).then(|| Timestamp::from(time))
        }
        _ => None,
    }
}

pub(super) fn list<'a>(value: &'a Value, paths: &[&str]) -> &'a [Value] {
    paths
        .iter()
        .find_map(|path| value.pointer(path)?.as_array())
        .map_or(&[], Vec::as_slice)
}

/// A field that every event has: visible text of 1 to 255 bytes.
pub(super) fn name(value: &Value, field: &'static str) -> Result<Box<str>, EventError> {
    let found = value
        .get(field)
        .ok_or(EventError::MissingField { field })?
        .as_str()
        .filter(|text| (1..=MAX_NAME_BYTES).contains(&text.len()))
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()));
    found.map(Box::from).ok_or(EventError::InvalidField {
        field,
        expected: "1 to 255 visible ASCII characters",
    })
}

/// A time that every event has.
pub(super) fn required_time(value: &Value, field: &'static str) -> Result<Timestamp, EventError> {
    let found = value.get(field).ok_or(EventError::MissingField { field })?;
    as_time(found).ok_or(EventError::InvalidField {
        field,
        expected: "seconds since 1970, or a time of RFC 3339",
    })
}

/// A yes or no that every event has.
pub(super) fn required_flag(value: &Value, field: &'static str) -> Result<bool, EventError> {
    let found = value.get(field).ok_or(EventError::MissingField { field })?;
    found.as_bool().ok_or(EventError::InvalidField {
        field,
        expected: "true or false",
    })
}
