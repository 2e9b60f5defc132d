use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;

use super::Jwks;

/// Why a set of keys could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JwksError {
    /// The document is not a JSON object with a list `keys`.
    #[error("the key set cannot be read")]
    Malformed(#[source] serde_json::Error),
    /// No key of the document can verify signatures.
    #[error("the key set has no key that verifies signatures")]
    NoKeys,
    /// The document has more than [`Jwks::MAX_KEYS`] keys.
    #[error("the key set has too many keys")]
    TooManyKeys,
    /// The document is larger than the source reads.
    #[error("the key set is too large")]
    TooLarge,
    /// The source answered with another status than 200; redirects are not followed.
    #[error("the key set was answered with status {0}")]
    Status(u16),
    /// The source did not answer.
    #[error("the key set cannot be fetched")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Where an identity provider's keys come from.
///
/// # Contract
///
/// - [`fetch`](Self::fetch) gives the provider's present keys, from a source that nobody can forge. It is called
///   by one task at a time and given up after [`JwksRefresh::deadline`](super::JwksRefresh::deadline).
/// - An error keeps the last keys in use, for a time; it never refuses a token by itself.
/// - The size of what is read is bounded by the source.
#[async_trait]
pub trait JwksSource: Debug + Send + Sync + 'static {
    /// The keys without waiting, for a source that has them in memory; `None` when they must be fetched.
    fn fetch_now(&self) -> Option<Result<Jwks, JwksError>> {
        None
    }

    /// Fetches the keys.
    ///
    /// # Errors
    ///
    /// [`JwksError`] when there is no set of keys that can be used.
    async fn fetch(&self) -> Result<Jwks, JwksError>;
}

/// A shared handle is a source.
#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: JwksSource + ?Sized> JwksSource for Arc<T> {
    fn fetch_now(&self) -> Option<Result<Jwks, JwksError>> {
        (**self).fetch_now()
    }

    async fn fetch(&self) -> Result<Jwks, JwksError> {
        (**self).fetch().await
    }
}

/// Keys that do not change while the process runs.
#[derive(Clone, Debug)]
pub struct StaticJwks {
    keys: Jwks,
}

impl StaticJwks {
    /// The keys of a document.
    ///
    /// # Errors
    ///
    /// As [`Jwks::from_json`].
    pub fn from_json(document: impl AsRef<[u8]>) -> Result<Self, JwksError> {
        Jwks::from_json(document).map(Self::from)
    }
}

impl From<Jwks> for StaticJwks {
    fn from(keys: Jwks) -> Self {
        Self { keys }
    }
}

#[async_trait]
impl JwksSource for StaticJwks {
    fn fetch_now(&self) -> Option<Result<Jwks, JwksError>> {
        Some(Ok(self.keys.clone()))
    }

    async fn fetch(&self) -> Result<Jwks, JwksError> {
        Ok(self.keys.clone())
    }
}
