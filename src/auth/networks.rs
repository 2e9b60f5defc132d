//! A count for each of many networks, in a room of fixed size.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
};

/// So many networks share the places that any of them can take.
const WAYS: usize = 8;

/// A word for each network, the time at which its bucket is full again, for the networks that need one most.
///
/// Takes 16 bytes for each network from the start and nothing after, whatever clients do: a network is known by a
/// hash under a secret, so that nobody can choose which networks share places. Where all places are taken, the
/// network goes whose bucket is full first, as it has least to lose; a flood from many addresses so forgets those
/// that fail now and then before it forgets those that fail all the time.
pub(super) struct Networks {
    places: Box<[Place]>,
    ways: usize,
    secret: RandomState,
}

#[derive(Default)]
struct Place {
    /// The hash of the network; 0 for none.
    network: AtomicU64,
    full_at: AtomicU64,
}

impl Networks {
    /// Room for at most `n` networks, which is at least one.
    pub(super) fn new(n: usize) -> Self {
        let ways = n.clamp(1, WAYS);
        let n = n.max(1) / ways * ways;
        Self {
            places: (0..n).map(|_| Place::default()).collect(),
            ways,
            secret: RandomState::new(),
        }
    }

    fn hash(&self, network: IpAddr) -> u64 {
        self.secret.hash_one(network).max(1)
    }

    /// The places that the network may have.
    fn places(&self, hash: u64) -> &[Place] {
        let n_sets = self.places.len() / self.ways;
        // The upper bits of the product: evenly spread over any number of sets, without a division.
        let set = (u128::from(hash) * n_sets as u128) >> 64;
        let start = usize::try_from(set).unwrap_or_default() * self.ways;
        self.places
            .get(start..start + self.ways)
            .unwrap_or_default()
    }

    /// The word of a network, if it has one.
    pub(super) fn find(&self, network: IpAddr) -> Option<&AtomicU64> {
        let hash = self.hash(network);
        let mut places = self.places(hash).iter();
        let place = places.find(|place| place.network.load(Ordering::Relaxed) == hash)?;
        Some(&place.full_at)
    }

    /// The word of a network, which gets one if it has none.
    ///
    /// Networks that take a place at the same moment may lose one another's failure: one too few is counted.
    pub(super) fn find_or_take(&self, network: IpAddr) -> Option<&AtomicU64> {
        let hash = self.hash(network);
        let places = self.places(hash);
        let known = |place: &&Place| place.network.load(Ordering::Relaxed) == hash;
        if let Some(place) = places.iter().find(known) {
            return Some(&place.full_at);
        }
        let need = |place: &&Place| {
            let is_taken = place.network.load(Ordering::Relaxed) != 0;
            (is_taken, place.full_at.load(Ordering::Relaxed))
        };
        let place = places.iter().min_by_key(need)?;
        // First, so that the newcomer never has to answer for what the other did.
        place.full_at.store(0, Ordering::Relaxed);
        place.network.store(hash, Ordering::Relaxed);
        Some(&place.full_at)
    }

    /// How many networks have a place.
    pub(super) fn len(&self) -> usize {
        let taken = |place: &&Place| place.network.load(Ordering::Relaxed) != 0;
        self.places.iter().filter(taken).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn each_network_has_a_word_of_its_own_while_there_is_room() {
        let networks = Networks::new(100_000);
        for n in 1..=10_000 {
            let word = networks.find_or_take(network(n)).unwrap();
            word.store(n.into(), Ordering::Relaxed);
        }
        for n in 1..=10_000 {
            let word = networks.find(network(n)).unwrap();
            assert_eq!(word.load(Ordering::Relaxed), u64::from(n));
        }
        assert!(networks.find(network(0)).is_none());
        assert_eq!(networks.len(), 10_000);
    }

    #[test]
    fn any_number_of_networks_fits_and_the_room_is_used() {
        for n in [1, 2, 7, 8, 9, 1_000] {
            let networks = Networks::new(n);
            for network in (0..100_000).map(network) {
                assert!(networks.find_or_take(network).is_some());
            }
            assert!(networks.len() <= n && networks.len() > n / 2, "{n}");
        }
    }

    #[test]
    fn who_fails_all_the_time_is_not_forgotten_in_a_flood() {
        let networks = Networks::new(64);
        let persistent = network(u32::MAX);
        let word = networks.find_or_take(persistent).unwrap();
        word.store(1_000_000, Ordering::Relaxed);
        for n in 0..100_000 {
            let word = networks.find_or_take(network(n)).unwrap();
            word.store(u64::from(n), Ordering::Relaxed);
        }
        let word = networks.find(persistent).unwrap();
        assert_eq!(word.load(Ordering::Relaxed), 1_000_000);
    }
}
