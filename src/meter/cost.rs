//! What a call costs whoever runs the service: said by the handler while it works.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    abort::Billed,
    meter::{Call, Meter},
    rates::{CallCost, CostRates, Work},
};
use crate::clock::Clock;

/// The handle through which a handler says what its call costs to serve, until the response body ends.
///
/// [`Meter::cost`] gives it; under the `axum` feature it is an extractor. Cloning gives a second handle to the
/// same call and does not allocate. Nothing of it is told to the caller, unless
/// [`cost_header`](super::MeterLayer::cost_header) is on: it goes into [`UsageEvent::cost`](super::UsageEvent::cost).
///
/// ```
/// use std::time::Duration;
/// use tollgate::{clock::Now, meter::{EventId, Meter}};
///
/// async fn answer(meter: &Meter) {
///     let cost = meter.cost();
///     {
///         let _timer = cost.time(); // adds its time when it is dropped, however this block ends
///     }
///     cost.add_compute(Duration::from_millis(20));
///     cost.add_upstream(250_000); // 0.00025 of the currency's unit
///     cost.add_tokens("input", 812);
/// }
///
/// # let meter = Meter::new(EventId::new(0, 0), Now::default());
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(answer(&meter));
/// assert_eq!(meter.quantity("input"), 812);
/// ```
#[derive(Clone)]
pub struct CostScope(Meter);

/// What was said of a call's cost, and what of it a report has told. Written under the lock of its quantities, so
/// that whoever finds the call not settled is heard.
#[derive(Default)]
pub(super) struct Spent {
    compute_nanoseconds: AtomicU64,
    upstream_nanos: AtomicU64,
    told_compute_nanoseconds: AtomicU64,
    told_upstream_nanos: AtomicU64,
}

/// What no report has told yet.
struct Untold {
    compute_micros: u64,
    upstream_nanos: u64,
}

const NANOSECONDS_PER_MICRO: u64 = 1_000;

fn read(sum: &AtomicU64) -> u64 {
    sum.load(Ordering::Relaxed)
}

fn add(sum: &AtomicU64, n: u64) {
    // Under a lock: nobody else writes between the two.
    sum.store(read(sum).saturating_add(n), Ordering::Relaxed);
}

impl Spent {
    fn untold(&self) -> Untold {
        let compute =
            read(&self.compute_nanoseconds).saturating_sub(read(&self.told_compute_nanoseconds));
        Untold {
            compute_micros: compute / NANOSECONDS_PER_MICRO,
            upstream_nanos: read(&self.upstream_nanos)
                .saturating_sub(read(&self.told_upstream_nanos)),
        }
    }

    /// Takes what was not told before, for a report of a call that goes on. Under the lock of its quantities.
    pub(super) fn report(&self) -> Self {
        let untold = self.untold();
        let part = Self::default();
        let compute = untold.compute_micros.saturating_mul(NANOSECONDS_PER_MICRO);
        add(&part.compute_nanoseconds, compute);
        add(&part.upstream_nanos, untold.upstream_nanos);
        add(&self.told_compute_nanoseconds, compute);
        add(&self.told_upstream_nanos, untold.upstream_nanos);
        part
    }

    /// The cost of what no report has told yet, with so many bytes; `None` where there is nothing to say. All that
    /// was added costs, billed or not: the work was done.
    pub(super) fn cost(call: &Call, request_bytes: u64, response_bytes: u64) -> Option<CallCost> {
        let rates = call.site.as_ref().and_then(|site| site.rates.as_deref());
        let quantities = call.quantities();
        let untold = call.spent.untold();
        if rates.is_none() && untold.compute_micros == 0 && untold.upstream_nanos == 0 {
            return None;
        }
        let work = Work {
            n_calls: u64::from(call.part_of == 0),
            compute_micros: untold.compute_micros,
            upstream_nanos: untold.upstream_nanos,
            request_bytes,
            response_bytes,
            quantities: quantities.unreported(Billed::All),
        };
        Some(match rates {
            Some(rates) => rates.priced(work),
            None => CostRates::new().priced(work),
        })
    }
}

impl Meter {
    /// The handle to say what the call costs to serve.
    #[must_use]
    pub fn cost(&self) -> CostScope {
        CostScope(self.clone())
    }
}

impl CostScope {
    /// Adds compute time, such as that of a worker thread or an accelerator; it may be more than the call took.
    /// Counted in nanoseconds, told in whole microseconds.
    pub fn add_compute(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.spend(|spent| add(&spent.compute_nanoseconds, nanoseconds));
    }

    /// Adds what another service charges for its part, in billionths (10^-9) of the currency's unit.
    pub fn add_upstream(&self, nanos: u64) {
        self.spend(|spent| add(&spent.upstream_nanos, nanos));
    }

    /// Adds to a named quantity that has a rate in [`CostRates`]: the same count as [`Meter::add`], which is both
    /// what the tenant is billed for and what it costs. Say each use once.
    pub fn add_tokens(&self, name: &str, n: u64) {
        self.0.add(name, n);
    }

    /// Measures compute time until the timer is dropped or [stopped](ComputeTimer::stop).
    ///
    /// Two timers that run at once add both their times. A [`Meter`] made outside of a
    /// [`MeterLayer`](super::MeterLayer) has no clock, and its timers add nothing.
    pub fn time(&self) -> ComputeTimer {
        let clock = self.0.0.site.as_ref().map(|site| Arc::clone(&site.clock));
        let started = clock.map(|clock| (clock.now().monotonic_micros(), clock));
        ComputeTimer {
            scope: self.clone(),
            started,
        }
    }

    fn spend(&self, add: impl FnOnce(&Spent)) {
        let call = &*self.0.0;
        let _held = call.quantities();
        if !call.is_settled() {
            add(&call.spent);
        }
    }
}

impl fmt::Debug for CostScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CostScope").field(&self.0).finish()
    }
}

/// Compute time under way; made by [`CostScope::time`]. It is added to the call when the timer is dropped.
///
/// # Cancel safety
///
/// Held across an await, the timer counts the waiting too. A future that is given up while it holds one adds the
/// time until then, as the timer is dropped with it.
#[must_use = "a timer that is not held measures nothing"]
pub struct ComputeTimer {
    scope: CostScope,
    started: Option<(u64, Arc<dyn Clock>)>,
}

impl ComputeTimer {
    /// Ends the measurement before the end of the block.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for ComputeTimer {
    fn drop(&mut self) {
        if let Some((started, clock)) = &self.started {
            self.scope.add_compute(clock.now().since(*started));
        }
    }
}

impl fmt::Debug for ComputeTimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ComputeTimer").finish_non_exhaustive()
    }
}
