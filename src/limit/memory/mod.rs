//! Counts in this process's memory.

mod bucket;
mod cell;
mod decide;
mod gate;
mod gauge;
mod key;
mod log;
mod map;
mod marks;
mod quota;
mod saved;
mod settle;
mod window;

pub(super) use self::{
    key::{CountName, ScopeValue},
    quota::QuotaUse,
    saved::SavedQuota,
};

use std::{
    borrow::Cow,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use smallvec::SmallVec;

#[cfg(feature = "redis")]
pub(super) use self::key::network;
use self::{
    cell::{Cell, Moment},
    key::CellRef,
    map::CellMap,
};
use super::{
    compile::CompiledRule,
    decision::{Decision, Receipt},
    set::{LimitSet, Owner, ScopeValues},
    store::{LimitCall, LimitStore, LimitStoreError, OwnedLimitCall, Settlement},
};
use crate::clock::Now;

const DEFAULT_MAX_KEYS: usize = 1_000_000;

/// Counts in this process's memory: every decision is made at once, without a trip and without waiting.
///
/// # What is guaranteed
///
/// - **Exact under races**: N calls at once for a limit of M admit min(N, M). A rule is charged by one
///   compare-and-swap; only an exact log, a period's turn and a change of plan take a lock, for nanoseconds.
/// - **All or nothing**: every rule is looked at before any is charged. When a race takes the last unit of a
///   later rule after that look, the earlier charges are given back and the call is decided anew. Between
///   charge and return, for nanoseconds, another call can find the unit taken and be refused: an error on
///   the safe side. More than a limit is never admitted.
/// - **Time**: buckets, windows and logs run by the monotonic clock, so a stepped wall clock does not touch
///   them. Quotas run by the wall clock. One that has gone back stays in the period it had reached; one that
///   had jumped further ahead than the next period and is back takes its use along, so nobody is locked out
///   for longer than two periods, and nothing is refilled.
/// - **A change of plan** takes effect with the next call: a bucket keeps its level in proportion, windows
///   and quotas keep what was used. Another window, period or time zone counts apart; the old count stays
///   until it is idle, so changing back does not refill.
/// - A threshold is told once for each rule, key and period; of rules without a calendar, again after the use
///   has fallen below the lowest threshold.
///
/// # Memory
///
/// A count takes about 200 bytes with its key, and a window 8 bytes more for each cell. At most
/// [`max_keys`](Self::max_keys) counts are kept. From time to time an insertion evicts the counts that are as
/// good as new (a full bucket, an empty window, a period that is over); none else is ever evicted, because
/// that would refill it. When all are in use, a call that needs one more gets
/// [`LimitStoreError::Unavailable`], the policy [`OnStoreFailure`](super::OnStoreFailure) of its rule
/// applies, and [`n_refused_keys`](Self::n_refused_keys) counts it.
///
/// Everything is lost with the process, but for quotas where a [`QuotaSnapshot`](super::QuotaSnapshot) keeps them.
pub struct MemoryLimits {
    /// Tells the cells that this store has put beside a set from those of another store.
    id: u64,
    cells: CellMap,
}

impl fmt::Debug for MemoryLimits {
    /// Shows how many counts there are: a million of them, by tenant, belong into no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryLimits")
            .field("keys", &self.cells.n_keys())
            .finish_non_exhaustive()
    }
}

impl MemoryLimits {
    /// An empty store for up to a million counts.
    #[must_use]
    pub fn new() -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            cells: CellMap::new(DEFAULT_MAX_KEYS),
        }
    }

    /// How many counts are kept at most: one for each rule and each tenant, key, route or address that it
    /// counts for. A million unless set; at least one. Call it before the first decision: counts kept so far
    /// are dropped.
    #[must_use]
    pub fn max_keys(mut self, n: usize) -> Self {
        self.cells = CellMap::new(n.max(1));
        self
    }

    /// How many counts are kept now.
    #[must_use]
    pub fn n_keys(&self) -> usize {
        self.cells.n_keys()
    }

    /// How many calls found no room for their count.
    #[must_use]
    pub fn n_refused_keys(&self) -> u64 {
        self.cells.n_refused()
    }

    /// Evicts the counts that are as good as new at `now`, and says how many there were. Insertions do this
    /// by themselves when the number of counts has doubled.
    pub fn sweep(&self, now: Now) -> usize {
        self.cells.sweep(now)
    }

    /// The cells of the owner-fixed rules of a set, kept beside it.
    #[inline]
    fn prepared<'a>(&self, set: &'a LimitSet) -> Option<&'a Prepared> {
        let make = || Prepared {
            store: self.id,
            cells: set.rules().iter().map(|_| OnceLock::new()).collect(),
        };
        let prepared = set.in_memory.get_or_init(make);
        (prepared.store == self.id).then_some(prepared)
    }

    /// The cell that a rule of a call counts in; `None` when the rule does not apply to the call.
    #[inline]
    fn cell<'a>(
        &self,
        place: &Place<'a>,
        moment: &Moment,
        prepared: Option<&'a Prepared>,
    ) -> Result<Option<CellHandle<'a>>, LimitStoreError> {
        let slot = prepared
            .filter(|_| place.rule.is_fixed_by_owner())
            .and_then(|prepared| prepared.cells.get(place.index));
        if let Some(cell) = slot.and_then(OnceLock::get) {
            return Ok(Some(Cow::Borrowed(cell)));
        }
        let Some(key) = CellRef::new(&self.cells.hasher, place.rule, place.owner, place.scopes)
        else {
            return Ok(None);
        };
        let Some(cell) = self.find_or_make(&key, place.rule, moment)? else {
            return Ok(None);
        };
        if let Some(slot) = slot {
            // Whoever comes second puts the same cell there.
            let _ = slot.set(Arc::clone(&cell));
        }
        Ok(Some(Cow::Owned(cell)))
    }

    fn find_or_make(
        &self,
        key: &CellRef<'_>,
        rule: &CompiledRule,
        moment: &Moment,
    ) -> Result<Option<Arc<Cell>>, LimitStoreError> {
        if let Some(cell) = self.cells.find(key) {
            return Ok(Some(cell));
        }
        let Some(made) = Cell::new(rule, moment) else {
            return Ok(None);
        };
        self.cells
            .find_or_insert(key, moment.now, || made)
            .map(Some)
            .map_err(|full| LimitStoreError::Unavailable(Box::new(full)))
    }
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl LimitStore for MemoryLimits {
    /// Always answers.
    fn try_decide(&self, call: &LimitCall<'_>) -> Option<Result<Decision, LimitStoreError>> {
        self.decide_now(call)
    }

    async fn decide(self: Arc<Self>, call: OwnedLimitCall) -> Result<Decision, LimitStoreError> {
        let call = call.as_call();
        self.decide_at_length(&call, &Moment::of(&call), self.prepared(call.set))
    }

    fn settle(&self, call: &LimitCall<'_>, receipt: &Receipt, settlement: &Settlement) {
        self.settle_now(call, receipt, settlement);
    }
}

/// What the store keeps beside a set: the cells of the rules whose key the owner fixes.
#[derive(Debug)]
pub(super) struct Prepared {
    store: u64,
    cells: SmallVec<[OnceLock<Arc<Cell>>; 3]>,
}

/// A cell from beside the set, or found in the map.
type CellHandle<'a> = Cow<'a, Arc<Cell>>;

/// One rule of a call.
#[derive(Clone, Copy, Debug)]
struct Place<'a> {
    index: usize,
    rule: &'a CompiledRule,
    owner: &'a Owner,
    scopes: &'a ScopeValues,
}

impl Place<'_> {
    /// Whether the rule applies to the call.
    fn applies(&self) -> bool {
        self.rule.applies_to(self.scopes)
    }
}
