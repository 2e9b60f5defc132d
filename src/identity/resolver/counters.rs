//! Numbers for those who watch.

use metrics::Counter;

/// Made once: a hit only adds to a number.
pub(super) struct Counters {
    pub(super) failed_fetches: Counter,
    pub(super) fetches: Counter,
    pub(super) hits: Counter,
    pub(super) misses: Counter,
    pub(super) negative_hits: Counter,
    pub(super) turned_away: Counter,
}

impl Counters {
    pub(super) fn new() -> Self {
        let cache = |result: &'static str| metrics::counter!("tollgate_identity_cache_total", "result" => result);
        let fetch = |result: &'static str| metrics::counter!("tollgate_identity_fetches_total", "result" => result);
        Self {
            failed_fetches: fetch("failed"),
            fetches: fetch("answered"),
            hits: cache("hit"),
            misses: cache("miss"),
            negative_hits: cache("negative_hit"),
            turned_away: fetch("turned_away"),
        }
    }
}
