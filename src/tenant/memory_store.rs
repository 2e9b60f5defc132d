use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use async_trait::async_trait;

use super::{TenantDocument, TenantListener, TenantRecord, TenantStore, TenantStoreError};
use crate::{error::ConfigError, id::TenantId, listeners::Listeners};

/// Keeps tenants in this process's memory: the default.
///
/// Look-ups neither lock nor wait; changes take turns. Nothing survives the process, so load the tenants
/// from a [`TenantDocument`] at the start, and save [`to_document`](Self::to_document) where they change at
/// run time.
pub struct MemoryTenantStore {
    tenants: papaya::HashMap<TenantId, Arc<TenantRecord>>,
    /// Held by each change from its check to its write; never while listeners are called.
    change: Mutex<()>,
    listeners: Listeners<dyn TenantListener>,
}

impl MemoryTenantStore {
    /// A store without tenants.
    #[must_use]
    pub fn new() -> Self {
        Self {
            tenants: papaya::HashMap::new(),
            change: Mutex::new(()),
            listeners: Listeners::default(),
        }
    }

    /// A store with these tenants. A record whose version is 0 gets 1, others keep theirs.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the entry when two tenants share an id.
    pub fn from_records(
        records: impl IntoIterator<Item = TenantRecord>,
    ) -> Result<Self, ConfigError> {
        let store = Self::new();
        {
            let tenants = store.tenants.pin();
            for (position, mut record) in records.into_iter().enumerate() {
                record.version = record.version.max(1);
                if tenants.contains_key(&record.id) {
                    return Err(ConfigError::new(
                        format!("tenants[{position}].id"),
                        "an earlier tenant has the same: remove one",
                    ));
                }
                tenants.insert(record.id.clone(), Arc::new(record));
            }
        }
        Ok(store)
    }

    /// A store with the tenants of a document.
    ///
    /// # Errors
    ///
    /// As [`MemoryTenantStore::from_records`].
    pub fn from_document(document: TenantDocument) -> Result<Self, ConfigError> {
        Self::from_records(document.into_records())
    }

    /// All tenants as a document, ordered by id.
    #[must_use]
    pub fn to_document(&self) -> TenantDocument {
        let tenants = self.tenants.pin();
        let mut records: Vec<_> = tenants.values().map(Arc::clone).collect();
        records.sort_by(|a, b| a.id.cmp(&b.id));
        records
            .iter()
            .map(|record| TenantRecord::clone(record))
            .collect()
    }

    /// Makes of a tenant what `change` makes of its record, in one step; true when it became another one.
    pub(crate) fn change(
        &self,
        id: &TenantId,
        change: impl FnOnce(Option<&TenantRecord>) -> Option<TenantRecord>,
    ) -> bool {
        // Which error says that nothing changes is nobody's business.
        self.write(id, |present| {
            change(present).ok_or(TenantStoreError::Conflict)
        })
        .is_ok()
    }

    /// All tenants as they are.
    pub(crate) fn records(&self) -> Vec<Arc<TenantRecord>> {
        self.tenants.pin().values().map(Arc::clone).collect()
    }

    fn get(&self, id: &TenantId) -> Option<Arc<TenantRecord>> {
        self.tenants.pin().get(id).map(Arc::clone)
    }

    /// Writes what `change` makes of the present record, then tells the listeners, without its lock.
    fn write(
        &self,
        id: &TenantId,
        change: impl FnOnce(Option<&TenantRecord>) -> Result<TenantRecord, TenantStoreError>,
    ) -> Result<Arc<TenantRecord>, TenantStoreError> {
        let record = {
            let _turn = self.change.lock().unwrap_or_else(PoisonError::into_inner);
            let record = Arc::new(change(self.get(id).as_deref())?);
            self.tenants.pin().insert(id.clone(), Arc::clone(&record));
            record
        };
        self.listeners.tell(|listener| listener.tenant_changed(id));
        Ok(record)
    }
}

#[async_trait]
impl TenantStore for MemoryTenantStore {
    fn find_now(&self, id: &TenantId) -> Option<Option<Arc<TenantRecord>>> {
        Some(self.get(id))
    }

    async fn find(&self, id: &TenantId) -> Result<Option<Arc<TenantRecord>>, TenantStoreError> {
        Ok(self.get(id))
    }

    async fn create(
        &self,
        mut record: TenantRecord,
    ) -> Result<Arc<TenantRecord>, TenantStoreError> {
        record.version = 1;
        self.write(&record.id.clone(), |present| match present {
            Some(_) => Err(TenantStoreError::AlreadyExists),
            None => Ok(record),
        })
    }

    async fn replace(
        &self,
        mut record: TenantRecord,
    ) -> Result<Arc<TenantRecord>, TenantStoreError> {
        self.write(&record.id.clone(), |present| match present {
            None => Err(TenantStoreError::NotFound),
            Some(present) if present.version != record.version => Err(TenantStoreError::Conflict),
            Some(_) => {
                record.version = record.version.saturating_add(1);
                Ok(record)
            }
        })
    }

    fn subscribe(&self, listener: Weak<dyn TenantListener>) {
        self.listeners.add(listener);
    }
}

impl Default for MemoryTenantStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryTenantStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTenantStore")
            .field("tenants", &self.tenants.len())
            .finish_non_exhaustive()
    }
}
