use std::{
    fmt::Debug,
    sync::{Arc, Weak},
};

use async_trait::async_trait;

use super::TenantRecord;
use crate::id::TenantId;

/// Hears of changes to a store's records, so that caches forget the old ones at once.
pub trait TenantListener: Send + Sync {
    /// The tenant's record changed.
    fn tenant_changed(&self, id: &TenantId);

    /// Changes may have been missed (a push connection was lost and is back): forget everything.
    fn tenants_lost(&self);
}

/// A tenant store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TenantStoreError {
    /// A tenant of this name exists already.
    #[error("the tenant exists already")]
    AlreadyExists,
    /// There is no such tenant.
    #[error("there is no such tenant")]
    NotFound,
    /// The record has another version than the one that was to be replaced.
    #[error("the tenant was changed in the meantime: read it again and repeat the change")]
    Conflict,
    /// The store cannot be reached or does not serve now.
    #[error("the tenant store is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store holds something that is not a tenant record.
    #[error("the tenant store holds a record that cannot be read")]
    Corrupt(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Keeps tenants.
///
/// # Contract
///
/// - [`replace`](Self::replace) is a compare-and-set: of two concurrent replacements of one version exactly
///   one succeeds.
/// - Nothing is ever deleted; a tenant that ends becomes [`Closed`](super::AccessState::Closed).
/// - A store that can push changes keeps the listener and calls it for each change, its own included, before
///   the change returns where that is possible. A store that cannot push leaves [`subscribe`](Self::subscribe)
///   as it is; caches then see a change when their entry's lifetime ends.
#[async_trait]
pub trait TenantStore: Debug + Send + Sync + 'static {
    /// The tenant's record without waiting. The outer `None` means that a trip is needed
    /// ([`find`](Self::find)); `Some(None)` means that there is no such tenant.
    fn find_now(&self, id: &TenantId) -> Option<Option<Arc<TenantRecord>>> {
        let _ = id;
        None
    }

    /// The tenant's record, `None` when there is no such tenant.
    ///
    /// # Errors
    ///
    /// [`TenantStoreError::Unavailable`] or [`TenantStoreError::Corrupt`].
    async fn find(&self, id: &TenantId) -> Result<Option<Arc<TenantRecord>>, TenantStoreError>;

    /// Adds a tenant; the record's version becomes 1.
    ///
    /// # Errors
    ///
    /// [`TenantStoreError::AlreadyExists`], or a failure of the store.
    async fn create(&self, record: TenantRecord) -> Result<Arc<TenantRecord>, TenantStoreError>;

    /// Replaces the record whose version is `record.version`; the version grows by one.
    ///
    /// # Errors
    ///
    /// [`TenantStoreError::NotFound`], [`TenantStoreError::Conflict`], or a failure of the store.
    async fn replace(&self, record: TenantRecord) -> Result<Arc<TenantRecord>, TenantStoreError>;

    /// Registers a listener for changes.
    fn subscribe(&self, listener: Weak<dyn TenantListener>) {
        let _ = listener;
    }
}

/// A shared handle is a store, so that the same one can be given to a gate and kept.
#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: TenantStore + ?Sized> TenantStore for Arc<T> {
    fn find_now(&self, id: &TenantId) -> Option<Option<Arc<TenantRecord>>> {
        (**self).find_now(id)
    }

    async fn find(&self, id: &TenantId) -> Result<Option<Arc<TenantRecord>>, TenantStoreError> {
        (**self).find(id).await
    }

    async fn create(&self, record: TenantRecord) -> Result<Arc<TenantRecord>, TenantStoreError> {
        (**self).create(record).await
    }

    async fn replace(&self, record: TenantRecord) -> Result<Arc<TenantRecord>, TenantStoreError> {
        (**self).replace(record).await
    }

    fn subscribe(&self, listener: Weak<dyn TenantListener>) {
        (**self).subscribe(listener);
    }
}
