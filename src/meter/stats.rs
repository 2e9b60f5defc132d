//! Calls and their times as metrics, by route.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use metrics::{Counter, Histogram, counter, histogram};

use super::{
    counters::{CLASS_NAMES, CLASSES, class},
    event::CallOutcome,
};
use crate::{error::ErrorCode, series};

/// The most routes that have a label of their own; calls of further ones share the label `other`, so that a hook
/// that names paths instead of templates cannot make series without end.
const MAX_ROUTES: usize = 512;
/// Twice as many places, so that a search is short; a power of two.
const PLACES: usize = 1_024;
const MAX_PROBES: usize = 16;
const OTHER: &str = "other";

const OUTCOMES: [&str; 5] = ["served", "refused", "failed", "aborted", "panicked"];

/// The handles of one layer's metrics. Each is made at its first use and kept: a call finds its own by the
/// route's text, without a lock and without an allocation.
pub(super) struct CallStats {
    routes: Box<[OnceLock<Box<RouteStats>>]>,
    n_routes: AtomicUsize,
    other: OnceLock<Box<RouteStats>>,
    refusals: Box<[OnceLock<Counter>]>,
}

struct RouteStats {
    route: Arc<str>,
    calls: [[OnceLock<Counter>; OUTCOMES.len()]; CLASSES],
    duration: Histogram,
}

impl RouteStats {
    fn new(route: &str) -> Box<Self> {
        let route: Arc<str> = Arc::from(&*super::printable(route));
        Box::new(Self {
            duration: histogram!(series::REQUEST_DURATION, "route" => Arc::clone(&route)),
            calls: Default::default(),
            route,
        })
    }

    fn ended(&self, status: u16, outcome: CallOutcome, latency: Duration) {
        let (class, outcome) = (class(status), place(outcome));
        if let Some(calls) = self.calls.get(class).and_then(|row| row.get(outcome)) {
            let register = || {
                counter!(
                    series::REQUESTS,
                    "route" => Arc::clone(&self.route),
                    "status" => CLASS_NAMES.get(class).copied().unwrap_or("other"),
                    "outcome" => OUTCOMES.get(outcome).copied().unwrap_or("other"),
                )
            };
            calls.get_or_init(register).increment(1);
        }
        // The facade takes floating point; nothing is limited or billed by it.
        self.duration.record(latency.as_secs_f64());
    }
}

const fn place(outcome: CallOutcome) -> usize {
    match outcome {
        CallOutcome::Served => 0,
        CallOutcome::Refused => 1,
        CallOutcome::Failed => 2,
        CallOutcome::Aborted => 3,
        CallOutcome::Panicked => 4,
    }
}

impl CallStats {
    pub(super) fn new() -> Self {
        Self {
            routes: (0..PLACES).map(|_| OnceLock::new()).collect(),
            n_routes: AtomicUsize::new(0),
            other: OnceLock::new(),
            refusals: ErrorCode::ALL.iter().map(|_| OnceLock::new()).collect(),
        }
    }

    /// Counts a call that has ended, identified or not.
    pub(super) fn ended(
        &self,
        route: &str,
        status: u16,
        outcome: CallOutcome,
        reason: Option<ErrorCode>,
        latency: Duration,
    ) {
        self.of(route).ended(status, outcome, latency);
        if let Some(code) = reason.filter(|code| code.is_refusal())
            && let Some(place) = ErrorCode::ALL.iter().position(|known| *known == code)
            && let Some(refusals) = self.refusals.get(place)
        {
            let register = || counter!(series::REFUSALS, "reason" => code.as_str());
            refusals.get_or_init(register).increment(1);
        }
    }

    fn of(&self, route: &str) -> &RouteStats {
        let start = hash(route);
        for probe in 0..MAX_PROBES {
            let Some(place) = self.routes.get((start + probe) % PLACES) else {
                break;
            };
            let stats = match place.get() {
                Some(stats) => stats,
                None if self.n_routes.load(Ordering::Relaxed) >= MAX_ROUTES => break,
                None => place.get_or_init(|| {
                    self.n_routes.fetch_add(1, Ordering::Relaxed);
                    RouteStats::new(route)
                }),
            };
            // Another thread may have taken the place for another route.
            if *stats.route == *route {
                return stats;
            }
        }
        self.other.get_or_init(|| RouteStats::new(OTHER))
    }
}

/// Spreads the routes of a service, which its author names and no client; eight bytes at a time, in the manner of
/// the hash that Firefox uses for short keys.
fn hash(text: &str) -> usize {
    const K: u64 = 0x517c_c1b7_2722_0a95;
    let (words, rest) = text.as_bytes().as_chunks::<8>();
    let mut last = [0; 8];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    let mix =
        |hash: u64, word: [u8; 8]| (hash.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(K);
    let hash = mix(
        words
            .iter()
            .fold(text.len() as u64, |hash, word| mix(hash, *word)),
        last,
    );
    (hash >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_keeps_its_handles_and_too_many_share_one() {
        let stats = CallStats::new();
        for n in 0..10 * MAX_ROUTES {
            let route = format!("/v1/item/{n}/part");
            let found = stats.of(&route);
            assert!(*found.route == *route || &*found.route == OTHER);
            assert!(std::ptr::eq(found, stats.of(&route)));
        }
        let n_routes = stats.n_routes.load(Ordering::Relaxed);
        assert!(
            (MAX_ROUTES / 2..=MAX_ROUTES).contains(&n_routes),
            "{n_routes}"
        );
        assert_eq!(&*stats.of("/v1/item/0/part").route, "/v1/item/0/part");
    }
}
