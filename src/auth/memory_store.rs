use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use async_trait::async_trait;

use super::{KeyDigest, KeyDocument, KeyListener, KeyRecord, KeyStore, KeyStoreError};
use crate::{
    clock::Timestamp,
    error::ConfigError,
    id::{KeyId, TenantId},
    listeners::Listeners,
};

/// Keys in this process's memory: the default, and enough where keys come from a document.
///
/// Look-ups neither lock nor wait; changes take turns. Nothing survives the process, so load the keys from
/// a [`KeyDocument`] at the start, and save [`to_document`](Self::to_document) where keys are issued at run
/// time.
pub struct MemoryKeyStore {
    by_digest: papaya::HashMap<KeyDigest, Arc<KeyRecord>>,
    /// Held by each change from its check to its last write; never while listeners are called.
    index: Mutex<Index>,
    listeners: Listeners<dyn KeyListener>,
}

#[derive(Default)]
struct Index {
    by_id: HashMap<KeyId, KeyDigest>,
    by_tenant: HashMap<TenantId, Vec<KeyDigest>>,
}

impl MemoryKeyStore {
    /// A store without keys.
    #[must_use]
    pub fn new() -> Self {
        Self {
            by_digest: papaya::HashMap::new(),
            index: Mutex::default(),
            listeners: Listeners::default(),
        }
    }

    /// A store with the keys of a document.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the entry and the field when two keys share a digest or an id.
    pub fn from_document(document: KeyDocument) -> Result<Self, ConfigError> {
        let store = Self::new();
        {
            let mut index = store.lock();
            for (position, entry) in document.keys.into_iter().enumerate() {
                let at = format!("keys[{position}]");
                let (digest, record) = entry.into_record().map_err(|error| error.under(&at))?;
                let twice = |field| {
                    ConfigError::new(field, "an earlier key has the same: remove one").under(&at)
                };
                if store.by_digest.pin().contains_key(&digest) {
                    return Err(twice("digest"));
                }
                store
                    .add(&mut index, digest, record)
                    .map_err(|source| twice("id").caused_by(source))?;
            }
        }
        Ok(store)
    }

    /// A store with the keys of an environment variable, in the compact form of
    /// [`KeyDocument::from_compact`].
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when the variable is not set or not UTF-8, or names the entry and the field that is
    /// wrong. The variable's value is never part of the message.
    pub fn from_env(variable: &str) -> Result<Self, ConfigError> {
        let text = std::env::var(variable).map_err(|error| {
            // The error for a value that is not UTF-8 would show the value.
            let reason = match error {
                std::env::VarError::NotPresent => "the environment variable is not set",
                std::env::VarError::NotUnicode(_) => "the environment variable is not UTF-8",
            };
            ConfigError::new(variable, reason)
        })?;
        KeyDocument::from_compact(&text)
            .and_then(Self::from_document)
            .map_err(|error| error.under(variable))
    }

    /// All keys as a document, ordered by tenant and age; never holds a raw key.
    #[must_use]
    pub fn to_document(&self) -> KeyDocument {
        let keys = self.by_digest.pin();
        let mut entries: Vec<_> = keys.iter().collect();
        entries.sort_by(|(_, a), (_, b)| {
            let order = |record: &KeyRecord| (record.tenant.clone(), record.created_at);
            order(a).cmp(&order(b)).then_with(|| a.id.cmp(&b.id))
        });
        entries
            .into_iter()
            .map(|(digest, record)| (*digest, KeyRecord::clone(record)))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        // Nothing that may panic runs between two writes of a change, so the index is whole all the same.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a record unless its digest or id exists.
    fn add(
        &self,
        index: &mut Index,
        digest: KeyDigest,
        record: KeyRecord,
    ) -> Result<Arc<KeyRecord>, KeyStoreError> {
        let keys = self.by_digest.pin();
        if keys.contains_key(&digest) {
            return Err(KeyStoreError::AlreadyExists);
        }
        match index.by_id.entry(record.id.clone()) {
            Entry::Occupied(_) => return Err(KeyStoreError::AlreadyExists),
            Entry::Vacant(slot) => slot.insert(digest),
        };
        index
            .by_tenant
            .entry(record.tenant.clone())
            .or_default()
            .push(digest);
        let record = Arc::new(record);
        keys.insert(digest, Arc::clone(&record));
        Ok(record)
    }

    fn current(
        &self,
        index: &Index,
        id: &KeyId,
    ) -> Result<(KeyDigest, Arc<KeyRecord>), KeyStoreError> {
        let digest = *index.by_id.get(id).ok_or(KeyStoreError::NotFound)?;
        let record = self.get(&digest).ok_or(KeyStoreError::NotFound)?;
        Ok((digest, record))
    }

    fn get(&self, digest: &KeyDigest) -> Option<Arc<KeyRecord>> {
        self.by_digest.pin().get(digest).map(Arc::clone)
    }

    /// Writes a changed record; its version grows by one.
    fn write(&self, digest: KeyDigest, mut record: KeyRecord) -> Arc<KeyRecord> {
        record.version = record.version.saturating_add(1);
        let record = Arc::new(record);
        self.by_digest.pin().insert(digest, Arc::clone(&record));
        record
    }

    fn tell(&self, digest: &KeyDigest, version: u64) {
        self.listeners
            .tell(|listener| listener.key_changed(digest, version));
    }
}

#[async_trait]
impl KeyStore for MemoryKeyStore {
    fn find_now(&self, digest: &KeyDigest) -> Option<Option<Arc<KeyRecord>>> {
        Some(self.get(digest))
    }

    async fn find(&self, digest: &KeyDigest) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
        Ok(self.get(digest))
    }

    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
        let digest = self.lock().by_id.get(id).copied();
        Ok(digest.and_then(|digest| self.get(&digest)))
    }

    async fn list(&self, tenant: &TenantId) -> Result<Vec<Arc<KeyRecord>>, KeyStoreError> {
        let mut records: Vec<_> = {
            let index = self.lock();
            let digests = index.by_tenant.get(tenant).into_iter().flatten();
            digests.filter_map(|digest| self.get(digest)).collect()
        };
        records.sort_by_key(|record| record.created_at);
        Ok(records)
    }

    async fn create(
        &self,
        digest: KeyDigest,
        mut record: KeyRecord,
    ) -> Result<Arc<KeyRecord>, KeyStoreError> {
        record.version = 1;
        let record = self.add(&mut self.lock(), digest, record)?;
        self.tell(&digest, record.version);
        Ok(record)
    }

    async fn rotate(
        &self,
        old: &KeyId,
        old_expires_at: Timestamp,
        digest: KeyDigest,
        mut record: KeyRecord,
        now: Timestamp,
    ) -> Result<Arc<KeyRecord>, KeyStoreError> {
        record.version = 1;
        let (old_digest, old_version, record) = {
            let mut index = self.lock();
            let (old_digest, old) = self.current(&index, old)?;
            if !old.is_usable_at(now) {
                return Err(KeyStoreError::NotUsable);
            }
            let record = self.add(&mut index, digest, record)?;
            let mut old = KeyRecord::clone(&old);
            old.expires_at = Some(
                old.expires_at
                    .map_or(old_expires_at, |own| own.min(old_expires_at)),
            );
            (old_digest, self.write(old_digest, old).version, record)
        };
        self.tell(&old_digest, old_version);
        self.tell(&digest, record.version);
        Ok(record)
    }

    async fn revoke(&self, id: &KeyId, at: Timestamp) -> Result<Arc<KeyRecord>, KeyStoreError> {
        let (digest, record) = {
            let index = self.lock();
            let (digest, record) = self.current(&index, id)?;
            if record.revoked_at.is_some() {
                return Ok(record);
            }
            let mut record = KeyRecord::clone(&record);
            record.revoked_at = Some(at);
            (digest, self.write(digest, record))
        };
        self.tell(&digest, record.version);
        Ok(record)
    }

    fn subscribe(&self, listener: Weak<dyn KeyListener>) {
        self.listeners.add(listener);
    }
}

impl Default for MemoryKeyStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryKeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryKeyStore")
            .field("keys", &self.by_digest.len())
            .finish_non_exhaustive()
    }
}
