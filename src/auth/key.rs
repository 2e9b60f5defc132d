use std::{fmt, sync::Arc};

use zeroize::Zeroizing;

use crate::id::Environment;

/// A raw API key, in memory for as short a time as possible.
///
/// Cleared when dropped. It implements neither `Display` nor `Serialize`, and its `Debug` shows no more than
/// [`ShownKey`]; [`expose`](Self::expose) is the only way to the text, so that a search finds every use.
#[derive(Clone)]
pub struct ApiKey(Zeroizing<Box<str>>);

impl ApiKey {
    /// Takes over a key that exists already, for example one that is imported.
    ///
    /// The text is not checked; [`KeyFormat::check`](super::KeyFormat::check) does that.
    #[must_use]
    pub fn new(key: impl Into<Box<str>>) -> Self {
        Self(Zeroizing::new(key.into()))
    }

    /// The key itself: to hash it, or to hand it to its owner once.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What may be shown of the key, in the form that [`KeyRecord::shown`](super::KeyRecord) keeps.
    #[must_use]
    pub fn shown(&self) -> Arc<str> {
        Arc::from(ShownKey::of(self.expose()).as_str())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({})", ShownKey::of(self.expose()))
    }
}

/// What may be shown of a credential anywhere: prefix, environment and last four characters, such as
/// `tg_live_…ffH1`.
///
/// Of a text that does not look like a key of ours only the last four characters are shown, and nothing at
/// all when it is shorter than 16 bytes or its end holds anything but letters, digits, `-` and `_`. The form
/// can therefore not forge a log line. It is a copy of at most [`ShownKey::MAX_BYTES`] bytes, made without an
/// allocation.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ShownKey {
    bytes: [u8; Self::MAX_BYTES],
    len: usize,
}

const ELLIPSIS: &str = "…";
const TAIL_BYTES: usize = 4;
const MIN_BYTES_TO_SHOW_TAIL: usize = 16;
/// Below this many characters a secret part would lose too much by showing four of them beside its prefix.
const MIN_SECRET_BYTES: usize = 24;

impl ShownKey {
    /// The longest form: a prefix of 16 bytes, `_live_`, the ellipsis and four characters.
    pub const MAX_BYTES: usize = 16 + 6 + ELLIPSIS.len() + TAIL_BYTES;

    /// What may be shown of `credential`.
    #[must_use]
    pub fn of(credential: &str) -> Self {
        let mut shown = Self {
            bytes: [0; Self::MAX_BYTES],
            len: 0,
        };
        shown.push(head_of(credential));
        shown.push(ELLIPSIS);
        shown.push(tail_of(credential));
        shown
    }

    /// The form as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.bytes
            .get(..self.len)
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .unwrap_or(ELLIPSIS)
    }

    fn push(&mut self, part: &str) {
        let end = self.len + part.len();
        if let Some(room) = self.bytes.get_mut(self.len..end) {
            room.copy_from_slice(part.as_bytes());
            self.len = end;
        }
    }
}

/// `tg_live_` of a text that is `tg_live_` and a long enough rest, else nothing.
fn head_of(credential: &str) -> &str {
    let mut parts = credential.splitn(3, '_');
    let (Some(prefix), Some(environment), Some(secret)) =
        (parts.next(), parts.next(), parts.next())
    else {
        return "";
    };
    let known = [Environment::Live, Environment::Test]
        .iter()
        .any(|known| known.as_str() == environment);
    if !known || !is_prefix(prefix) || secret.len() < MIN_SECRET_BYTES {
        return "";
    }
    let head_bytes = prefix.len() + 1 + environment.len() + 1;
    credential.get(..head_bytes).unwrap_or("")
}

fn tail_of(credential: &str) -> &str {
    if credential.len() < MIN_BYTES_TO_SHOW_TAIL {
        return "";
    }
    credential
        .get(credential.len() - TAIL_BYTES..)
        .filter(|tail| tail.bytes().all(is_key_byte))
        .unwrap_or("")
}

/// Whether a text can be the prefix of keys: `[a-z][a-z0-9]{1,15}`.
pub(super) fn is_prefix(text: &str) -> bool {
    (2..=16).contains(&text.len())
        && text.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

/// Whether a byte may stand in a key: `[A-Za-z0-9_-]`.
pub(super) const fn is_key_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

impl AsRef<str> for ShownKey {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for ShownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ShownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShownKey({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_prefix_environment_and_last_four() {
        let key = ApiKey::new("tg_live_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ3d9ffH");
        assert_eq!(&*key.shown(), "tg_live_…9ffH");
        assert_eq!(format!("{key:?}"), "ApiKey(tg_live_…9ffH)");
    }

    #[test]
    fn shows_less_of_what_is_not_ours() {
        let shown = |text: &str| ShownKey::of(text).to_string();
        assert_eq!(shown("abcdefghijklmnop"), "…mnop");
        assert_eq!(shown("hunter2"), "…");
        assert_eq!(shown(""), "…");
        assert_eq!(shown("tg_live_short1234567"), "…4567");
        assert_eq!(shown("tg_prod_0123456789ABCDEFGHIJKLMNOPQR"), "…OPQR");
        assert_eq!(shown("TG_live_0123456789ABCDEFGHIJKLMNOPQR"), "…OPQR");
        assert_eq!(shown("0123456789abcdef\nlevel=error"), "…rror");
        assert_eq!(shown("0123456789abcdef\nerr"), "…");
        assert_eq!(shown("0123456789abcdefgh\u{1F511}"), "…");
    }

    #[test]
    fn the_longest_form_fits() {
        let key = format!("{}_live_{}", "a".repeat(16), "x".repeat(42));
        assert_eq!(
            ShownKey::of(&key).as_str(),
            format!("{}_live_…xxxx", "a".repeat(16))
        );
    }
}
