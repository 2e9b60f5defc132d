//! Latencies of many calls in little room.

use std::fmt;

use hdrhistogram::{
    Histogram,
    serialization::{Deserializer, Serializer, V2Serializer},
};

/// Two significant digits: a latency that is told is less than one percent above the true one.
const DIGITS: u8 = 2;
/// A longer latency counts as this one: an hour.
const MAX_MICROS: u64 = 3_600_000_000;
/// The smallest bound of a sketch, so that fast routes share one size.
const LEAST_BOUND: u64 = 1_023;
/// Where the form of bytes keeps its digits, its lowest and its highest value: after a cookie, a length and an offset.
const HEADER_BYTES: usize = 32;

/// The latencies of many calls, mergeable without loss: an HDR histogram of microseconds with two significant digits.
///
/// A quantile is at most one percent above the true one and never below it. Zero to one hour; what is longer counts
/// as an hour. Counts stay at `u64::MAX` where they would overflow.
///
/// ```
/// use tollgate::usage::LatencySketch;
///
/// let mut sketch = LatencySketch::new();
/// for millis in 1..=100 {
///     sketch.record(millis * 1_000);
/// }
/// let p99 = sketch.quantile(9_900).expect("not empty");
/// assert!((99_000..100_000).contains(&p99));
/// assert_eq!(LatencySketch::from_bytes(&sketch.to_bytes())?, sketch);
/// # Ok::<(), tollgate::usage::CorruptSketch>(())
/// ```
#[derive(Clone, Default)]
pub struct LatencySketch {
    /// `None` as long as nothing was recorded.
    counts: Option<Histogram<u64>>,
}

/// Bytes that are no sketch of this crate's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[error("these bytes are no sketch of latencies")]
pub struct CorruptSketch {
    #[source]
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The bound of a sketch whose highest value is this one. It depends on nothing else, so that the same latencies make
/// the same bytes in whatever order they came.
const fn bound(micros: u64) -> u64 {
    // Below 2^32, as latencies are capped.
    let bound = micros.saturating_add(1).next_power_of_two() - 1;
    if bound < LEAST_BOUND {
        LEAST_BOUND
    } else {
        bound
    }
}

impl LatencySketch {
    /// A sketch of no latencies.
    #[must_use]
    pub const fn new() -> Self {
        Self { counts: None }
    }

    /// Adds one latency.
    pub fn record(&mut self, micros: u64) {
        let micros = micros.min(MAX_MICROS);
        if let Some(counts) = self.room_for(micros) {
            counts.saturating_record(micros);
        }
    }

    /// Adds all latencies of another sketch.
    pub fn merge(&mut self, other: &Self) {
        let Some(theirs) = &other.counts else { return };
        let high = theirs.high();
        if let Some(counts) = self.room_for(high) {
            // Fails only where the other holds values above the bound, which was just raised to it.
            let _ = counts.add(theirs);
        }
    }

    /// The counts, with a bound that holds this value.
    fn room_for(&mut self, micros: u64) -> Option<&mut Histogram<u64>> {
        if self.counts.as_ref().is_none_or(|own| own.high() < micros) {
            // Fails only for bounds that are none.
            let mut larger = Histogram::new_with_bounds(1, bound(micros), DIGITS).ok()?;
            if let Some(own) = &self.counts {
                larger.add(own).ok()?;
            }
            self.counts = Some(larger);
        }
        self.counts.as_mut()
    }

    /// How many latencies there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.as_ref().map_or(0, Histogram::len)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// The latency in microseconds that so many ten thousandths of all calls do not exceed: 5,000 is the median, 9,900
    /// the 99th percentile. More than 10,000 is taken as 10,000; `None` when the sketch is empty.
    #[must_use]
    pub fn quantile(&self, ten_thousandths: u32) -> Option<u64> {
        let counts = self.counts.as_ref().filter(|counts| !counts.is_empty())?;
        let share = u128::from(ten_thousandths.min(10_000));
        let rank = (u128::from(counts.len()) * share).div_ceil(10_000).max(1);
        let mut seen = 0;
        for value in counts.iter_recorded() {
            seen += u128::from(value.count_at_value());
            if seen >= rank {
                return Some(counts.highest_equivalent(value.value_iterated_to()));
            }
        }
        Some(counts.max())
    }

    /// How many latencies are at most so many microseconds, as exactly as the sketch knows.
    #[must_use]
    pub fn count_at_most(&self, micros: u64) -> u64 {
        self.counts.as_ref().map_or(0, |counts| {
            counts.count_between(0, micros.min(counts.high()))
        })
    }

    /// The form in which a sketch is stored: HdrHistogram's V2, uncompressed. Empty for an empty sketch.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some(counts) = self.counts.as_ref().filter(|counts| !counts.is_empty())
            && V2Serializer::new().serialize(counts, &mut bytes).is_err()
        {
            // A vector takes every byte, and counts above i64::MAX, which have no form, are 292,000 years of calls.
            bytes.clear();
        }
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    ///
    /// [`CorruptSketch`] when the bytes are anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CorruptSketch> {
        if bytes.is_empty() {
            return Ok(Self::new());
        }
        // Checked before the library makes room for what the header promises.
        if !has_known_bounds(bytes) {
            return Err(CorruptSketch { cause: None });
        }
        let mut rest = bytes;
        let counts = Deserializer::new()
            .deserialize(&mut rest)
            .map_err(|cause| CorruptSketch {
                cause: Some(Box::new(cause)),
            })?;
        if !rest.is_empty() {
            return Err(CorruptSketch { cause: None });
        }
        Ok(Self {
            counts: Some(counts),
        })
    }
}

fn has_known_bounds(bytes: &[u8]) -> bool {
    let Some(header) = bytes.get(..HEADER_BYTES) else {
        return false;
    };
    let number = |from: usize, to: usize| {
        let digits = header.get(from..to).unwrap_or_default();
        digits
            .iter()
            .fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let length = number(4, 8);
    let high = number(24, 32);
    length <= bytes.len() as u64
        && number(12, 16) == u64::from(DIGITS)
        && number(16, 24) == 1
        && high <= bound(MAX_MICROS)
        && high == bound(high)
}

impl PartialEq for LatencySketch {
    fn eq(&self, other: &Self) -> bool {
        match (&self.counts, &other.counts) {
            (Some(own), Some(other)) => own == other,
            _ => self.is_empty() && other.is_empty(),
        }
    }
}

impl Eq for LatencySketch {}

impl fmt::Debug for LatencySketch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LatencySketch")
            .field("count", &self.count())
            .field("median_micros", &self.quantile(5_000))
            .field("p99_micros", &self.quantile(9_900))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn latency() -> impl Strategy<Value = u64> {
        prop_oneof![
            0..2_000_u64,
            0..10_000_000_u64,
            Just(MAX_MICROS),
            Just(MAX_MICROS - 1),
            any::<u64>()
        ]
    }

    fn sketch(latencies: &[u64]) -> LatencySketch {
        let mut sketch = LatencySketch::new();
        for micros in latencies {
            sketch.record(*micros);
        }
        sketch
    }

    proptest! {
        #[test]
        fn a_quantile_is_at_most_a_hundredth_above_the_true_one(
            latencies in prop::collection::vec(latency(), 1..100),
            share in 0..=10_000_u32,
        ) {
            let told = sketch(&latencies).quantile(share).unwrap();
            let mut sorted: Vec<_> = latencies.iter().map(|micros| (*micros).min(MAX_MICROS)).collect();
            sorted.sort_unstable();
            let rank = (sorted.len() * share as usize).div_ceil(10_000).max(1);
            let exact = sorted[rank - 1];
            prop_assert!(told >= exact && told - exact <= exact / 100 + 1, "{told} for {exact}");
        }

        #[test]
        fn the_order_and_the_parts_do_not_show(
            mut latencies in prop::collection::vec(latency(), 0..60),
            cut in 0..60_usize,
        ) {
            let whole = sketch(&latencies);
            let (one, other) = latencies.split_at(cut.min(latencies.len()));
            let mut merged = sketch(other);
            merged.merge(&sketch(one));
            prop_assert_eq!(&merged, &whole);
            prop_assert_eq!(merged.to_bytes(), whole.to_bytes());
            latencies.reverse();
            prop_assert_eq!(sketch(&latencies).to_bytes(), whole.to_bytes());
            prop_assert_eq!(LatencySketch::from_bytes(&whole.to_bytes()).unwrap(), whole);
        }

        #[test]
        fn bytes_that_are_no_sketch_are_an_error_and_no_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..80),
            latencies in prop::collection::vec(latency(), 1..20),
            place in any::<prop::sample::Index>(),
            other in any::<u8>(),
        ) {
            let _ = LatencySketch::from_bytes(&bytes);
            bytes = sketch(&latencies).to_bytes();
            let place = place.index(bytes.len());
            bytes[place] = other;
            let _ = LatencySketch::from_bytes(&bytes);
            bytes.truncate(place);
            prop_assert!(bytes.is_empty() || LatencySketch::from_bytes(&bytes).is_err());
        }
    }

    #[test]
    fn what_is_within_an_objective_can_be_counted() {
        let sketch = sketch(&[10, 200, 30_000, 400_000]);
        assert_eq!(sketch.count_at_most(9), 0);
        assert_eq!(sketch.count_at_most(200), 2);
        assert_eq!(sketch.count_at_most(u64::MAX), 4);
        assert_eq!(LatencySketch::new().count_at_most(u64::MAX), 0);
        assert_eq!(LatencySketch::new().quantile(5_000), None);
        assert!(LatencySketch::new().to_bytes().is_empty());
    }
}
