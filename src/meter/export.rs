//! The counters as metrics.

use metrics::{counter, gauge};

use super::{
    counters::{Counters, Tally},
    losses::LossReason,
};
use crate::series;

/// What was exported last. Differences are exported, so that the recorders of one process add up.
#[derive(Default)]
pub(super) struct Exported {
    last: Counters,
    queue_capacity: u64,
    told_capacity: u64,
    unidentified: Vec<u64>,
}

impl Exported {
    pub(super) fn new(queue_capacity: usize) -> Self {
        Self {
            queue_capacity: queue_capacity as u64,
            ..Self::default()
        }
    }

    /// Brings the metrics up to date: on each tick, so that no call pays for it.
    pub(super) fn export(&mut self, tally: &Tally) {
        let now = tally.snapshot();
        let last = &self.last;
        let add = |name: &'static str, now: u64, last: u64| {
            if now > last {
                counter!(name).increment(now - last);
            }
        };
        add("tollgate_usage_opened_total", now.opened, last.opened);
        add("tollgate_usage_settled_total", now.settled, last.settled);
        add("tollgate_usage_acked_total", now.acked, last.acked);
        add(
            "tollgate_usage_dead_lettered_total",
            now.dead_lettered,
            last.dead_lettered,
        );
        add("tollgate_usage_parts_total", now.parts, last.parts);
        add("tollgate_usage_retries_total", now.retries, last.retries);
        add(
            "tollgate_usage_quantities_ignored_total",
            now.quantities_ignored,
            last.quantities_ignored,
        );
        add("tollgate_usage_replayed_total", now.replayed, last.replayed);
        add(
            "tollgate_usage_recovered_total",
            now.recovered,
            last.recovered,
        );
        add(
            "tollgate_usage_spool_failures_total",
            now.spool_failures,
            last.spool_failures,
        );
        for reason in [
            LossReason::QueueFull,
            LossReason::SpoolFull,
            LossReason::SpoolNoSpace,
            LossReason::SpoolFailed,
            LossReason::Expired,
            LossReason::Corrupt,
            LossReason::DeadLettersFull,
            LossReason::Shutdown,
        ] {
            let (now, last) = (now.dropped_for(reason), last.dropped_for(reason));
            if now > last {
                counter!("tollgate_usage_dropped_total", "reason" => reason.as_str())
                    .increment(now - last);
            }
        }
        shift(
            series::QUEUE_CAPACITY,
            self.queue_capacity,
            self.told_capacity,
        );
        self.told_capacity = self.queue_capacity;
        shift("tollgate_usage_open", now.open, last.open);
        shift("tollgate_usage_queued", now.queued, last.queued);
        shift("tollgate_usage_in_flight", now.in_flight, last.in_flight);
        shift("tollgate_usage_spooled", now.spooled, last.spooled);
        shift(
            "tollgate_usage_spool_bytes",
            now.spool_bytes,
            last.spool_bytes,
        );

        for (place, (reason, class, n)) in tally.unidentified_by_reason().enumerate() {
            if place >= self.unidentified.len() {
                self.unidentified.push(0);
            }
            let Some(last) = self.unidentified.get_mut(place) else {
                continue;
            };
            if n > *last {
                counter!("tollgate_usage_unidentified_total", "status" => class, "reason" => reason)
                    .increment(n - *last);
                *last = n;
            }
        }
        self.last = now;
    }
}

/// Moves a gauge by what changed. The facade counts in floating point; the figures are far below 2^53.
fn shift(name: &'static str, now: u64, last: u64) {
    if now > last {
        gauge!(name).increment((now - last) as f64);
    } else if now < last {
        gauge!(name).decrement((last - now) as f64);
    }
}
