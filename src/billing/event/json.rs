//! JSON that says one thing only: no key twice in one object, and no deeper than [`MAX_DEPTH`].

use std::{cell::RefCell, fmt};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::EventError;

/// How deep objects and arrays may lie within each other; events of the providers reach about ten.
const MAX_DEPTH: usize = 64;
/// What of a key stands in an error.
const MAX_SHOWN_KEY: usize = 64;

/// Reads a document. A parser that keeps the last of two equal keys and one that keeps the first would read two
/// different events from one signed body.
pub(super) fn read(bytes: &[u8]) -> Result<Value, EventError> {
    let fault = RefCell::new(None);
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let seed = Strict {
        depth: 0,
        fault: &fault,
    };
    let read = seed.deserialize(&mut deserializer);
    let read = read.and_then(|value| deserializer.end().map(|()| value));
    read.map_err(|error| fault.take().unwrap_or(EventError::NotJson(error)))
}

#[derive(Clone, Copy)]
struct Strict<'f> {
    depth: usize,
    fault: &'f RefCell<Option<EventError>>,
}

impl Strict<'_> {
    fn fail<E: serde::de::Error>(self, fault: EventError) -> E {
        let error = E::custom("refused");
        self.fault.replace(Some(fault));
        error
    }

    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(self.fail(EventError::TooDeep));
        }
        Ok(Self {
            depth: self.depth + 1,
            ..self
        })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number is out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let seed = self.deeper()?;
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(seed)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let seed = self.deeper()?;
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.contains_key(&key) {
                let field = key.chars().take(MAX_SHOWN_KEY).collect();
                return Err(self.fail(EventError::DuplicateField { field }));
            }
            let value = entries.next_value_seed(seed)?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_document_reads_as_serde_json_reads_it() {
        let text = br#"{"a":[1,-2,3.5,null,true,"x\u00e9"],"b":{"c":{}},"d":18446744073709551615}"#;
        let expected: Value = serde_json::from_slice(text).unwrap();
        assert_eq!(read(text).unwrap(), expected);
    }

    #[test]
    fn two_equal_keys_are_refused_wherever_they_are() {
        for text in [
            r#"{"id":"a","id":"b"}"#,
            r#"{"data":{"object":[{"x":1,"x":1}]}}"#,
            r#"{"\u0069d":"a","id":"b"}"#,
        ] {
            let error = read(text.as_bytes()).unwrap_err();
            assert!(matches!(error, EventError::DuplicateField { .. }), "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(read(nested(MAX_DEPTH).as_bytes()).is_ok());
        let error = read(nested(MAX_DEPTH + 1).as_bytes()).unwrap_err();
        assert!(matches!(error, EventError::TooDeep));
        let error = read(nested(200_000).as_bytes()).unwrap_err();
        assert!(matches!(error, EventError::TooDeep));
    }

    #[test]
    fn what_follows_a_document_is_refused() {
        assert!(matches!(read(b"{} {}"), Err(EventError::NotJson(_))));
        assert!(matches!(read(b""), Err(EventError::NotJson(_))));
        assert!(matches!(read(b"not json"), Err(EventError::NotJson(_))));
    }
}
