//! Hashing of digests for maps.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Mixes a digest with secret random numbers.
///
/// A digest is spread evenly already, but an attacker can search for keys whose digests share some bits. The
/// secret makes the place in a map unpredictable; SipHash would do the same at three times the cost.
#[derive(Clone, Debug)]
pub(in crate::identity) struct DigestState {
    secret: [u64; 2],
}

impl DigestState {
    pub(in crate::identity) fn new() -> Self {
        let random = RandomState::new();
        Self {
            secret: [random.hash_one(0), random.hash_one(1) | 1],
        }
    }
}

impl BuildHasher for DigestState {
    type Hasher = DigestHasher;

    fn build_hasher(&self) -> DigestHasher {
        let [start, factor] = self.secret;
        DigestHasher {
            hash: start,
            factor,
        }
    }
}

#[derive(Debug)]
pub(in crate::identity) struct DigestHasher {
    hash: u64,
    factor: u64,
}

impl DigestHasher {
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.hash ^ word) * u128::from(self.factor);
        // Both halves of the product, so that every bit of the input reaches every bit of the hash.
        #[expect(clippy::cast_possible_truncation, reason = "each half is taken")]
        let folded = (product as u64) ^ ((product >> 64) as u64);
        self.hash = folded.wrapping_add(self.factor);
    }
}

impl Hasher for DigestHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut word = [0; 8];
            word.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn finish(&self) -> u64 {
        self.hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::KeyDigest;

    #[test]
    fn digests_that_share_bits_are_spread_and_no_two_maps_agree() {
        let state = DigestState::new();
        let mut buckets = [0_u32; 64];
        for n in 0..6_400_u32 {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&n.to_le_bytes());
            let hash = state.hash_one(KeyDigest::from_bytes(bytes));
            buckets[(hash >> 58) as usize] += 1;
        }
        // 100 expected in each; seven standard deviations.
        assert!(buckets.iter().all(|n| (30..170).contains(n)), "{buckets:?}");
        let digest = KeyDigest::from_bytes([7; 32]);
        assert_ne!(state.hash_one(digest), DigestState::new().hash_one(digest));
    }
}
