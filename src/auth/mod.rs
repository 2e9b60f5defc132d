//! From a request to a key.

mod challenge;
mod client_addr;
mod digest;
mod document;
mod event;
mod extract;
mod failures;
mod format;
mod hasher;
mod key;
mod memory_store;
mod pace;
mod record;
mod refusal;
mod store;

pub use self::{
    challenge::Challenge,
    client_addr::{ClientAddr, PeerAddr, PeerAddress, TrustedProxies, network_key},
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
    store::{KeyListener, KeyStore, KeyStoreError},
};
