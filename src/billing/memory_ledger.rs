use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

use super::{
    Account, AccountStore, Claim, Claimed, DeadLetter, EventKey, EventLedger, LedgerError,
    MIN_RETENTION, Try,
    ledger::{check_retention, token},
};
use crate::{
    clock::{Clock, SystemClock, Timestamp},
    error::ConfigError,
};

/// Events and accounts in this process's memory: for tests, and for a service of one process whose provider can be asked
/// again for everything after a restart.
///
/// What it knows does not survive the process: an event that is sent again afterwards is new. Events that are older than
/// the retention are forgotten as others come.
pub struct MemoryLedger {
    clock: Arc<dyn Clock>,
    retention: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    accounts: BTreeMap<Arc<str>, Account>,
    dead: BTreeMap<EventKey, DeadLetter>,
    /// Keys in the order of their first claims.
    order: VecDeque<(Timestamp, EventKey)>,
    events: HashMap<EventKey, Event>,
}

struct Event {
    fingerprint: [u8; 32],
    attempts: u32,
    progress: Progress,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Free,
    Claimed { token: u64, until: Timestamp },
    Done,
}

impl MemoryLedger {
    /// An empty ledger that remembers events for 30 days.
    #[must_use]
    pub fn new() -> Self {
        Self {
            clock: SystemClock::shared(),
            retention: MIN_RETENTION,
            state: Mutex::default(),
        }
    }

    /// Measures leases and retention by this clock.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// How long events are remembered.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when it is less than 30 days.
    pub fn retention(mut self, retention: Duration) -> Result<Self, ConfigError> {
        self.retention = check_retention(retention)?;
        Ok(self)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget(&mut self, before: Timestamp) {
        while let Some((first, _)) = self.order.front()
            && *first < before
        {
            if let Some((_, key)) = self.order.pop_front() {
                self.events.remove(&key);
            }
        }
    }

    /// The event of a claim that still holds.
    fn held(&mut self, claim: &Claim) -> Option<&mut Event> {
        let event = self.events.get_mut(&claim.key)?;
        match event.progress {
            Progress::Claimed { token, .. } if token == claim.token => Some(event),
            _ => None,
        }
    }
}

#[async_trait]
impl EventLedger for MemoryLedger {
    async fn claim(
        &self,
        key: &EventKey,
        fingerprint: &[u8; 32],
        lease: Duration,
    ) -> Result<Claimed, LedgerError> {
        let now = self.clock.now().wall();
        let token = token()?;
        let mut state = self.state();
        state.forget(now.saturating_sub(self.retention));
        if !state.events.contains_key(key) {
            state.order.push_back((now, key.clone()));
        }
        let event = state.events.entry(key.clone()).or_insert(Event {
            fingerprint: *fingerprint,
            attempts: 0,
            progress: Progress::Free,
        });
        if event.fingerprint != *fingerprint {
            return Ok(Claimed::OtherContent);
        }
        match event.progress {
            Progress::Done => return Ok(Claimed::Done),
            Progress::Claimed { until, .. } if now < until => {
                return Ok(Claimed::InProgress { until });
            }
            Progress::Claimed { .. } | Progress::Free => {}
        }
        event.attempts = event.attempts.saturating_add(1);
        let until = now.saturating_add(lease);
        event.progress = Progress::Claimed { token, until };
        Ok(Claimed::New(Claim::new(key.clone(), token, event.attempts)))
    }

    async fn complete(&self, claim: &Claim) -> Result<(), LedgerError> {
        let mut state = self.state();
        let event = state.held(claim).ok_or(LedgerError::ClaimLost)?;
        event.progress = Progress::Done;
        Ok(())
    }

    async fn release(&self, claim: &Claim, outcome: Try) -> Result<(), LedgerError> {
        if let Some(event) = self.state().held(claim) {
            event.progress = Progress::Free;
            if outcome == Try::Forgiven {
                event.attempts = event.attempts.saturating_sub(1);
            }
        }
        Ok(())
    }

    async fn bury(&self, claim: &Claim, letter: DeadLetter) -> Result<(), LedgerError> {
        let mut state = self.state();
        let event = state.held(claim).ok_or(LedgerError::ClaimLost)?;
        event.progress = Progress::Done;
        state.dead.insert(claim.key.clone(), letter);
        Ok(())
    }

    async fn dead_letters(
        &self,
        endpoint: &str,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, LedgerError> {
        let state = self.state();
        let of_endpoint = state.dead.values();
        let mut letters: Vec<_> = of_endpoint
            .filter(|letter| *letter.key.endpoint == *endpoint)
            .cloned()
            .collect();
        letters.sort_by(|a, b| (a.buried_at, &a.key).cmp(&(b.buried_at, &b.key)));
        letters.truncate(limit);
        Ok(letters)
    }

    async fn reopen(&self, key: &EventKey) -> Result<DeadLetter, LedgerError> {
        let mut state = self.state();
        let letter = state.dead.get(key).cloned().ok_or(LedgerError::NotFound)?;
        if let Some(event) = state.events.get_mut(key)
            && event.progress == Progress::Done
        {
            event.progress = Progress::Free;
            event.attempts = 0;
        }
        Ok(letter)
    }

    async fn discard(&self, key: &EventKey) -> Result<(), LedgerError> {
        let removed = self.state().dead.remove(key);
        removed.map(drop).ok_or(LedgerError::NotFound)
    }
}

#[async_trait]
impl AccountStore for MemoryLedger {
    async fn load(&self, customer: &str) -> Result<Option<Account>, LedgerError> {
        Ok(self.state().accounts.get(customer).cloned())
    }

    async fn save(&self, account: &Account) -> Result<(), LedgerError> {
        let mut state = self.state();
        let present = state.accounts.get(account.customer());
        if present.map_or(0, Account::version) != account.version() {
            return Err(LedgerError::Conflict);
        }
        let saved = account.at_version(account.version().saturating_add(1));
        state.accounts.insert(account.customer().into(), saved);
        Ok(())
    }

    async fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<Account>, LedgerError> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let state = self.state();
        let accounts = state.accounts.range::<str, _>((start, Bound::Unbounded));
        Ok(accounts
            .take(limit)
            .map(|(_, account)| account.clone())
            .collect())
    }
}

impl Default for MemoryLedger {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("MemoryLedger")
            .field("events", &state.events.len())
            .field("dead", &state.dead.len())
            .field("accounts", &state.accounts.len())
            .finish_non_exhaustive()
    }
}
