//! Newtypes for the names that every room uses.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// The longest identifier accepted, in bytes.
pub const MAX_ID_BYTES: usize = 255;

/// An identifier was empty, too long or held a control character.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidId {
    /// The identifier has no characters.
    #[error("an identifier must not be empty")]
    Empty,
    /// The identifier has more than [`MAX_ID_BYTES`] bytes.
    #[error("an identifier must have at most 255 bytes")]
    TooLong,
    /// The identifier holds a control character or a line separator, which could forge a log line.
    #[error("an identifier must not hold control characters")]
    ControlCharacter,
}

fn check(text: &str) -> Result<(), InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::Empty);
    }
    if text.len() > MAX_ID_BYTES {
        return Err(InvalidId::TooLong);
    }
    if text
        .chars()
        .any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'))
    {
        return Err(InvalidId::ControlCharacter);
    }
    Ok(())
}

macro_rules! identifier {
    ($(#[$docs:meta])* $name:ident) => {
        $(#[$docs])*
        ///
        /// One to [`MAX_ID_BYTES`] bytes without control characters. Cloning is one atomic increment.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the text and takes it as an identifier.
            ///
            /// # Errors
            ///
            /// [`InvalidId`] when the text is empty, longer than [`MAX_ID_BYTES`] or holds a control
            /// character.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidId> {
                check(text.as_ref())?;
                Ok(Self(Arc::from(text.as_ref())))
            }

            /// Takes text of this crate's own, which is known to be a legal identifier.
            #[allow(dead_code, reason = "not every identifier has one")]
            pub(crate) fn from_checked(text: &str) -> Self {
                Self(Arc::from(text))
            }

            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = InvalidId;

            fn try_from(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.as_ref().to_owned()
            }
        }
    };
}

identifier! {
    /// Names a tenant: the customer who is limited, metered and billed.
    TenantId
}
identifier! {
    /// Names an API key without revealing it.
    KeyId
}
identifier! {
    /// Names a plan in the catalog, such as `free` or `pro`.
    PlanName
}

/// Live or test: test keys count apart from live ones and are never billed.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Environment {
    /// Real traffic, counted and billed.
    #[default]
    Live,
    /// Sandbox traffic: counted apart, under the sandbox plan, never billed.
    Test,
}

impl Environment {
    /// `live` or `test`, the form that stands inside a key.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_could_forge_a_log_line() {
        assert_eq!(TenantId::new(""), Err(InvalidId::Empty));
        assert_eq!(TenantId::new("a\nb"), Err(InvalidId::ControlCharacter));
        assert_eq!(
            TenantId::new("a\u{2028}b"),
            Err(InvalidId::ControlCharacter)
        );
        assert_eq!(TenantId::new("x".repeat(256)), Err(InvalidId::TooLong));
        assert!(TenantId::new("{acme}:eu").is_ok());
    }

    #[test]
    fn a_document_with_a_bad_identifier_is_refused() {
        assert!(serde_json::from_str::<TenantId>("\"\"").is_err());
        assert_eq!(
            serde_json::from_str::<TenantId>("\"acme\"")
                .unwrap()
                .as_str(),
            "acme"
        );
    }
}
