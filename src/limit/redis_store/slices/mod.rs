//! Leased mode: units that this process has taken in advance, and serves from.

mod cell;
mod hand;
mod landing;
mod serve;
mod trip;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use quick_cache::sync::Cache;
use tokio::{task::AbortHandle, time::Instant};

pub(super) use self::cell::Cell;
use super::{
    super::{decision::Hold, set::LimitSet, store::LimitCall},
    answer::Applied,
    inner::Inner,
    prepare::Prepared,
    wire::PackedRule,
};
use crate::{clock::micros, redis_support::Key};

const TIME: Duration = Duration::from_secs(1);
const SHORTEST_TIME: Duration = Duration::from_millis(10);
const MOST_UNITS: u64 = 1 << 20;
/// So many cells of routes, addresses and values are kept; those of tenants and keys live as long as their sets.
const KEPT_CELLS: usize = 50_000;

/// How much of a limit a process takes in advance, and for how long.
///
/// A process that is asked about a count again and again debits a slice of it with one trip, up to N units, and
/// serves the next calls from it without one: `try_decide` answers at once. With P processes, slices of N and a lease
/// time of L:
///
/// - **Never more is admitted than was debited.** A token bucket with burst b and rate r admits at most
///   b + r·W + min(P·N, r·L) in any time W, where L runs until an unspent slice is back in Redis: P·N is the bound
///   whatever holds it up. A quota and a sliding window admit no more than in exact mode, as a slice
///   ends with the period or the window's cell that it was counted in.
/// - **A call may be refused early** by at most the units that other processes have in hand, P·N at most, and for L
///   at most: an unspent slice is given back when its time is over.
/// - **Slices shrink** with the limit: one is at most an eighth of what is left, so the last units are
///   given out one by one. They grow from nothing while they are used up within L, and halve when they lapse: a
///   tenant with a call in a second is counted exactly.
/// - **A refusal is leased too**: calls that cost as much are refused without a trip until the store would let
///   one pass, for L at most.
///
/// # What is leased
///
/// Token buckets, sliding windows and quotas, of which a call takes at most N units. Every rule of a call is served from
/// what is in hand, or one trip charges for those of which too little is, all or nothing. These rules send each
/// of their calls to Redis: concurrency limits, exact logs, and those of [`Action::Overage`](crate::limit::Action::Overage),
/// because overage is paid for. A slice never reaches over a threshold.
///
/// A change of plan gives back what was taken under the old numbers. After a
/// [`reset`](super::RedisLimits::reset), or when Redis has lost its data, what other processes have in hand is still
/// served or given back: at most P·N more, once.
///
/// While Redis does not answer, what is in hand is served until its time is over; then the rule's failure policy
/// decides. A process that is killed loses what it has in hand: a bucket refills, a window goes on, and of a quota at
/// most N units are gone for the period.
///
/// ```no_run
/// use std::time::Duration;
/// use tollgate::limit::{Lease, LimitLayer, Rate, RedisLimits};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let lease = Lease::of(100).time(Duration::from_millis(500));
/// let limits = RedisLimits::leased("redis://127.0.0.1:6379", lease).await?;
/// let layer = LimitLayer::new(limits.clone(), [Rate::per_second(5_000)])?;
/// # let _ = layer;
/// // When the process ends:
/// limits.return_slices().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Lease {
    units: u64,
    time: Duration,
}

impl Lease {
    /// Slices of at most so many units, 1 to 1,048,576; a number outside becomes the nearest in it. No more of a count is ever
    /// in hand of one process, beside what its waiting calls take at once.
    pub const fn of(units: u64) -> Self {
        let units = if units > MOST_UNITS {
            MOST_UNITS
        } else {
            units
        };
        Self {
            units: if units == 0 { 1 } else { units },
            time: TIME,
        }
    }

    /// How long a slice may be served from and a refusal holds; one second unless set, at least 10 ms.
    pub fn time(mut self, time: Duration) -> Self {
        self.time = time.max(SHORTEST_TIME);
        self
    }
}

/// A count: its key and field.
type Place = (Key, Key);

/// What a store has in hand.
#[derive(Debug)]
pub(super) struct Slices {
    units: u64,
    lease_micros: u64,
    time: Duration,
    cells: Mutex<Cells>,
    /// Keeps the cells alive that no set does.
    kept: Cache<Place, Arc<Cell>>,
    /// The slices in the order in which they lapse.
    due: Mutex<VecDeque<(Instant, Weak<Cell>)>>,
    returning: OnceLock<AbortHandle>,
    /// Trips that have begun and not landed.
    n_trips: AtomicUsize,
}

/// Every cell that is alive.
#[derive(Debug, Default)]
struct Cells {
    by_place: HashMap<Place, Weak<Cell>>,
    /// Those that are gone are taken out when there are so many.
    sweep_at: usize,
}

impl Drop for Slices {
    fn drop(&mut self) {
        if let Some(returning) = self.returning.get() {
            returning.abort();
        }
    }
}

impl Slices {
    pub(super) fn new(lease: Lease) -> Self {
        Self {
            units: lease.units,
            lease_micros: micros(lease.time),
            time: lease.time,
            cells: Mutex::default(),
            kept: Cache::new(KEPT_CELLS),
            due: Mutex::default(),
            returning: OnceLock::new(),
            n_trips: AtomicUsize::new(0),
        }
    }

    /// Starts the task that gives lapsed slices back.
    pub(super) fn start(store: &Arc<Inner>) {
        if let Some(slices) = &store.slices {
            let returning = tokio::spawn(return_lapsed(Arc::downgrade(store)));
            let _ = slices.returning.set(returning.abort_handle());
        }
    }

    fn cells(&self) -> MutexGuard<'_, Cells> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cell of a rule of a call; `None` when the rule does not apply to the call.
    fn cell(
        &self,
        store: &Arc<Inner>,
        prepared: &Prepared,
        call: &LimitCall<'_>,
        rule: &Applied<'_>,
    ) -> Option<Arc<Cell>> {
        let own = prepared.rule(rule.index)?;
        if let Some((id, cell)) = own.cell.get()
            && *id == store.boot
        {
            return Some(Arc::clone(cell));
        }
        let place = own.place(&store.space, call.set.owner(), rule.rule, call.scopes)?;
        if !own.has_fixed_key()
            && let Some(cell) = self.kept.get(&place)
            && *cell.numbers == *own.numbers()
        {
            return Some(cell);
        }
        let (cell, replaced) = self.find_or_make(store, &place, own.numbers());
        if let Some(replaced) = replaced {
            replaced.return_all(store);
        }
        if own.has_fixed_key() {
            // Another store may have put its own there.
            let _ = own.cell.set((store.boot, Arc::clone(&cell)));
        } else {
            self.kept.insert(place, Arc::clone(&cell));
        }
        Some(cell)
    }

    /// The cell of a count, and the one that it replaces, which was of other numbers.
    fn find_or_make(
        &self,
        store: &Arc<Inner>,
        place: &Place,
        numbers: Box<[u8]>,
    ) -> (Arc<Cell>, Option<Arc<Cell>>) {
        let mut cells = self.cells();
        let known = cells.by_place.get(place).and_then(Weak::upgrade);
        if let Some(known) = &known
            && known.numbers == numbers
        {
            return (Arc::clone(known), None);
        }
        let made = Arc::new(Cell::new(numbers, Arc::downgrade(store)));
        if cells.by_place.len() >= cells.sweep_at {
            cells.by_place.retain(|_, cell| cell.strong_count() > 0);
            cells.sweep_at = (2 * cells.by_place.len()).max(1_024);
        }
        cells.by_place.insert(place.clone(), Arc::downgrade(&made));
        (made, known)
    }

    /// The cell of a rule, where there is one.
    fn known_cell(&self, store: &Inner, call: &LimitCall<'_>, index: usize) -> Option<Arc<Cell>> {
        let rule = call.set.rules().get(index)?;
        let prepared = store.prepared(call.set);
        let own = prepared.rule(index)?;
        if let Some((id, cell)) = own.cell.get()
            && *id == store.boot
        {
            return Some(Arc::clone(cell));
        }
        let place = own.place(&store.space, call.set.owner(), rule, call.scopes)?;
        self.cells().by_place.get(&place).and_then(Weak::upgrade)
    }

    /// The rule as it goes to the script, to give units back by.
    fn packed(&self, store: &Inner, call: &LimitCall<'_>, index: usize) -> Option<PackedRule> {
        let rule = call.set.rules().get(index)?;
        let prepared = store.prepared(call.set);
        let around = store.server_wall(store.clock.now().wall());
        let values = (0, 0, Some(0));
        prepared
            .rule(index)?
            .pack(&store.space, call.set, rule, call.scopes, values, around, 0)
    }

    /// Notes when a slice has to be given back.
    fn note_lease(&self, cell: &Arc<Cell>) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        due.push_back((Instant::now() + self.time, Arc::downgrade(cell)));
    }

    /// Whether slices are on their way.
    pub(super) fn is_fetching(&self) -> bool {
        self.n_trips.load(Ordering::Relaxed) > 0
    }

    /// Gives back everything in hand.
    pub(super) fn return_all(&self, store: &Inner) {
        let cells: Vec<_> = self
            .cells()
            .by_place
            .values()
            .filter_map(Weak::upgrade)
            .collect();
        for cell in cells {
            cell.return_all(store);
        }
    }

    /// What is left of a settlement's change after what is done in hand: units back of a slice that is still served,
    /// units more out of what is there. What was refused may pass again.
    pub(super) fn settle(
        &self,
        store: &Inner,
        call: &LimitCall<'_>,
        hold: &Hold,
        (back, more): (u64, u64),
    ) -> (u64, u64) {
        if (back, more) == (0, 0) {
            return (0, 0);
        }
        let Some(cell) = self.known_cell(store, call, hold.rule) else {
            return (back, more);
        };
        let now = store.now();
        let mut hand = cell.hand();
        if back > 0 {
            hand.allow();
            if hand.put_back(back, hold.period, now, self.units) {
                return (0, more);
            }
        }
        let more = more - hand.take_up_to(more, now);
        (back, more)
    }

    /// An operator has changed a count.
    pub(super) fn changed(
        &self,
        store: &Inner,
        call: &LimitCall<'_>,
        rule: &Applied<'_>,
        is_reset: bool,
    ) {
        if let Some(cell) = self.known_cell(store, call, rule.index) {
            if is_reset {
                cell.hand().forget();
            } else {
                cell.hand().allow();
            }
        }
    }

    /// The slices that have lapsed, and when the next one does.
    fn take_due(&self) -> (Vec<Weak<Cell>>, Option<Instant>) {
        let now = Instant::now();
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let n_due = due.partition_point(|(at, _)| *at <= now);
        let lapsed = due.drain(..n_due).map(|(_, cell)| cell).collect();
        (lapsed, due.front().map(|(at, _)| *at))
    }
}

/// Gives slices back when they lapse, until the store is gone.
async fn return_lapsed(store: Weak<Inner>) {
    loop {
        let Some(held) = store.upgrade() else { return };
        let Some(slices) = &held.slices else { return };
        let (lapsed, next) = slices.take_due();
        for cell in lapsed.iter().filter_map(Weak::upgrade) {
            cell.return_lapsed(&held);
        }
        // The store is not to be kept while nothing is to be done.
        let time = slices.time;
        drop(held);
        let next = next.unwrap_or_else(|| Instant::now() + time);
        tokio::time::sleep_until(next).await;
    }
}

impl Inner {
    /// This process's monotonic clock, in microseconds. A call's own time may be of another clock.
    fn now(&self) -> u64 {
        self.clock.now().monotonic_micros()
    }

    fn own_time(&self) -> Option<(u64, u64)> {
        let now = self.clock.now();
        let time = (now.monotonic_micros(), now.wall().as_unix_micros());
        self.time_of_calls.then_some(time)
    }

    fn prepared(&self, set: &LimitSet) -> Arc<Prepared> {
        Prepared::of(set, &self.space, self.totals.is_some())
    }
}
