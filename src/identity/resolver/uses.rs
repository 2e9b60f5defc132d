//! When keys were last used, on its way to their store.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crossbeam_queue::ArrayQueue;

use super::{KeyAuthenticator, inner::Inner};
use crate::{
    auth::{KeyDigest, KeyStore, KeyUse},
    identity::cache::DigestState,
};

/// How many uses may wait: 256 KiB of them. Of more, each key's next use is noted instead.
const MAX_WAITING: usize = 4_096;
/// Of how many keys it is known that they were handed over in this minute.
const MAX_WRITTEN: usize = 65_536;
/// What a store is handed at once.
const MAX_BATCH: usize = 512;
/// So many ticks of the recorder lie between two writes: a second.
const TICKS_BETWEEN: u32 = 10;

/// Uses that wait to be written, bounded.
pub(super) struct Uses {
    waiting: ArrayQueue<KeyUse>,
    is_writing: AtomicBool,
    minute: Mutex<Minute>,
}

/// Which keys were handed over in this minute: where the cache is too small for its keys, each of them is a new
/// entry again and again, and its use new with it.
struct Minute {
    number: u64,
    written: HashSet<KeyDigest, DigestState>,
}

impl Uses {
    pub(super) fn new() -> Self {
        let minute = Minute {
            number: 0,
            written: HashSet::with_hasher(DigestState::new()),
        };
        Self {
            waiting: ArrayQueue::new(MAX_WAITING),
            is_writing: AtomicBool::new(false),
            minute: Mutex::new(minute),
        }
    }

    /// False when there is no room. Never waits.
    pub(super) fn note(&self, used: KeyUse) -> bool {
        self.waiting.push(used).is_ok()
    }

    /// The next of what waits, each key once a minute.
    fn take(&self) -> Vec<KeyUse> {
        let mut minute = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = Vec::new();
        while batch.len() < MAX_BATCH
            && let Some(used) = self.waiting.pop()
        {
            let number = used.at.as_unix_seconds() / 60;
            if number != minute.number || minute.written.len() >= MAX_WRITTEN {
                minute.number = number;
                minute.written.clear();
            }
            if minute.written.insert(used.digest) {
                batch.push(used);
            }
        }
        batch
    }

    pub(super) async fn write(&self, keys: &dyn KeyStore, deadline: Duration) {
        if self.is_writing.swap(true, Ordering::Acquire) {
            return;
        }
        let _writing = Writing(&self.is_writing);
        loop {
            let batch = self.take();
            if batch.is_empty() {
                return;
            }
            match tokio::time::timeout(deadline, keys.touch(&batch)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "the last use of keys could not be written");
                    return;
                }
                Err(_) => {
                    tracing::warn!(?deadline, "the key store is too slow to take last uses");
                    return;
                }
            }
        }
    }
}

/// Lets the next one write, also when this one is given up.
struct Writing<'a>(&'a AtomicBool);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl KeyAuthenticator {
    /// Hands the noted uses to the store, every tenth time that it is called; false when there is nothing more to
    /// come.
    pub(crate) fn write_uses_by_tick(&self) -> impl FnMut() -> bool + Send + use<> {
        let inner: Weak<Inner> = Arc::downgrade(&self.inner);
        let mut n_ticks = 0_u32;
        move || {
            let Some(inner) = inner.upgrade() else {
                return false;
            };
            n_ticks = (n_ticks + 1) % TICKS_BETWEEN;
            if n_ticks == 0
                && !inner.uses.waiting.is_empty()
                && let Ok(runtime) = tokio::runtime::Handle::try_current()
            {
                let known = Self { inner };
                drop(runtime.spawn(async move { known.write_uses().await }));
            }
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::Timestamp, id::KeyId};

    fn used(n: u64, second: u64) -> KeyUse {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&n.to_be_bytes());
        let id = KeyId::new(format!("k{n}")).unwrap();
        KeyUse::new(
            KeyDigest::from_bytes(digest),
            id,
            Timestamp::from_unix_seconds(second),
        )
    }

    #[test]
    fn each_key_is_handed_over_once_a_minute_and_never_more_wait_than_fit() {
        let uses = Uses::new();
        for second in [1, 2, 59] {
            assert!(uses.note(used(1, second)));
        }
        assert_eq!(uses.take(), [used(1, 1)]);
        assert!(uses.note(used(1, 30)) && uses.note(used(1, 61)));
        assert_eq!(uses.take(), [used(1, 61)]);
        let n_noted = (0..100_000).filter(|n| uses.note(used(*n, 120))).count();
        assert_eq!(n_noted, MAX_WAITING);
        let mut n_taken = 0;
        loop {
            let batch = uses.take();
            assert!(batch.len() <= MAX_BATCH);
            if batch.is_empty() {
                break;
            }
            n_taken += batch.len();
        }
        assert_eq!(n_taken, MAX_WAITING);
    }
}
