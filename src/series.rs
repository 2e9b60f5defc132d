//! Every metric of the crate, with its kind, its labels and its help text.
//!
//! Names follow Prometheus: a unit in the name, `_total` for counters. No label holds a tenant, a key, an address
//! or a path: each has a closed set of values, and `route` is a template. The page `guide::metrics` is the table
//! for readers, and a test holds the two together.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

#[cfg(feature = "billing")]
pub(crate) const BILLING_DELIVERIES: &str = "tollgate_billing_deliveries_total";
#[cfg(feature = "billing")]
pub(crate) const BILLING_SIGNATURE_FAILURES: &str = "tollgate_billing_signature_failures_total";
pub(crate) const CACHE_ENTRIES: &str = "tollgate_identity_cache_entries";
pub(crate) const BREAKERS_OPEN: &str = "tollgate_limit_breakers_open";
pub(crate) const QUEUE_CAPACITY: &str = "tollgate_usage_queue_capacity";
pub(crate) const REFUSALS: &str = "tollgate_refusals_total";
pub(crate) const REQUESTS: &str = "tollgate_requests_total";
pub(crate) const REQUEST_DURATION: &str = "tollgate_request_duration_seconds";

enum Kind {
    Counter,
    Gauge,
    Seconds,
}

const SERIES: &[(&str, Kind, &str)] = &[
    (
        "tollgate_auth_failures_total",
        Kind::Counter,
        "Attempts to authenticate that were refused, by reason.",
    ),
    (
        "tollgate_auth_success_total",
        Kind::Counter,
        "Requests whose credential was accepted.",
    ),
    (
        "tollgate_billing_deliveries_total",
        Kind::Counter,
        "Deliveries of the payment provider, by outcome.",
    ),
    (
        "tollgate_billing_signature_failures_total",
        Kind::Counter,
        "Deliveries that are not known to be the payment provider's, by reason.",
    ),
    (
        CACHE_ENTRIES,
        Kind::Gauge,
        "What the identity caches hold: working keys, keys that do not work, tenants.",
    ),
    (
        "tollgate_identity_cache_total",
        Kind::Counter,
        "Look-ups of keys in memory, by result.",
    ),
    (
        "tollgate_identity_fetches_total",
        Kind::Counter,
        "Trips to the stores of keys and tenants, by result.",
    ),
    (
        "tollgate_jwks_refreshes_total",
        Kind::Counter,
        "Fetches of an identity provider's keys, by result.",
    ),
    (
        BREAKERS_OPEN,
        Kind::Gauge,
        "Limit layers that ask their store no more, as it does not answer.",
    ),
    (
        "tollgate_limit_decisions_total",
        Kind::Counter,
        "Decisions of limit layers, by decision.",
    ),
    (
        "tollgate_limit_degraded_total",
        Kind::Counter,
        "Calls decided without their limit store.",
    ),
    (
        "tollgate_limit_redis_batches_total",
        Kind::Counter,
        "Runs of the script that decides limits in Redis.",
    ),
    (
        "tollgate_limit_redis_calls_total",
        Kind::Counter,
        "Decisions and settlements that those runs held.",
    ),
    (
        "tollgate_limit_redis_reconnects_total",
        Kind::Counter,
        "Connections to Redis that were made anew.",
    ),
    (
        "tollgate_limit_settlements_dropped_total",
        Kind::Counter,
        "Settlements that could not be sent to Redis.",
    ),
    (
        "tollgate_limit_store_failures_total",
        Kind::Counter,
        "Decisions that a limit store failed to give, by kind.",
    ),
    (
        "tollgate_quota_snapshot_loads_total",
        Kind::Counter,
        "Snapshots of quotas that were looked for at a start, by result.",
    ),
    (
        "tollgate_quota_snapshot_writes_total",
        Kind::Counter,
        "Snapshots of quotas that were written, by result.",
    ),
    (
        "tollgate_redis_changes_missed_total",
        Kind::Counter,
        "Times that changes of keys, tenants or plans in Redis were made unheard: all cached was forgotten.",
    ),
    (
        "tollgate_redis_subscriptions_total",
        Kind::Counter,
        "Subscriptions to changes in Redis that were made.",
    ),
    (
        REFUSALS,
        Kind::Counter,
        "Calls that were refused, by the code in their answer.",
    ),
    (
        REQUEST_DURATION,
        Kind::Seconds,
        "From a call's arrival to the end of its answer, by route template.",
    ),
    (
        REQUESTS,
        Kind::Counter,
        "Calls that have ended, by route template, class of status and outcome.",
    ),
    (
        "tollgate_rollup_claimed_total",
        Kind::Counter,
        "Entries of the stream of usage that were taken over from another reader.",
    ),
    (
        "tollgate_rollup_dead_letters_total",
        Kind::Counter,
        "Entries of the stream of usage that cannot be counted.",
    ),
    (
        "tollgate_rollup_duplicates_total",
        Kind::Counter,
        "Usage events that were read again after they had been counted.",
    ),
    (
        "tollgate_rollup_events_total",
        Kind::Counter,
        "Usage events that were counted from the stream.",
    ),
    (
        "tollgate_rollup_failures_total",
        Kind::Counter,
        "Attempts to read the stream of usage or to count it that failed and are made again.",
    ),
    (
        "tollgate_token_cache_total",
        Kind::Counter,
        "Look-ups of verified tokens in memory, by result.",
    ),
    (
        "tollgate_usage_acked_total",
        Kind::Counter,
        "Usage events that the sink accepted.",
    ),
    (
        "tollgate_usage_dead_lettered_total",
        Kind::Counter,
        "Usage events that the sink rejected for good.",
    ),
    (
        "tollgate_usage_dropped_total",
        Kind::Counter,
        "Usage events that were lost, by reason.",
    ),
    (
        "tollgate_usage_in_flight",
        Kind::Gauge,
        "Usage events taken from the queue that the sink has not answered for.",
    ),
    (
        "tollgate_usage_open",
        Kind::Gauge,
        "Calls of known callers that have not ended.",
    ),
    (
        "tollgate_usage_opened_total",
        Kind::Counter,
        "Calls whose caller was identified.",
    ),
    (
        "tollgate_usage_parts_total",
        Kind::Counter,
        "Usage events that report a call which goes on.",
    ),
    (
        "tollgate_usage_quantities_ignored_total",
        Kind::Counter,
        "Quantities that were ignored: a bad name, or too many in one call.",
    ),
    (
        QUEUE_CAPACITY,
        Kind::Gauge,
        "How many usage events the queues can hold.",
    ),
    (
        "tollgate_usage_queued",
        Kind::Gauge,
        "Usage events in the queue.",
    ),
    (
        "tollgate_usage_recovered_total",
        Kind::Counter,
        "Usage events that an earlier life of the process has left in the spool.",
    ),
    (
        "tollgate_usage_replayed_total",
        Kind::Counter,
        "Dead letters that were offered again.",
    ),
    (
        "tollgate_usage_retries_total",
        Kind::Counter,
        "Batches of usage events that were offered to the sink again.",
    ),
    (
        "tollgate_usage_settled_total",
        Kind::Counter,
        "Calls of known callers that have ended.",
    ),
    (
        "tollgate_usage_spool_bytes",
        Kind::Gauge,
        "Bytes of usage events on the disk.",
    ),
    (
        "tollgate_usage_spool_failures_total",
        Kind::Counter,
        "Times that the spool did not take usage events.",
    ),
    (
        "tollgate_usage_spooled",
        Kind::Gauge,
        "Usage events on the disk that wait to be read back.",
    ),
    (
        "tollgate_usage_unidentified_total",
        Kind::Counter,
        "Calls that ended without an identity, by class of status and reason.",
    ),
];

/// Tells the installed metrics recorder the help text and the unit of each of this crate's metrics; telling it
/// again changes nothing.
///
/// `Tollgate`'s builder does it. Install the recorder before: handles are made when layers are built, and those made
/// earlier count for nobody.
pub fn describe_metrics() {
    for (name, kind, help) in SERIES {
        match kind {
            Kind::Counter => describe_counter!(*name, Unit::Count, *help),
            Kind::Gauge => describe_gauge!(*name, Unit::Count, *help),
            Kind::Seconds => describe_histogram!(*name, Unit::Seconds, *help),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_prometheus_and_stand_in_the_guide_in_order() {
        let guide = include_str!("guide/metrics.md");
        let named: Vec<_> = guide
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .filter(|name| name.starts_with("tollgate_"))
            .collect();
        let mut listed: Vec<_> = SERIES.iter().map(|(name, ..)| *name).collect();
        for (name, kind, _) in SERIES {
            assert_eq!(
                name.ends_with("_total"),
                matches!(kind, Kind::Counter),
                "{name}"
            );
            assert_eq!(
                name.ends_with("_seconds"),
                matches!(kind, Kind::Seconds),
                "{name}"
            );
        }
        assert!(listed.is_sorted());
        let mut named_sorted = named;
        named_sorted.sort_unstable();
        listed.sort_unstable();
        assert_eq!(named_sorted, listed);
    }
}
