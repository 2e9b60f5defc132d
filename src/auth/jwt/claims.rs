use std::{collections::BTreeSet, fmt, sync::Arc};

use serde_json::{Map, Value};

use crate::{auth::AuthRefusal, clock::Timestamp};

/// What a token says: the claims of one whose signature, issuer, audience and times were checked.
///
/// `Debug` shows the names of the claims and no value, as some name people.
#[derive(Clone)]
pub struct Claims {
    members: Map<String, Value>,
    expires_at: Timestamp,
}

impl Claims {
    pub(super) const fn new(members: Map<String, Value>, expires_at: Timestamp) -> Self {
        Self {
            members,
            expires_at,
        }
    }

    /// A claim of any type.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.members.get(name)
    }

    /// A claim that is a text; `None` when it is absent or of another type.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_str()
    }

    /// Who issued the token: `iss`.
    #[must_use]
    pub fn issuer(&self) -> &str {
        self.text("iss").unwrap_or_default()
    }

    /// Whom the token speaks of: `sub`.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.text("sub")
    }

    /// When the token ends, without leeway: `exp`, in whole seconds, rounded down.
    #[must_use]
    pub const fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// What the token lets its bearer do: `scope`, texts separated by spaces (RFC 9068 section 2.2.3), else
    /// `scp`. Either may also be a list of texts, as some providers write it. Other types hold no scope.
    #[must_use]
    pub fn scopes(&self) -> BTreeSet<Arc<str>> {
        let split = |text: &str| text.split_ascii_whitespace().map(Arc::from).collect();
        match self.get("scope").or_else(|| self.get("scp")) {
            Some(Value::String(text)) => split(text),
            Some(Value::Array(items)) => items
                .iter()
                .filter_map(Value::as_str)
                .filter(|scope| !scope.is_empty())
                .map(Arc::from)
                .collect(),
            _ => BTreeSet::new(),
        }
    }
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims")
            .field("names", &self.members.keys().collect::<Vec<_>>())
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// A `NumericDate` (RFC 7519 section 2): seconds since 1970, of which a fraction is dropped.
pub(super) fn date(
    claims: &Map<String, Value>,
    name: &str,
) -> Result<Option<Timestamp>, AuthRefusal> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let seconds = match value {
        Value::Number(number) => match (number.as_u64(), number.as_f64()) {
            (Some(seconds), _) => Some(seconds),
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it is not negative, and what is too large becomes the largest"
            )]
            (None, Some(seconds)) if seconds >= 0.0 => Some(seconds as u64),
            _ => None,
        },
        _ => None,
    };
    let seconds = seconds.ok_or(AuthRefusal::Malformed)?;
    Ok(Some(Timestamp::from_unix_seconds(seconds)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claims(value: &Value) -> Claims {
        Claims::new(value.as_object().unwrap().clone(), Timestamp::MAX)
    }

    #[test]
    fn scopes_are_read_in_each_form() {
        let scopes = |value| claims(&value).scopes().into_iter().collect::<Vec<_>>();
        let both: Vec<Arc<str>> = vec!["a".into(), "b".into()];
        assert_eq!(scopes(json!({"scope": " b  a"})), both);
        assert_eq!(scopes(json!({"scp": ["a", "b", 3, ""]})), both);
        assert_eq!(scopes(json!({"scp": "a b"})), both);
        assert_eq!(scopes(json!({"scope": "a b", "scp": ["admin"]})), both);
        assert!(scopes(json!({"scope": 3})).is_empty());
        assert!(scopes(json!({})).is_empty());
    }

    #[test]
    fn a_date_is_a_number_that_is_not_negative() {
        let read = |value| date(json!({"exp": value}).as_object().unwrap(), "exp");
        let at = |seconds| Ok(Some(Timestamp::from_unix_seconds(seconds)));
        assert_eq!(read(json!(7)), at(7));
        assert_eq!(read(json!(7.9)), at(7));
        assert_eq!(read(json!(1e300)), Ok(Some(Timestamp::MAX)));
        assert_eq!(read(json!(u64::MAX)), Ok(Some(Timestamp::MAX)));
        for value in [json!(-1), json!(-0.5), json!("7"), json!(null), json!([7])] {
            assert_eq!(read(value.clone()), Err(AuthRefusal::Malformed), "{value}");
        }
        assert_eq!(date(&Map::new(), "exp"), Ok(None));
    }

    #[test]
    fn debug_shows_no_value() {
        let shown = format!("{:?}", claims(&json!({"email": "secret@example.com"})));
        assert!(
            shown.contains("email") && !shown.contains("secret"),
            "{shown}"
        );
    }
}
