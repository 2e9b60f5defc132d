//! Documents with a version, replaced by compare-and-set.

use std::sync::LazyLock;

use redis::Value;

use super::{Account, Key, Redis, RedisFault, Script};

static REPLACE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("replace.lua")));

/// A document was not read or not replaced.
#[derive(Debug)]
pub(crate) enum VersionedError {
    /// There is one already.
    Exists,
    /// There is none.
    Missing,
    /// It has another version.
    Conflict,
    /// What is there is no such document.
    Corrupt(Box<dyn std::error::Error + Send + Sync>),
    Fault(RedisFault),
}

/// Something else stands where a record belongs.
#[derive(Debug, thiserror::Error)]
#[error("the key `{key}` holds something else")]
pub(crate) struct Foreign {
    key: String,
}

impl Foreign {
    pub(crate) fn at(key: &[u8]) -> Self {
        let key = String::from_utf8_lossy(key).into_owned();
        Self { key }
    }
}

fn failed(fault: RedisFault) -> VersionedError {
    if fault.is_foreign_value() {
        VersionedError::Corrupt(fault.into())
    } else {
        VersionedError::Fault(fault)
    }
}

/// The document and its version.
pub(crate) async fn find_versioned(
    redis: &Redis,
    key: &Key,
) -> Result<Option<(String, u64)>, VersionedError> {
    let mut get = redis::cmd("HMGET");
    get.arg(&**key).arg("r").arg("v");
    let value = redis.read(&get).await.map_err(failed)?;
    let fields: Result<(Option<String>, Option<String>), _> = redis::from_redis_value(value);
    let foreign = || {
        redis.distrust();
        VersionedError::Corrupt(Foreign::at(key).into())
    };
    match fields {
        Ok((None, None)) => Ok(None),
        Ok((Some(document), Some(version))) => {
            let version = version.parse().map_err(|_| foreign())?;
            Ok(Some((document, version)))
        }
        Ok(_) | Err(_) => Err(foreign()),
    }
}

/// Puts a document in the place of the version that was read, `None` where there was none, and announces it as `what`.
pub(crate) async fn replace_versioned(
    redis: &Redis,
    key: &Key,
    read: Option<u64>,
    document: &str,
    what: &str,
) -> Result<u64, VersionedError> {
    let version = read.unwrap_or(0).saturating_add(1);
    let keys = [Key::clone(key), redis.account(Account::Changes)];
    let read = read.map_or_else(String::new, |read| read.to_string());
    let next = version.to_string();
    let channel = redis.changes();
    let arguments: [&[u8]; 5] = [
        read.as_bytes(),
        document.as_bytes(),
        next.as_bytes(),
        what.as_bytes(),
        &channel,
    ];
    let value = redis.run(&REPLACE, &keys, &arguments).await;
    match status(&value.map_err(failed)?) {
        Some("ok") => Ok(version),
        Some("conflict") => Err(VersionedError::Conflict),
        Some("exists") => Err(VersionedError::Exists),
        Some("missing") => Err(VersionedError::Missing),
        _ => {
            redis.distrust();
            Err(VersionedError::Corrupt(Foreign::at(key).into()))
        }
    }
}

/// What a script says in a word.
pub(crate) fn status(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}
