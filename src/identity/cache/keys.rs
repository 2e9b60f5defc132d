//! What is known of keys, and the fetches under way.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use quick_cache::{UnitWeighter, sync::Cache, sync::DefaultLifecycle};
use tokio::sync::watch;

use super::{CacheSettings, Entry, TenantSlots, digest_map::DigestState};
use crate::{
    auth::{AuthRefusal, KeyDigest, KeyRecord},
    clock::Now,
};

/// Working keys, keys that do not work, and the fetches under way.
///
/// Everything that puts an entry in or takes one out does so under one lock, so that a fetch that began
/// before a change can be told from one that began after it. A hit takes no lock of this type.
#[derive(Debug)]
pub(in crate::identity) struct KeyCache {
    working: DigestCache<Arc<Entry>>,
    refused: DigestCache<Refused>,
    /// The least version that a digest's record must have since a change was announced: a replica that lags
    /// behind must not bring a revoked key back.
    announced: DigestCache<Announced>,
    fills: Mutex<Fills>,
    epoch: AtomicU64,
    pub(in crate::identity) settings: CacheSettings,
}

/// Values by digest, bounded.
pub(in crate::identity) type DigestCache<V> = Cache<KeyDigest, V, UnitWeighter, DigestState>;

#[derive(Clone, Copy, Debug)]
struct Refused {
    refusal: AuthRefusal,
    until: u64,
}

#[derive(Clone, Copy, Debug)]
struct Announced {
    version: u64,
    /// When a fill first met it: who announces has no clock.
    met_at: Option<u64>,
}

#[derive(Debug)]
struct Fills {
    flights: HashMap<KeyDigest, (u64, Flight), DigestState>,
    n_started: u64,
}

/// The end of a fetch, awaited by everybody who needs the same key.
type Flight = watch::Receiver<Option<Landed>>;

/// What a fetch brought.
#[derive(Debug)]
pub(in crate::identity) enum Fill {
    /// The stores failed or were too slow.
    Failed,
    /// The key store's answer.
    Found(Option<Arc<KeyRecord>>),
    /// The key needed no fetch, its tenant was fetched.
    TenantOnly,
}

/// What the waiters of a fetch are told.
#[derive(Clone, Debug)]
pub(in crate::identity) enum Landed {
    Entry(Arc<Entry>),
    /// The store's answer is older than a change that was announced: to be fetched again.
    Outdated,
    Refused(AuthRefusal),
}

/// Which of a fill's results may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    Everything,
    Nothing,
    Working,
}

/// Too many fetches are under way.
#[derive(Debug)]
pub(in crate::identity) struct TooMany;

impl KeyCache {
    pub(in crate::identity) fn new(settings: CacheSettings) -> Self {
        Self {
            working: digest_cache(settings.capacity),
            refused: digest_cache(settings.negative_capacity),
            announced: digest_cache(settings.negative_capacity),
            fills: Mutex::new(Fills {
                flights: HashMap::with_hasher(DigestState::new()),
                n_started: 0,
            }),
            epoch: AtomicU64::new(0),
            settings,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Fills> {
        // Each step leaves map and caches whole, so what a panic elsewhere poisoned is sound.
        self.fills.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry of a working key; whether it is due is the caller's question.
    pub(in crate::identity) fn get(&self, digest: &KeyDigest) -> Option<Arc<Entry>> {
        self.working.get(digest)
    }

    /// Why a key does not work, while that is remembered.
    pub(in crate::identity) fn refusal(&self, digest: &KeyDigest, now: u64) -> Option<AuthRefusal> {
        let refused = self.refused.get(digest)?;
        (now < refused.until).then_some(refused.refusal)
    }

    /// Grows with each change; read before a store is asked without a flight.
    pub(in crate::identity) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Takes what a store answered at once, asked after `epoch` was read. What does not work is not kept:
    /// such a store is as quick as this cache.
    pub(in crate::identity) fn accept_now(
        &self,
        digest: &KeyDigest,
        record: Option<Arc<KeyRecord>>,
        epoch: u64,
        now: Now,
        tenants: &TenantSlots,
    ) -> Landed {
        let _fills = self.lock();
        let keep = if self.epoch() == epoch {
            Keep::Working
        } else {
            Keep::Nothing
        };
        self.accept(digest, record, keep, now, tenants)
    }

    /// Joins the fetch of this key that is under way, or starts one: then there is a ticket, and its holder
    /// must fetch and [`land`](Ticket::land).
    pub(in crate::identity) fn board(
        self: &Arc<Self>,
        digest: &KeyDigest,
    ) -> Result<(Flight, Option<Ticket>), TooMany> {
        let mut fills = self.lock();
        if let Some((_, flight)) = fills.flights.get(digest) {
            return Ok((flight.clone(), None));
        }
        if fills.flights.len() >= self.settings.max_waiting {
            return Err(TooMany);
        }
        fills.n_started += 1;
        let id = fills.n_started;
        let (sender, flight) = watch::channel(None);
        fills.flights.insert(*digest, (id, flight.clone()));
        let ticket = Ticket {
            cache: Arc::clone(self),
            digest: *digest,
            id,
            sender,
        };
        Ok((flight, Some(ticket)))
    }

    fn land(
        &self,
        digest: &KeyDigest,
        id: u64,
        fill: Fill,
        now: Now,
        tenants: &TenantSlots,
    ) -> Landed {
        let mut fills = self.lock();
        // A change that was announced meanwhile has taken the flight out: then nothing of it is kept.
        let is_current = fills.close(digest, id);
        match fill {
            Fill::Found(record) => {
                let keep = if is_current {
                    Keep::Everything
                } else {
                    Keep::Nothing
                };
                self.accept(digest, record, keep, now, tenants)
            }
            Fill::TenantOnly => self.get(digest).map_or(Landed::Outdated, Landed::Entry),
            Fill::Failed => self.stale(digest, now),
        }
    }

    /// What can be served of a key while its store fails.
    fn stale(&self, digest: &KeyDigest, now: Now) -> Landed {
        let now = now.monotonic_micros();
        let settings = &self.settings;
        self.get(digest)
            .filter(|entry| !entry.key_is_due(now) || entry.outlives_error(now, settings))
            .filter(|entry| !entry.tenant.is_due(now) || entry.tenant.outlives_error(now, settings))
            .map_or(
                Landed::Refused(AuthRefusal::StoreUnavailable),
                Landed::Entry,
            )
    }

    /// Called under the lock.
    fn accept(
        &self,
        digest: &KeyDigest,
        record: Option<Arc<KeyRecord>>,
        keep: Keep,
        now: Now,
        tenants: &TenantSlots,
    ) -> Landed {
        let micros = now.monotonic_micros();
        let refusal = match record {
            None => AuthRefusal::Unknown,
            Some(record) if record.version < self.least_version(digest, micros) => {
                return Landed::Outdated;
            }
            Some(record) if record.revoked_at.is_some() => AuthRefusal::Revoked,
            Some(record) if !record.is_usable_at(now.wall()) => AuthRefusal::Expired,
            Some(record) => return self.accept_working(digest, record, keep, now, tenants),
        };
        if keep != Keep::Nothing {
            self.working.remove(digest);
        }
        if keep == Keep::Everything {
            let until = self.settings.negative_until(micros);
            self.refused.insert(*digest, Refused { refusal, until });
        }
        Landed::Refused(refusal)
    }

    fn accept_working(
        &self,
        digest: &KeyDigest,
        record: Arc<KeyRecord>,
        keep: Keep,
        now: Now,
        tenants: &TenantSlots,
    ) -> Landed {
        let micros = now.monotonic_micros();
        if let Some(known) = self.get(digest) {
            if known.record == record {
                // The identity is kept, and with it the limiter's way to its counts.
                if keep != Keep::Nothing {
                    known.renew(micros, &self.settings);
                }
                return Landed::Entry(known);
            }
            if record.version < known.record.version && known.is_alive(micros, &self.settings) {
                // A replica lags behind. Past the entry's life a store restored from a backup is believed.
                return self.stale(digest, now);
            }
        }
        let tenant = tenants.slot(&record.tenant);
        let entry = Arc::new(Entry::new(record, tenant, micros, &self.settings));
        if keep != Keep::Nothing {
            self.working.insert(*digest, Arc::clone(&entry));
            self.refused.remove(digest);
        }
        Landed::Entry(entry)
    }

    /// The least version that counts, for as long as an entry could have lived since.
    fn least_version(&self, digest: &KeyDigest, now: u64) -> u64 {
        let Some(announced) = self.announced.get(digest) else {
            return 0;
        };
        let met_at = announced.met_at.unwrap_or(now);
        if now >= self.settings.end_of_life(met_at) {
            self.announced.remove(digest);
            return 0;
        }
        if announced.met_at.is_none() {
            let met_at = Some(now);
            self.announced.insert(
                *digest,
                Announced {
                    met_at,
                    ..announced
                },
            );
        }
        announced.version
    }

    /// A change was announced. When it returns, nothing older is served to a request that comes after.
    pub(in crate::identity) fn changed(&self, digest: &KeyDigest, version: u64) {
        let mut fills = self.lock();
        self.epoch.fetch_add(1, Ordering::Release);
        fills.flights.remove(digest);
        self.refused.remove(digest);
        if let Some(entry) = self.get(digest)
            && entry.record.version <= version
        {
            entry.forget();
            self.working.remove(digest);
        }
        let known = self.announced.get(digest).map_or(0, |known| known.version);
        if version > known {
            let met_at = None;
            self.announced
                .insert(*digest, Announced { version, met_at });
        }
    }

    /// Changes may have been missed.
    pub(in crate::identity) fn forget_all(&self) {
        let mut fills = self.lock();
        self.epoch.fetch_add(1, Ordering::Release);
        fills.flights.clear();
        self.working.clear();
        self.refused.clear();
        self.announced.clear();
    }

    /// How many working keys and how many others are kept.
    pub(in crate::identity) fn n_kept(&self) -> (usize, usize) {
        (self.working.len(), self.refused.len())
    }
}

impl Fills {
    /// Takes a flight out; `false` when it is out already.
    fn close(&mut self, digest: &KeyDigest, id: u64) -> bool {
        let is_current = self.flights.get(digest).is_some_and(|(own, _)| *own == id);
        if is_current {
            self.flights.remove(digest);
        }
        is_current
    }
}

pub(in crate::identity) fn digest_cache<V: Clone>(capacity: usize) -> DigestCache<V> {
    Cache::with(
        capacity,
        capacity as u64,
        UnitWeighter,
        DigestState::new(),
        DefaultLifecycle::default(),
    )
}

/// The duty to end a fetch. Dropped without [`land`](Self::land), for example by a panic of the store, it
/// lets the next request start another; the waiters learn of it by the channel's end.
#[derive(Debug)]
pub(in crate::identity) struct Ticket {
    cache: Arc<KeyCache>,
    digest: KeyDigest,
    id: u64,
    sender: watch::Sender<Option<Landed>>,
}

impl Ticket {
    pub(in crate::identity) const fn digest(&self) -> &KeyDigest {
        &self.digest
    }

    /// Keeps what a fetch that began at `now` brought, and tells the waiters.
    pub(in crate::identity) fn land(self, fill: Fill, now: Now, tenants: &TenantSlots) {
        let landed = self.cache.land(&self.digest, self.id, fill, now, tenants);
        self.sender.send_replace(Some(landed));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cache.lock().close(&self.digest, self.id);
    }
}
