//! Trips to the stores, shared by everybody who needs the same key.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use smallvec::SmallVec;

use super::inner::{Inner, is_outdated};
use crate::{
    auth::{AuthRefusal, KeyDigest},
    clock::Now,
    identity::{
        Identity,
        cache::{Fill, Landed, TenantSlot, Ticket},
    },
};

/// How often a fetch is repeated because a change was announced while it ran. Rarely more than once; but stores in
/// memory can be changed without a pause, by a document that is loaded over and over.
const MAX_TRIES: usize = 16;

impl Inner {
    /// Asks the stores, with everybody else who needs the same key.
    pub(super) async fn look_up(
        self: Arc<Self>,
        digests: SmallVec<[KeyDigest; 2]>,
        now: Now,
    ) -> Result<Identity, AuthRefusal> {
        let _seat = Seat::take(&self)?;
        for digest in digests {
            match self.look_up_one(&digest, now).await {
                Err(AuthRefusal::Unknown) => {}
                result => return result,
            }
        }
        Err(AuthRefusal::Unknown)
    }

    async fn look_up_one(
        self: &Arc<Self>,
        digest: &KeyDigest,
        now: Now,
    ) -> Result<Identity, AuthRefusal> {
        // A change announced while the fetch ran makes its answer too old; each try reads later than the last.
        for _ in 0..MAX_TRIES {
            match self.fetch_together(digest, now).await {
                Landed::Entry(entry) if entry.tenant.is_known_changed() => {}
                Landed::Entry(entry) => {
                    let judged = self.judge(digest, &entry, now);
                    if !is_outdated(&judged, &entry) {
                        return judged;
                    }
                }
                Landed::Outdated => {}
                Landed::Refused(refusal) => return Err(refusal),
            }
        }
        Err(AuthRefusal::StoreUnavailable)
    }

    async fn fetch_together(self: &Arc<Self>, digest: &KeyDigest, now: Now) -> Landed {
        let failed = Landed::Refused(AuthRefusal::StoreUnavailable);
        let Ok((mut flight, ticket)) = self.cache.board(digest) else {
            self.counters.turned_away.increment(1);
            return failed;
        };
        if let Some(ticket) = ticket {
            // A task of its own: the request that started the fetch may be given up, the others wait on.
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn(Arc::clone(self).fly(ticket, now))),
                Err(error) => {
                    tracing::error!(%error, "keys are looked up by tasks, which need a tokio runtime");
                    return failed;
                }
            }
        }
        match flight.wait_for(Option::is_some).await {
            Ok(landed) => landed.clone().unwrap_or(failed),
            Err(_) => failed,
        }
    }

    async fn fly(self: Arc<Self>, ticket: Ticket, now: Now) {
        let deadline = self.cache.settings.store_deadline;
        let fetch = self.fetch(ticket.digest(), now);
        let (fill, slot) = tokio::time::timeout(deadline, fetch)
            .await
            .unwrap_or_else(|_| {
                tracing::warn!(?deadline, "the stores of keys and tenants are too slow");
                (Fill::Failed, None)
            });
        match &fill {
            Fill::Failed => self.counters.failed_fetches.increment(1),
            Fill::Found(_) | Fill::TenantOnly => self.counters.fetches.increment(1),
        }
        ticket.land(fill, now, &self.slots);
        // Held until an entry holds it: a slot that nobody holds is gone, and with it what was fetched.
        drop(slot);
    }

    async fn fetch(&self, digest: &KeyDigest, now: Now) -> (Fill, Option<Arc<TenantSlot>>) {
        let micros = now.monotonic_micros();
        let known = self.cache.get(digest);
        let (fill, slot) = match known.filter(|entry| !entry.key_is_due(micros)) {
            Some(entry) => (Fill::TenantOnly, Arc::clone(&entry.tenant)),
            None => match self.keys.find(digest).await {
                Ok(Some(record)) if record.is_usable_at(now.wall()) => {
                    let slot = self.slots.slot(&record.tenant);
                    (Fill::Found(Some(record)), slot)
                }
                Ok(record) => return (Fill::Found(record), None),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "the key store failed");
                    return (Fill::Failed, None);
                }
            },
        };
        let settings = &self.cache.settings;
        if slot.refresh(&*self.tenants, micros, settings).await {
            (fill, Some(slot))
        } else {
            (Fill::Failed, None)
        }
    }
}

/// One of the places for requests that wait for a store.
struct Seat<'a>(&'a AtomicUsize);

impl<'a> Seat<'a> {
    fn take(inner: &'a Inner) -> Result<Self, AuthRefusal> {
        // Made first, so that its drop gives the place back when there was none.
        let seat = Self(&inner.waiting);
        if inner.waiting.fetch_add(1, Ordering::Relaxed) < inner.cache.settings.max_waiting {
            return Ok(seat);
        }
        inner.counters.turned_away.increment(1);
        Err(AuthRefusal::StoreUnavailable)
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
