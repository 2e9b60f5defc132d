//! A key's record as a hash of Redis: what never changes as JSON, what does in fields of its own.

use std::sync::Arc;

use redis::Value;

use super::super::KeyRecord;
use crate::clock::Timestamp;

/// The record, its version, its expiry, its revocation, its last use, its digest: what `HMGET` is asked for.
pub(super) const FIELDS: [&str; 6] = ["r", "v", "e", "x", "u", "d"];

/// A record and when its key was last used.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) record: Arc<KeyRecord>,
    pub(super) used: Option<Timestamp>,
}

/// What stands there is no record.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadFields {
    #[error("the hash is none of a key's: it lacks `r` or `v`, or they are no text")]
    Incomplete,
    #[error("the record is that of another key")]
    OtherKey,
    #[error("the field `{0}` is no number of the form that it has")]
    Number(&'static str),
    #[error("the field `r` is no key record")]
    Record(#[source] serde_json::Error),
}

/// A time of 18 digits: as texts they are in the order of time.
pub(super) fn digits(time: Timestamp) -> String {
    format!("{:018}", time.as_unix_micros())
}

/// The same of a time that may not be; empty where there is none.
pub(super) fn digits_or_none(time: Option<Timestamp>) -> String {
    time.map(digits).unwrap_or_default()
}

/// The part of a record that never changes.
pub(super) fn fixed_part(record: &KeyRecord) -> Result<String, serde_json::Error> {
    let mut fixed = KeyRecord::clone(record);
    (fixed.expires_at, fixed.revoked_at, fixed.version) = (None, None, 0);
    serde_json::to_string(&fixed)
}

/// What [`FIELDS`] hold of the key of this digest; `None` when there is no such hash.
///
/// The digest is compared: an answer that was meant for another question must not pass for this key's.
pub(super) fn read(value: Value, digest: &str) -> Result<Option<Kept>, BadFields> {
    let fields: [Option<String>; 6] = redis::from_redis_value::<Vec<Option<String>>>(value)
        .ok()
        .and_then(|fields| fields.try_into().ok())
        .ok_or(BadFields::Incomplete)?;
    let [record, version, expiry, revoked, used, own_digest] = fields;
    let (record, version) = match (record, version) {
        (None, None) if expiry.is_none() && revoked.is_none() => return Ok(None),
        (Some(record), Some(version)) => (record, version),
        _ => return Err(BadFields::Incomplete),
    };
    if own_digest.as_deref() != Some(digest) {
        return Err(BadFields::OtherKey);
    }
    let mut record: KeyRecord = serde_json::from_str(&record).map_err(BadFields::Record)?;
    record.version = version.parse().map_err(|_| BadFields::Number("v"))?;
    record.expires_at = time("e", expiry)?;
    record.revoked_at = time("x", revoked)?;
    Ok(Some(Kept {
        record: Arc::new(record),
        used: time("u", used)?,
    }))
}

fn time(field: &'static str, text: Option<String>) -> Result<Option<Timestamp>, BadFields> {
    let Some(text) = text else { return Ok(None) };
    if text.len() != 18 {
        return Err(BadFields::Number(field));
    }
    let micros = text.parse().map_err(|_| BadFields::Number(field))?;
    Ok(Some(Timestamp::from_unix_micros(micros)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn times_compare_as_their_texts(a in any::<u64>(), b in any::<u64>()) {
            let (a, b) = (Timestamp::from_unix_micros(a), Timestamp::from_unix_micros(b));
            prop_assert_eq!(a.cmp(&b), digits(a).cmp(&digits(b)));
            prop_assert_eq!(time("e", Some(digits(a))).unwrap(), Some(a));
        }

        #[test]
        fn whatever_stands_there_is_read_or_refused(texts in proptest::collection::vec(proptest::option::of(any::<String>()), 0..8)) {
            let values = texts.iter().map(|text| match text {
                Some(text) => Value::BulkString(text.clone().into_bytes()),
                None => Value::Nil,
            });
            let _ = read(Value::Array(values.collect()), "digest");
        }
    }
}
