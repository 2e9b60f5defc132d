//! What is read from a stream.

use redis::{FromRedisValue, Value};

use crate::meter::UsageEvent;

/// The id of an entry: milliseconds and a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct EntryId {
    pub(super) millis: u64,
    pub(super) sequence: u64,
}

impl EntryId {
    fn read(text: &str) -> Option<Self> {
        let (millis, sequence) = text.split_once('-')?;
        Some(Self {
            millis: millis.parse().ok()?,
            sequence: sequence.parse().ok()?,
        })
    }
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.millis, self.sequence)
    }
}

/// One entry, with its event or why it is none.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: EntryId,
    pub(super) content: Result<UsageEvent, DeadEntry>,
}

/// An entry that cannot be counted.
#[derive(Debug)]
pub(super) struct DeadEntry {
    pub(super) reason: &'static str,
    pub(super) body: Vec<u8>,
}

/// The answer has another form than streams have.
#[derive(Debug, thiserror::Error)]
#[error("Redis answered in a form that is none of entries of a stream")]
pub(super) struct StrangeEntries;

impl Entry {
    fn read(entry: Value) -> Result<Self, StrangeEntries> {
        let [id, fields] = items(entry)?.try_into().map_err(|_| StrangeEntries)?;
        let id = String::from_redis_value(id)
            .ok()
            .and_then(|id| EntryId::read(&id))
            .ok_or(StrangeEntries)?;
        // An entry that was cut from the stream, or deleted by hand, has no fields any more.
        let fields = match fields {
            Value::Nil => Vec::new(),
            fields => items(fields)?,
        };
        Ok(Self {
            id,
            content: event(&fields),
        })
    }
}

/// The entries of `XREADGROUP` on one stream; none when nothing came.
pub(super) fn of_read(answer: Value) -> Result<Vec<Entry>, StrangeEntries> {
    // By the protocol's version, a map or an array of pairs.
    let stream = match answer {
        Value::Nil => return Ok(Vec::new()),
        Value::Map(mut streams) => streams.pop().map(|(_, entries)| entries),
        streams => match items(streams)?.pop() {
            Some(stream) => items(stream)?.pop(),
            None => None,
        },
    };
    stream.map_or_else(|| Ok(Vec::new()), entries)
}

/// The entries of `XAUTOCLAIM`, and where the next one begins.
pub(super) fn of_claim(answer: Value) -> Result<(String, Vec<Entry>), StrangeEntries> {
    let mut parts = items(answer)?.into_iter();
    let cursor = parts.next().ok_or(StrangeEntries)?;
    let cursor = String::from_redis_value(cursor).map_err(|_| StrangeEntries)?;
    let claimed = parts.next().ok_or(StrangeEntries)?;
    Ok((cursor, entries(claimed)?))
}

fn entries(value: Value) -> Result<Vec<Entry>, StrangeEntries> {
    let entries = items(value)?.into_iter();
    // Redis 6.2 gives nil for an entry that is gone.
    entries
        .filter(|entry| *entry != Value::Nil)
        .map(Entry::read)
        .collect()
}

fn items(value: Value) -> Result<Vec<Value>, StrangeEntries> {
    match value {
        Value::Array(items) => Ok(items),
        _ => Err(StrangeEntries),
    }
}

fn event(fields: &[Value]) -> Result<UsageEvent, DeadEntry> {
    let dead = |reason, body: &[u8]| DeadEntry {
        reason,
        body: body.to_vec(),
    };
    if fields.is_empty() {
        return Err(dead("the entry was removed before it was counted", b""));
    }
    let mut pairs = fields.chunks_exact(2);
    let body = pairs.find_map(|pair| match pair {
        [Value::BulkString(name), Value::BulkString(body)] if name == b"event" => Some(body),
        _ => None,
    });
    let Some(body) = body else {
        return Err(dead("the entry has no field `event`", b""));
    };
    // A newer form may be readable and mean something else.
    #[derive(serde::Deserialize)]
    struct Form {
        schema: u16,
    }
    match serde_json::from_slice::<Form>(body) {
        Ok(form) if form.schema > UsageEvent::SCHEMA => {
            Err(dead("the event's schema is newer than this version", body))
        }
        _ => serde_json::from_slice(body).map_err(|_| dead("the entry is no usage event", body)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn entry(body: &str) -> Value {
        Value::Array(vec![
            text("1-2"),
            Value::Array(vec![text("event"), text(body)]),
        ])
    }

    #[test]
    fn what_is_no_event_is_told_apart() {
        let reason = |body| {
            Entry::read(entry(body))
                .unwrap()
                .content
                .unwrap_err()
                .reason
        };
        assert_eq!(reason("not JSON"), "the entry is no usage event");
        assert_eq!(reason("{\"schema\":1}"), "the entry is no usage event");
        assert_eq!(
            reason("{\"schema\":2}"),
            "the event's schema is newer than this version"
        );
        let gone = Value::Array(vec![text("1-2"), Value::Nil]);
        let gone = Entry::read(gone).unwrap();
        assert_eq!(
            gone.id,
            EntryId {
                millis: 1,
                sequence: 2
            }
        );
        assert!(gone.content.is_err());
    }

    #[test]
    fn both_forms_of_the_protocol_are_read() {
        let entries = || Value::Array(vec![entry("x"), entry("y")]);
        let pairs = Value::Array(vec![Value::Array(vec![text("s"), entries()])]);
        let map = Value::Map(vec![(text("s"), entries())]);
        assert_eq!(of_read(pairs).unwrap().len(), 2);
        assert_eq!(of_read(map).unwrap().len(), 2);
        assert!(of_read(Value::Nil).unwrap().is_empty());
        assert!(of_read(Value::Int(1)).is_err());
        let claim = Value::Array(vec![
            text("0-0"),
            Value::Array(vec![Value::Nil, entry("x")]),
        ]);
        assert_eq!(of_claim(claim).unwrap().1.len(), 1);
    }
}
