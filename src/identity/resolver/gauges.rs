//! How full the caches are, for those who watch.

use std::sync::{Arc, Weak};

use metrics::{Gauge, gauge};

use super::{KeyAuthenticator, inner::Inner};
use crate::series;

/// What one authenticator told of its caches. Differences are told, so that several in a process add up.
struct CacheGauges {
    inner: Weak<Inner>,
    told: [(Gauge, usize); 3],
}

impl KeyAuthenticator {
    /// Brings the gauges of the caches up to date each time it is called; false when the caches are gone.
    pub(crate) fn watch(&self) -> impl FnMut() -> bool + Send + use<> {
        let of = |cache: &'static str| (gauge!(series::CACHE_ENTRIES, "cache" => cache), 0);
        let mut gauges = CacheGauges {
            inner: Arc::downgrade(&self.inner),
            told: [of("keys"), of("refused_keys"), of("tenants")],
        };
        move || gauges.tell()
    }
}

impl CacheGauges {
    fn tell(&mut self) -> bool {
        let inner = self.inner.upgrade();
        let counts = inner.as_ref().map_or([0; 3], |inner| {
            let (working, refused) = inner.cache.n_kept();
            [working, refused, inner.slots.n_kept()]
        });
        for ((gauge, told), now) in self.told.iter_mut().zip(counts) {
            // The facade counts in floating point; the caches are bounded far below 2^53.
            gauge.increment(now as f64 - *told as f64);
            *told = now;
        }
        inner.is_some()
    }
}
