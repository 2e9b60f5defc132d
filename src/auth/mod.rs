//! From a request to a key.

mod digest;
mod record;
mod store;

pub use self::{
    digest::KeyDigest,
    record::KeyRecord,
    store::{KeyListener, KeyStore, KeyStoreError},
};
