//! Numbers that the same seed repeats.

#![allow(dead_code, reason = "each bench uses a part of it")]

/// A sequence of numbers (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// Seeds that follow each other have nothing in common.
    pub(crate) const fn of_case(seed: u64) -> Self {
        Self(seed.wrapping_mul(0xd134_2543_de82_ef95))
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    pub(crate) const fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// The numbers among the arguments; Cargo adds `--bench`.
pub(crate) fn number(place: usize, default: u64) -> u64 {
    let mut numbers = std::env::args().skip(1).filter_map(|it| it.parse().ok());
    numbers.nth(place).unwrap_or(default)
}
