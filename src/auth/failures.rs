use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use super::{client_addr::network_key, networks::Networks, pace::Pace};
use crate::{clock::Now, error::ConfigError};

const MINUTE: Duration = Duration::from_secs(60);

/// Bounds the failed attempts of each client network, so that nobody can guess keys or flood the store with
/// unknown ones.
///
/// A token bucket for each IPv4 address or IPv6 /64: [`check`](Self::check) before a credential of which nothing
/// is known is looked up, [`record`](Self::record) after it failed. A credential that is known to work is never
/// to be held back by it: an attacker could lock out whoever shares his address. By default 30 failures per
/// minute with a burst of 30, for 65,536 networks, which take 1 MiB; when there are more, those are forgotten that
/// have failed least. Clients without a known address share one count. Attempts that run at the same time are
/// checked before any of them is recorded, so a client can exceed the burst by as many as it has in flight.
///
/// Cloning gives a second handle to the same counts.
#[derive(Clone)]
pub struct FailureLimit {
    shared: Arc<Shared>,
}

struct Shared {
    pace: Pace,
    networks: Networks,
    without_address: AtomicU64,
}

impl FailureLimit {
    /// The most networks that can be remembered: 2^20, in 16 MiB.
    pub const MAX_NETWORKS: usize = 1 << 20;

    /// The number of networks that are remembered by default.
    pub const DEFAULT_NETWORKS: usize = 65_536;

    /// So many failures per minute, and at most `burst` at once.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when either is zero: it would refuse everybody.
    pub fn new(per_minute: u32, burst: u32) -> Result<Self, ConfigError> {
        Self::with_networks(per_minute, burst, Self::DEFAULT_NETWORKS)
    }

    /// As [`FailureLimit::new`], remembering at most this many networks, in 16 bytes each; when there are more,
    /// one that has failed little is forgotten.
    ///
    /// # Errors
    ///
    /// As [`FailureLimit::new`]; also when `networks` is zero or above [`MAX_NETWORKS`](Self::MAX_NETWORKS).
    pub fn with_networks(
        per_minute: u32,
        burst: u32,
        networks: usize,
    ) -> Result<Self, ConfigError> {
        let zero = |field| Err(ConfigError::new(field, "must be at least 1"));
        match (per_minute, burst, networks) {
            (0, _, _) => zero("per_minute"),
            (_, 0, _) => zero("burst"),
            (_, _, 0) => zero("networks"),
            (_, _, n) if n > Self::MAX_NETWORKS => Err(ConfigError::new(
                "networks",
                "the room is taken at the start: write at most 1048576, which is 16 MiB",
            )),
            _ => Ok(Self::unchecked(per_minute, burst, networks)),
        }
    }

    fn unchecked(per_minute: u32, burst: u32, networks: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                pace: Pace::new(per_minute, MINUTE, burst),
                networks: Networks::new(networks),
                without_address: AtomicU64::new(0),
            }),
        }
    }

    /// Whether another attempt from this address is looked at.
    ///
    /// # Errors
    ///
    /// The time until one is, never zero.
    pub fn check(&self, address: Option<IpAddr>, now: Now) -> Result<(), Duration> {
        let Shared {
            pace,
            networks,
            without_address,
        } = &*self.shared;
        let now = now.monotonic_micros();
        match address.map(network_key) {
            None => pace.check(without_address, now),
            Some(network) => match networks.find(network) {
                None => Ok(()),
                Some(state) => pace.check(state, now),
            },
        }
    }

    /// Counts a failed attempt from this address.
    pub fn record(&self, address: Option<IpAddr>, now: Now) {
        let Shared {
            pace,
            networks,
            without_address,
        } = &*self.shared;
        let now = now.monotonic_micros();
        let Some(network) = address.map(network_key) else {
            return pace.take(without_address, now);
        };
        if let Some(state) = networks.find_or_take(network) {
            pace.take(state, now);
        }
    }
}

impl Default for FailureLimit {
    /// 30 per minute, burst 30, 65,536 networks.
    fn default() -> Self {
        Self::unchecked(30, 30, Self::DEFAULT_NETWORKS)
    }
}

impl fmt::Debug for FailureLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FailureLimit")
            .field("pace", &self.shared.pace)
            .field("networks", &self.shared.networks.len())
            .finish_non_exhaustive()
    }
}
