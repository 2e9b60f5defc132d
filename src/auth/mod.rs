//! From a request to a key.
//!
//! 1. An [`Extractor`] finds the request's one credential: `X-API-Key`, then `Authorization: Bearer`, the
//!    query only when asked for. Two that differ, or one header twice, are refused.
//! 2. A [`KeyFormat`] recognises its own keys by their checksum, so that an invented one costs no look-up.
//! 3. A [`KeyHasher`] turns the key into a [`KeyDigest`]; from here on nothing knows the key itself.
//! 4. A [`KeyStore`] has the digest's [`KeyRecord`]: whose key it is and what it may do. In memory that is
//!    [`MemoryKeyStore`], filled from a [`KeyDocument`] or the environment; with the feature `redis`, a
//!    `RedisKeyStore` that all processes share.
//!
//! A "no" is an [`AuthRefusal`]. The [`Challenge`] makes the answer of it, one and the same for every key
//! that does not work, be it malformed, unknown, expired or revoked; an [`AuthEventSink`] and the metric
//! `tollgate_auth_failures_total{reason}` learn which it was. A [`FailureLimit`] counts failures for each
//! client address, which a [`ClientAddr`] tells: the connection's own unless
//! [`TrustedProxies`] are named.
//!
//! A raw key is held in [`ApiKey`], which is cleared when dropped; what may be shown of it anywhere is a
//! [`ShownKey`]: prefix, environment and last four characters.
//!
//! ```
//! use http::Request;
//! use tollgate::{
//!     auth::{AuthRefusal, Challenge, Extractor, KeyFormat, KeyHasher},
//!     head::RequestHead,
//!     id::Environment,
//! };
//!
//! let (format, hasher) = (KeyFormat::new("acme")?, KeyHasher::sha256());
//! let key = format.generate(Environment::Live)?;
//! let kept = hasher.digest(key.expose());
//!
//! let mut request = Request::get("/v1/hello")
//!     .header("x-api-key", key.expose())
//!     .body(())?;
//! let extractor = Extractor::default();
//! let credential = extractor.extract(&RequestHead::from(&request)).unwrap().unwrap();
//! assert_eq!(format.check(credential.value)?, Some(Environment::Live));
//! assert_eq!(hasher.digest(credential.value), kept);
//! let source = credential.source;
//! extractor.strip(&source, &mut request);
//! assert!(request.headers().is_empty());
//!
//! // A request that does not pass: the same header twice.
//! let request = Request::get("/v1/hello")
//!     .header("x-api-key", "one")
//!     .header("x-api-key", "two")
//!     .body(())?;
//! let refusal = extractor.extract(&RequestHead::from(&request)).unwrap_err();
//! assert_eq!(refusal, AuthRefusal::Ambiguous);
//! assert_eq!(Challenge::default().problem(&refusal).status_code(), 400);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Deployment
//!
//! TLS must end before the service: a key in clear text is everybody's. Behind a proxy name it with
//! [`TrustedProxies`], or all clients share the proxy's address. A proxy that logs requests must leave out
//! the credential headers.

mod challenge;
mod client_addr;
mod derive;
mod digest;
mod document;
mod event;
mod extract;
mod failures;
mod format;
mod hasher;
#[cfg(feature = "jwt")]
#[cfg_attr(docsrs, doc(cfg(feature = "jwt")))]
pub mod jwt;
mod key;
mod memory_store;
mod networks;
mod pace;
#[cfg(feature = "postgres")]
mod postgres_store;
mod record;
#[cfg(feature = "redis")]
mod redis_store;
mod refusal;
mod store;

pub(crate) use self::document::KeyEntry;
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use self::postgres_store::PostgresKeyStore;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use self::redis_store::RedisKeyStore;
pub use self::{
    challenge::Challenge,
    client_addr::{ClientAddr, PeerAddr, TrustedProxies, network_key},
    derive::KeySecret,
    digest::KeyDigest,
    document::KeyDocument,
    event::{AuthEvent, AuthEventSink, LogAuthEvents},
    extract::{Credential, CredentialSource, Extractor, KeySource, MAX_CREDENTIAL_BYTES},
    failures::FailureLimit,
    format::{KeyFormat, MAX_KEY_BYTES, Malformed, RandomError},
    hasher::{KeyHasher, Pepper},
    key::{ApiKey, ShownKey},
    memory_store::MemoryKeyStore,
    record::KeyRecord,
    refusal::AuthRefusal,
    store::{KeyListener, KeyStore, KeyStoreError, KeyUse},
};
