//! Keys in Redis, shared by every process.

mod fields;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, LazyLock, Weak},
};

use async_trait::async_trait;
use redis::Value;

use self::fields::{FIELDS, Kept, digits, digits_or_none, fixed_part};
use super::{KeyDigest, KeyListener, KeyRecord, KeyStore, KeyStoreError, KeyUse};
use crate::{
    clock::Timestamp,
    id::{KeyId, TenantId},
    listeners::Listeners,
    redis_support::{
        Account, ChangeListener, Foreign, Key, Redis, RedisConnectError, RedisFault, Script, status,
    },
};

static CREATE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("create.lua")));
static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("read.lua")));
static REVOKE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("revoke.lua")));
static ROTATE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("rotate.lua")));
static TOUCH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("touch.lua")));

/// How many records one script reads or writes.
const MAX_BATCH: usize = 128;

/// Keys in Redis, by digest, shared by every process.
///
/// # What is guaranteed
///
/// - **Atomic**: a creation, a rotation and a revocation are one script each, in a Cluster too: all keys lie in one
///   slot. A creation that is refused leaves nothing behind.
/// - **Nothing is deleted**: a revoked key's record stays, without a lifetime. A server that evicts keys would forget
///   revocations: never set an `allkeys-` policy.
/// - **Pushed**: every change is published by the script that makes it. Each process forgets what it has cached of the
///   key as soon as it hears so; where it may have missed something it forgets all, within half a second of being
///   able to know. Without any answer of the server, [`CacheSettings`](crate::identity::CacheSettings) bound how long
///   a key is served.
/// - **Sent once**: a change whose answer does not come is not sent again and fails with
///   [`KeyStoreError::Unavailable`]; it may have been made. Revoke again, which keeps the first time; of a key that
///   was issued so, nobody holds the key.
/// - **A failover loses what was not replicated**, revocations among it: see that they stand with
///   [`list`](KeyStore::list) after one.
///
/// # What it costs
///
/// One command for a key that is not cached, two for a change. A key takes about 900 bytes of the server's memory, on
/// one master of a Cluster.
///
/// Cloning gives another handle.
#[derive(Clone)]
pub struct RedisKeyStore {
    redis: Redis,
    told: Arc<Told>,
}

/// Those who hear of changed keys.
#[derive(Default)]
struct Told(Listeners<dyn KeyListener>);

impl ChangeListener for Told {
    fn changed(&self, what: &str) {
        let mut words = what.split(' ');
        let (Some("k"), Some(digest), Some(version)) = (words.next(), words.next(), words.next())
        else {
            return;
        };
        let (digest, version) = (KeyDigest::from_hex(digest), version.parse().ok());
        if let (Some(digest), Some(version)) = (digest, version) {
            self.0
                .tell(|listener| listener.key_changed(&digest, version));
        }
    }

    fn lost(&self) {
        self.0.tell(KeyListener::keys_lost);
    }
}

fn failed(fault: RedisFault) -> KeyStoreError {
    if fault.is_foreign_value() {
        KeyStoreError::Corrupt(fault.into())
    } else {
        KeyStoreError::Unavailable(fault.into())
    }
}

impl RedisKeyStore {
    /// A store over a handle that is connected already.
    #[must_use]
    pub fn new(redis: &Redis) -> Self {
        let told = Arc::new(Told::default());
        let listener: Weak<Told> = Arc::downgrade(&told);
        redis.listen(listener);
        Self {
            redis: redis.clone(),
            told,
        }
    }

    /// Connects to one server with all defaults; share a [`Redis`] where tenants or plans are kept there too.
    ///
    /// # Errors
    ///
    /// [`RedisConnectError`] when the URL cannot be read, or the server cannot be reached or used.
    pub async fn connect(url: impl AsRef<str>) -> Result<Self, RedisConnectError> {
        Ok(Self::new(&Redis::connect(url).await?))
    }

    /// What was answered is no answer to what was asked: something else stands there, or the connection is out of step.
    fn corrupt(&self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> KeyStoreError {
        self.redis.distrust();
        KeyStoreError::Corrupt(cause.into())
    }

    /// Something stands under a key that does not belong there.
    fn foreign(&self, key: &[u8]) -> KeyStoreError {
        self.corrupt(Foreign::at(key))
    }

    fn key(&self, digest: &KeyDigest) -> Key {
        self.redis.account(Account::Key(&digest.to_string()))
    }

    fn tell(&self, digest: &KeyDigest, version: u64) {
        self.told
            .0
            .tell(|listener| listener.key_changed(digest, version));
    }

    async fn get(&self, digest: &KeyDigest) -> Result<Option<Kept>, KeyStoreError> {
        let mut get = redis::cmd("HMGET");
        get.arg(&*self.key(digest)).arg(&FIELDS);
        let value = self.redis.read(&get).await.map_err(failed)?;
        fields::read(value, &digest.to_string()).map_err(|cause| self.corrupt(cause))
    }

    async fn digest_of(&self, id: &KeyId) -> Result<Option<KeyDigest>, KeyStoreError> {
        let key = self.redis.account(Account::KeyId(id.as_str()));
        let mut get = redis::cmd("GET");
        get.arg(&*key);
        match self.redis.read(&get).await.map_err(failed)? {
            Value::Nil => Ok(None),
            value => {
                let digest = status(&value).and_then(KeyDigest::from_hex);
                digest.map(Some).ok_or_else(|| self.foreign(&key))
            }
        }
    }

    /// All keys of a tenant, in the order in which they were made.
    async fn of_tenant(&self, tenant: &TenantId) -> Result<Vec<Kept>, KeyStoreError> {
        let list = self.redis.account(Account::KeysOf(tenant.as_str()));
        let mut range = redis::cmd("LRANGE");
        range.arg(&*list).arg(0).arg(-1);
        let value = self.redis.read(&range).await.map_err(failed)?;
        let digests: Vec<String> =
            redis::from_redis_value(value).map_err(|cause| self.corrupt(cause))?;
        let mut kept = Vec::with_capacity(digests.len());
        for batch in digests.chunks(MAX_BATCH) {
            let keys: Vec<Key> = batch
                .iter()
                .map(|digest| self.redis.account(Account::Key(digest)))
                .collect();
            let none: [&[u8]; 0] = [];
            let records = self.redis.run(&READ, &keys, &none).await.map_err(failed)?;
            let records: Vec<Value> =
                redis::from_redis_value(records).map_err(|cause| self.corrupt(cause))?;
            if records.len() != keys.len() {
                return Err(self.foreign(&list));
            }
            for ((key, digest), record) in keys.iter().zip(batch).zip(records) {
                let record = fields::read(record, digest).map_err(|cause| self.corrupt(cause))?;
                let own = record.filter(|kept| kept.record.tenant == *tenant);
                kept.push(own.ok_or_else(|| self.foreign(key))?);
            }
        }
        Ok(kept)
    }
}

/// A record as the scripts take it.
struct New {
    digest: String,
    fixed: String,
    expiry: String,
    revoked: String,
}

impl New {
    fn of(digest: &KeyDigest, record: &KeyRecord) -> Result<Self, KeyStoreError> {
        Ok(Self {
            digest: digest.to_string(),
            fixed: fixed_part(record).map_err(|cause| KeyStoreError::Corrupt(cause.into()))?,
            expiry: digits_or_none(record.expires_at),
            revoked: digits_or_none(record.revoked_at),
        })
    }
}

#[async_trait]
impl KeyStore for RedisKeyStore {
    async fn find(&self, digest: &KeyDigest) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
        Ok(self.get(digest).await?.map(|kept| kept.record))
    }

    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
        let Some(digest) = self.digest_of(id).await? else {
            return Ok(None);
        };
        match self.find(&digest).await? {
            Some(record) if record.id == *id => Ok(Some(record)),
            _ => Err(self.foreign(&self.redis.account(Account::KeyId(id.as_str())))),
        }
    }

    async fn list(&self, tenant: &TenantId) -> Result<Vec<Arc<KeyRecord>>, KeyStoreError> {
        let kept = self.of_tenant(tenant).await?;
        let mut records: Vec<_> = kept.into_iter().map(|kept| kept.record).collect();
        records.sort_by_key(|record| record.created_at);
        Ok(records)
    }

    async fn create(
        &self,
        digest: KeyDigest,
        mut record: KeyRecord,
    ) -> Result<Arc<KeyRecord>, KeyStoreError> {
        record.version = 1;
        let new = New::of(&digest, &record)?;
        let keys = [
            self.key(&digest),
            self.redis.account(Account::KeyId(record.id.as_str())),
            self.redis.account(Account::KeysOf(record.tenant.as_str())),
            self.redis.account(Account::Changes),
        ];
        let channel = self.redis.changes();
        let arguments: [&[u8]; 5] = [
            new.digest.as_bytes(),
            new.fixed.as_bytes(),
            new.expiry.as_bytes(),
            new.revoked.as_bytes(),
            &channel,
        ];
        let value = self.redis.run(&CREATE, &keys, &arguments).await;
        match status(&value.map_err(failed)?) {
            Some("ok") => {}
            Some("exists") => return Err(KeyStoreError::AlreadyExists),
            _ => return Err(self.foreign(&keys[0])),
        }
        self.tell(&digest, 1);
        Ok(Arc::new(record))
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
        let old_digest = self.digest_of(old).await?.ok_or(KeyStoreError::NotFound)?;
        let new = New::of(&digest, &record)?;
        let keys = [
            self.key(&old_digest),
            self.key(&digest),
            self.redis.account(Account::KeyId(record.id.as_str())),
            self.redis.account(Account::KeysOf(record.tenant.as_str())),
            self.redis.account(Account::Changes),
        ];
        let (old_hex, now, end) = (old_digest.to_string(), digits(now), digits(old_expires_at));
        let channel = self.redis.changes();
        let arguments: [&[u8]; 8] = [
            old_hex.as_bytes(),
            now.as_bytes(),
            end.as_bytes(),
            new.digest.as_bytes(),
            new.fixed.as_bytes(),
            new.expiry.as_bytes(),
            new.revoked.as_bytes(),
            &channel,
        ];
        let value = self.redis.run(&ROTATE, &keys, &arguments).await;
        let version = match value.map_err(failed)? {
            Value::Int(version) => u64::try_from(version).unwrap_or(0),
            value => {
                return Err(match status(&value) {
                    Some("exists") => KeyStoreError::AlreadyExists,
                    Some("unusable") => KeyStoreError::NotUsable,
                    _ => self.foreign(&keys[0]),
                });
            }
        };
        self.tell(&old_digest, version);
        self.tell(&digest, 1);
        Ok(Arc::new(record))
    }

    async fn revoke(&self, id: &KeyId, at: Timestamp) -> Result<Arc<KeyRecord>, KeyStoreError> {
        let digest = self.digest_of(id).await?.ok_or(KeyStoreError::NotFound)?;
        let keys = [self.key(&digest), self.redis.account(Account::Changes)];
        let (hex, at, channel) = (digest.to_string(), digits(at), self.redis.changes());
        let arguments: [&[u8]; 3] = [hex.as_bytes(), at.as_bytes(), &channel];
        let value = self.redis.run(&REVOKE, &keys, &arguments).await;
        let kept =
            fields::read(value.map_err(failed)?, &hex).map_err(|cause| self.corrupt(cause))?;
        let record = kept.ok_or_else(|| self.foreign(&keys[0]))?.record;
        self.tell(&digest, record.version);
        Ok(record)
    }

    async fn touch(&self, uses: &[KeyUse]) -> Result<(), KeyStoreError> {
        for batch in uses.chunks(MAX_BATCH) {
            let keys: Vec<Key> = batch.iter().map(|used| self.key(&used.digest)).collect();
            let times: Vec<String> = batch.iter().map(|used| digits(used.at)).collect();
            self.redis
                .run(&TOUCH, &keys, &times)
                .await
                .map_err(failed)?;
        }
        Ok(())
    }

    async fn last_used(
        &self,
        tenant: &TenantId,
    ) -> Result<HashMap<KeyId, Timestamp>, KeyStoreError> {
        let kept = self.of_tenant(tenant).await?;
        let used = kept.into_iter().filter_map(|kept| {
            let id = kept.record.id.clone();
            Some((id, kept.used?))
        });
        Ok(used.collect())
    }

    fn subscribe(&self, listener: Weak<dyn KeyListener>) {
        self.told.0.add(listener);
    }
}

impl fmt::Debug for RedisKeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisKeyStore")
            .field("redis", &self.redis)
            .finish_non_exhaustive()
    }
}
