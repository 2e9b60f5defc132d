use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use async_trait::async_trait;

use super::{KeyDigest, KeyDocument, KeyListener, KeyRecord, KeyStore, KeyStoreError, KeyUse};
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
/// time. When a key was last used is in no document.
pub struct MemoryKeyStore {
    by_digest: papaya::HashMap<KeyDigest, Arc<KeyRecord>>,
    /// Held by each change from its check to its last write; never while listeners are called.
    index: Mutex<Index>,
    /// Of known keys only.
    used: Mutex<HashMap<KeyDigest, Timestamp>>,
    listeners: Listeners<dyn KeyListener>,
}

#[derive(Default)]
struct Index {
    by_id: HashMap<KeyId, KeyDigest>,
    by_tenant: HashMap<TenantId, Vec<KeyDigest>>,
}

impl Index {
    fn forget(&mut self, digest: &KeyDigest, record: &KeyRecord) {
        self.by_id.remove(&record.id);
        if let Some(digests) = self.by_tenant.get_mut(&record.tenant) {
            digests.retain(|known| known != digest);
        }
    }
}

impl MemoryKeyStore {
    /// A store without keys.
    #[must_use]
    pub fn new() -> Self {
        Self {
            by_digest: papaya::HashMap::new(),
            index: Mutex::default(),
            used: Mutex::default(),
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
            for (position, (digest, record)) in document.into_records()?.into_iter().enumerate() {
                store.add(&mut index, digest, record).map_err(|source| {
                    ConfigError::new(format!("keys[{position}]"), "an earlier key is the same")
                        .caused_by(source)
                })?;
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

    fn uses(&self) -> MutexGuard<'_, HashMap<KeyDigest, Timestamp>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Makes of a key what `change` makes of its record, in one step, and tells the listeners; true when it
    /// became another one. `change` is asked while the store is locked. False also when another key has the new
    /// record's id.
    pub(crate) fn change(
        &self,
        digest: &KeyDigest,
        change: impl FnOnce(Option<&KeyRecord>) -> Option<KeyRecord>,
    ) -> bool {
        let version = {
            let mut index = self.lock();
            let old = self.get(digest);
            let Some(new) = change(old.as_deref()) else {
                return false;
            };
            if index
                .by_id
                .get(&new.id)
                .is_some_and(|known| known != digest)
            {
                return false;
            }
            if let Some(old) = &old {
                index.forget(digest, old);
            }
            index.by_id.insert(new.id.clone(), *digest);
            let of_tenant = index.by_tenant.entry(new.tenant.clone());
            of_tenant.or_default().push(*digest);
            let version = new.version;
            // Replaced in one step: a call that comes meanwhile finds one record or the other.
            self.by_digest.pin().insert(*digest, Arc::new(new));
            version
        };
        self.tell(digest, version);
        true
    }

    /// Takes a key out, and says which version it had.
    pub(crate) fn remove(&self, digest: &KeyDigest) -> Option<u64> {
        let version = {
            let mut index = self.lock();
            let old = self.get(digest)?;
            index.forget(digest, &old);
            self.by_digest.pin().remove(digest);
            self.uses().remove(digest);
            old.version
        };
        self.tell(digest, version.saturating_add(1));
        Some(version)
    }

    /// All keys as they are.
    pub(crate) fn records(&self) -> Vec<(KeyDigest, Arc<KeyRecord>)> {
        let keys = self.by_digest.pin();
        keys.iter()
            .map(|(digest, record)| (*digest, Arc::clone(record)))
            .collect()
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

    async fn touch(&self, uses: &[KeyUse]) -> Result<(), KeyStoreError> {
        // Against a removal meanwhile, which takes the two locks in this order too.
        let _index = self.lock();
        let mut used = self.uses();
        let keys = self.by_digest.pin();
        for KeyUse { digest, at, .. } in uses {
            if keys.contains_key(digest) {
                let last = used.entry(*digest).or_insert(*at);
                *last = (*last).max(*at);
            }
        }
        Ok(())
    }

    async fn last_used(
        &self,
        tenant: &TenantId,
    ) -> Result<HashMap<KeyId, Timestamp>, KeyStoreError> {
        let index = self.lock();
        let used = self.uses();
        let digests = index.by_tenant.get(tenant).into_iter().flatten();
        let known = digests.filter_map(|digest| {
            let record = self.get(digest)?;
            Some((record.id.clone(), *used.get(digest)?))
        });
        Ok(known.collect())
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
