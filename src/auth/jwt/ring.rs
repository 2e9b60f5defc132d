//! The keys of one issuer, kept up to date.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use metrics::Counter;
use tokio::sync::watch;

use super::{Jwks, JwksError, JwksRefresh, JwksSource, refresh::Age};

/// The keys of one issuer.
///
/// A hit reads one pointer and two numbers. Fetches are rare: one at a time, and none sooner after another than
/// the settings say, whoever asks.
pub(crate) struct KeyRing {
    /// `None` for keys that are a setting.
    source: Option<Box<dyn JwksSource>>,
    settings: JwksRefresh,
    good: ArcSwapOption<KeySet>,
    /// Monotonic microseconds before which the source is not asked again.
    next_try: AtomicU64,
    /// Whether the last fetch brought nothing.
    failing: AtomicBool,
    flight: Mutex<Option<Flight>>,
    answered: Counter,
    failed: Counter,
}

/// The end of the fetch that is under way.
type Flight = watch::Receiver<bool>;

/// The last good set.
#[derive(Debug)]
pub(crate) struct KeySet {
    pub(super) keys: Jwks,
    /// Another number for another set.
    pub(crate) generation: u64,
    fetched_at: u64,
}

impl KeySet {
    /// Whether the set still has the key that verified a token.
    pub(crate) fn has(&self, fingerprint: &[u8; 32]) -> bool {
        self.keys.has(fingerprint)
    }
}

/// What can be judged by now.
#[derive(Debug)]
pub(crate) enum Ready {
    /// By these keys.
    Keys(Arc<KeySet>),
    /// A fetch must end first, see [`KeyRing::refresh`].
    Wait,
    /// Nothing: there are no keys, and they were asked for just now.
    Unavailable,
}

impl KeyRing {
    pub(super) fn fixed(keys: Jwks) -> Self {
        let ring = Self::empty(None, JwksRefresh::new());
        ring.land(Ok(keys), 0);
        ring
    }

    pub(super) fn fetched(source: Box<dyn JwksSource>, settings: JwksRefresh) -> Self {
        Self::empty(Some(source), settings)
    }

    fn empty(source: Option<Box<dyn JwksSource>>, settings: JwksRefresh) -> Self {
        let counter = |result: &'static str| metrics::counter!("tollgate_jwks_refreshes_total", "result" => result);
        Self {
            source,
            settings,
            good: ArcSwapOption::empty(),
            next_try: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            flight: Mutex::new(None),
            answered: counter("answered"),
            failed: counter("failed"),
        }
    }

    /// The keys to judge by at `now`. Starts a fetch beside the traffic where one is due.
    pub(crate) fn ready(self: &Arc<Self>, now: u64) -> Ready {
        let (mut keys, is_due) = self.usable(now);
        if is_due && self.start(now) {
            (keys, _) = self.usable(now);
        }
        match keys {
            Some(keys) => Ready::Keys(keys),
            None if self.lock().is_some() => Ready::Wait,
            None => Ready::Unavailable,
        }
    }

    /// The keys, where they may be used, and whether they should be fetched anew.
    fn usable(&self, now: u64) -> (Option<Arc<KeySet>>, bool) {
        let Some(keys) = self.good.load_full() else {
            return (None, true);
        };
        if self.source.is_none() {
            return (Some(keys), false);
        }
        match self.settings.age(now.saturating_sub(keys.fetched_at)) {
            Age::Young => (Some(keys), false),
            Age::Good => (Some(keys), true),
            // The first failure is waited for; from then on nobody waits for a source that is down.
            Age::Stale if self.is_failing() => (Some(keys), true),
            Age::Stale | Age::Dead => (None, true),
        }
    }

    /// Whether a [`refresh`](Self::refresh) at `now` would ask the source, or wait for one that does.
    pub(crate) fn may_refresh(&self, now: u64) -> bool {
        self.source.is_some() && (self.may_ask(now) || self.lock().is_some())
    }

    fn may_ask(&self, now: u64) -> bool {
        now >= self.next_try.load(Ordering::Acquire)
    }

    /// Whether the last fetch brought nothing: what the keys lack, the source may have.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Acquire)
    }

    /// Asks the source, unless it was asked just now, and waits for the fetch under way.
    pub(crate) async fn refresh(self: &Arc<Self>, now: u64) {
        if self.start(now) {
            return;
        }
        let flight = self.lock().clone();
        if let Some(mut flight) = flight {
            // An error is the end of a fetch too.
            let _ = flight.wait_for(|landed| *landed).await;
        }
    }

    /// Starts a fetch, unless one is under way or was just now; `true` when it has landed already.
    fn start(self: &Arc<Self>, now: u64) -> bool {
        let Some(source) = &self.source else {
            return false;
        };
        if !self.may_ask(now) {
            return false;
        }
        let landing = {
            let mut flight = self.lock();
            if flight.is_some() || !self.may_ask(now) {
                return false;
            }
            self.next_try
                .store(self.settings.next_try(now), Ordering::Release);
            let (sender, receiver) = watch::channel(false);
            *flight = Some(receiver);
            Landing {
                has_landed: false,
                ring: Arc::clone(self),
                sender,
            }
        };
        if let Some(result) = source.fetch_now() {
            landing.land(result, now);
            return true;
        }
        match tokio::runtime::Handle::try_current() {
            // A task of its own: the request that started the fetch may be given up, the others wait on.
            Ok(runtime) => drop(runtime.spawn(landing.fly(now))),
            Err(error) => {
                tracing::error!(%error, "key sets are fetched by tasks, which need a tokio runtime");
            }
        }
        false
    }

    /// Keeps what a fetch that began at `now` brought. An error changes no keys.
    fn land(&self, result: Result<Jwks, JwksError>, now: u64) {
        match result {
            Ok(keys) => {
                let known = self.good.load();
                let generation = match &*known {
                    Some(known) if known.keys.is_same_as(&keys) => known.generation,
                    Some(known) => known.generation + 1,
                    None => 1,
                };
                self.good.store(Some(Arc::new(KeySet {
                    keys,
                    generation,
                    fetched_at: now,
                })));
                self.failing.store(false, Ordering::Release);
                self.answered.increment(1);
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(target: "tollgate::auth", error, "no key set; the last good one stays");
                self.failing.store(true, Ordering::Release);
                self.failed.increment(1);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Flight>> {
        // The flight is replaced as a whole, so what a panic elsewhere poisoned is sound.
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The duty to end a fetch. Dropped without [`land`](Self::land), by a panic of the source or by a runtime that
/// stops, the fetch has failed; the next one may start.
struct Landing {
    has_landed: bool,
    ring: Arc<KeyRing>,
    sender: watch::Sender<bool>,
}

impl Landing {
    async fn fly(self, now: u64) {
        let Some(source) = &self.ring.source else {
            return;
        };
        let deadline = self.ring.settings.deadline;
        let result = tokio::time::timeout(deadline, source.fetch())
            .await
            .unwrap_or_else(|elapsed| Err(JwksError::Unavailable(elapsed.into())));
        self.land(result, now);
    }

    fn land(mut self, result: Result<Jwks, JwksError>, now: u64) {
        self.has_landed = true;
        self.ring.land(result, now);
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if !self.has_landed {
            self.ring.failing.store(true, Ordering::Release);
            self.ring.failed.increment(1);
        }
        *self.ring.lock() = None;
        self.sender.send_replace(true);
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing")
            .field("source", &self.source)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
