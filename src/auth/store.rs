use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{Arc, Weak},
};

use async_trait::async_trait;

use super::{KeyDigest, KeyRecord};
use crate::{
    clock::Timestamp,
    id::{KeyId, TenantId},
};

/// Hears of changes to a store's records, so that caches forget the old ones at once.
pub trait KeyListener: Send + Sync {
    /// The record behind the digest changed; `version` is its new version.
    fn key_changed(&self, digest: &KeyDigest, version: u64);

    /// Changes may have been missed (a push connection was lost and is back): forget everything.
    fn keys_lost(&self);
}

/// One use of a key, as a store is told of it some time later.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyUse {
    /// The key's digest.
    pub digest: KeyDigest,
    /// The key's id.
    pub id: KeyId,
    /// When the key was accepted.
    pub at: Timestamp,
}

impl KeyUse {
    /// A use of a key.
    #[must_use]
    pub const fn new(digest: KeyDigest, id: KeyId, at: Timestamp) -> Self {
        Self { digest, id, at }
    }
}

/// A key store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyStoreError {
    /// A key with this digest or this id exists already.
    #[error("the key exists already")]
    AlreadyExists,
    /// There is no such key.
    #[error("there is no such key")]
    NotFound,
    /// The key was revoked or has expired: it cannot be rotated.
    #[error("the key no longer works: issue a new one")]
    NotUsable,
    /// The store cannot be changed, for example because it was loaded from a file.
    #[error("the key store is read-only")]
    ReadOnly,
    /// The store cannot be reached or does not serve now.
    #[error("the key store is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store holds something that is not a key record.
    #[error("the key store holds a record that cannot be read")]
    Corrupt(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Keeps key records by digest; never sees a raw key.
///
/// # Contract
///
/// - [`create`](Self::create) and [`rotate`](Self::rotate) refuse a digest or id that exists.
/// - [`rotate`](Self::rotate) is atomic: the new record exists if and only if the old one's expiry was set.
///   The old key's expiry becomes the earlier of its own and `old_expires_at`; it is never extended.
/// - [`revoke`](Self::revoke) is final: a revoked record is never usable again, whatever comes after.
/// - A store that can push changes keeps the listener and calls it for each change, its own included, before
///   the change returns where that is possible.
/// - [`touch`](Self::touch) changes no record and no version, and is announced to nobody: caches keep what they
///   have. A store that keeps no uses leaves it and [`last_used`](Self::last_used) as they are.
#[async_trait]
pub trait KeyStore: Debug + Send + Sync + 'static {
    /// The record behind a digest without waiting. The outer `None` means that a trip is needed
    /// ([`find`](Self::find)); `Some(None)` means that there is no such key.
    fn find_now(&self, digest: &KeyDigest) -> Option<Option<Arc<KeyRecord>>> {
        let _ = digest;
        None
    }

    /// The record behind a digest, `None` when there is no such key.
    ///
    /// # Errors
    ///
    /// [`KeyStoreError::Unavailable`] or [`KeyStoreError::Corrupt`].
    async fn find(&self, digest: &KeyDigest) -> Result<Option<Arc<KeyRecord>>, KeyStoreError>;

    /// The record of this id, `None` when there is no such key.
    ///
    /// # Errors
    ///
    /// [`KeyStoreError::Unavailable`] or [`KeyStoreError::Corrupt`].
    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, KeyStoreError>;

    /// All keys of a tenant, revoked ones included, oldest first.
    ///
    /// # Errors
    ///
    /// [`KeyStoreError::Unavailable`] or [`KeyStoreError::Corrupt`].
    async fn list(&self, tenant: &TenantId) -> Result<Vec<Arc<KeyRecord>>, KeyStoreError>;

    /// Adds a key; its version becomes 1.
    ///
    /// # Errors
    ///
    /// [`KeyStoreError::AlreadyExists`], or a failure of the store.
    async fn create(
        &self,
        digest: KeyDigest,
        record: KeyRecord,
    ) -> Result<Arc<KeyRecord>, KeyStoreError>;

    /// Adds a successor and bounds the old key's life, in one step.
    ///
    /// # Errors
    ///
    /// [`KeyStoreError::NotFound`], [`KeyStoreError::NotUsable`] when the old key is revoked or expired at
    /// `now`, [`KeyStoreError::AlreadyExists`], or a failure of the store.
    async fn rotate(
        &self,
        old: &KeyId,
        old_expires_at: Timestamp,
        digest: KeyDigest,
        record: KeyRecord,
        now: Timestamp,
    ) -> Result<Arc<KeyRecord>, KeyStoreError>;

    /// Ends a key for good. Revoking twice keeps the first time.
    ///
    /// # Errors
    ///
    /// [`KeyStoreError::NotFound`], or a failure of the store.
    async fn revoke(&self, id: &KeyId, at: Timestamp) -> Result<Arc<KeyRecord>, KeyStoreError>;

    /// Notes when keys were last used. Many at once and some time later, never on the way of a request; in no
    /// order, and the same use perhaps twice: of each key the latest time stays. A key that is not known is
    /// passed over.
    ///
    /// # Errors
    ///
    /// [`KeyStoreError::Unavailable`]; any part of the uses may have been noted.
    async fn touch(&self, uses: &[KeyUse]) -> Result<(), KeyStoreError> {
        let _ = uses;
        Ok(())
    }

    /// When the keys of a tenant were last used, to about a minute. A key that was never used is absent, as are
    /// all keys of a store that keeps no uses.
    ///
    /// # Errors
    ///
    /// [`KeyStoreError::Unavailable`] or [`KeyStoreError::Corrupt`].
    async fn last_used(
        &self,
        tenant: &TenantId,
    ) -> Result<HashMap<KeyId, Timestamp>, KeyStoreError> {
        let _ = tenant;
        Ok(HashMap::new())
    }

    /// Registers a listener for changes.
    fn subscribe(&self, listener: Weak<dyn KeyListener>) {
        let _ = listener;
    }
}

/// A shared handle is a store, so that the same one can be given to a gate and kept.
#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: KeyStore + ?Sized> KeyStore for Arc<T> {
    fn find_now(&self, digest: &KeyDigest) -> Option<Option<Arc<KeyRecord>>> {
        (**self).find_now(digest)
    }

    async fn find(&self, digest: &KeyDigest) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
        (**self).find(digest).await
    }

    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
        (**self).find_by_id(id).await
    }

    async fn list(&self, tenant: &TenantId) -> Result<Vec<Arc<KeyRecord>>, KeyStoreError> {
        (**self).list(tenant).await
    }

    async fn create(
        &self,
        digest: KeyDigest,
        record: KeyRecord,
    ) -> Result<Arc<KeyRecord>, KeyStoreError> {
        (**self).create(digest, record).await
    }

    async fn rotate(
        &self,
        old: &KeyId,
        old_expires_at: Timestamp,
        digest: KeyDigest,
        record: KeyRecord,
        now: Timestamp,
    ) -> Result<Arc<KeyRecord>, KeyStoreError> {
        (**self)
            .rotate(old, old_expires_at, digest, record, now)
            .await
    }

    async fn revoke(&self, id: &KeyId, at: Timestamp) -> Result<Arc<KeyRecord>, KeyStoreError> {
        (**self).revoke(id, at).await
    }

    async fn touch(&self, uses: &[KeyUse]) -> Result<(), KeyStoreError> {
        (**self).touch(uses).await
    }

    async fn last_used(
        &self,
        tenant: &TenantId,
    ) -> Result<HashMap<KeyId, Timestamp>, KeyStoreError> {
        (**self).last_used(tenant).await
    }

    fn subscribe(&self, listener: Weak<dyn KeyListener>) {
        (**self).subscribe(listener);
    }
}
