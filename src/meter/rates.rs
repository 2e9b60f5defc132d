//! From what a call used to what it cost.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::UsageEvent;

/// What a call cost whoever runs the service, part by part, in whole billionths (10^-9) of the currency's unit.
///
/// Sums stay at `u64::MAX` (about 18 billion units) when they would overflow. Which currency it is, the service
/// knows: there is one for all of its [`CostRates`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct CallCost {
    /// The sum of the parts below.
    pub total_nanos: u64,
    /// What every call costs.
    #[serde(skip_serializing_if = "is_zero")]
    pub call_nanos: u64,
    /// Compute time.
    #[serde(skip_serializing_if = "is_zero")]
    pub compute_nanos: u64,
    /// Bytes of request and response content.
    #[serde(skip_serializing_if = "is_zero")]
    pub bytes_nanos: u64,
    /// What other services charged for their part.
    #[serde(skip_serializing_if = "is_zero")]
    pub upstream_nanos: u64,
    /// Named quantities, such as tokens.
    #[serde(skip_serializing_if = "is_zero")]
    pub tokens_nanos: u64,
    /// The compute time itself, in microseconds: no money, so that other rates can be applied to it later.
    #[serde(skip_serializing_if = "is_zero")]
    pub compute_micros: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the form that serde asks for"
)]
const fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What resources cost whoever runs the service, in whole billionths (10^-9) of the currency's unit.
///
/// Everything costs nothing unless set. A part of a unit costs its part, rounded up to a whole billionth.
///
/// ```
/// use tollgate::meter::CostRates;
///
/// // In dollars: 0.048 an hour of compute, 0.09 a GiB sent, 0.15 and 0.60 a million tokens.
/// let rates = CostRates::new()
///     .compute_second(13_334)
///     .response_gib(90_000_000)
///     .tokens_per_million("input", 150_000_000)
///     .tokens_per_million("output", 600_000_000);
/// # let _ = rates;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct CostRates {
    call: u64,
    compute_second: u64,
    handler_time: bool,
    request_gib: u64,
    response_gib: u64,
    /// By name, for a million.
    tokens: Vec<(Arc<str>, u64)>,
}

const MICROS_PER_SECOND: u64 = 1_000_000;
const BYTES_PER_GIB: u64 = 1 << 30;
const KIB_PER_GIB: u64 = 1 << 20;
const MILLION: u64 = 1_000_000;

impl CostRates {
    /// Nothing costs anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// What every call costs, whatever it does.
    pub const fn call(mut self, nanos: u64) -> Self {
        self.call = nanos;
        self
    }

    /// What a second of compute time costs.
    pub const fn compute_second(mut self, nanos: u64) -> Self {
        self.compute_second = nanos;
        self
    }

    /// Whether the time from a call's arrival at the meter to the head of its answer counts as compute time,
    /// beside what is added by name; off unless set.
    ///
    /// It is a wall clock's time: it counts waiting as well. A service that measures its own work with
    /// [`CostScope::time`](super::CostScope::time) leaves this off, or it counts twice.
    pub const fn handler_time(mut self, on: bool) -> Self {
        self.handler_time = on;
        self
    }

    /// What 1,024 bytes of request content cost; in place of [`request_gib`](Self::request_gib).
    pub const fn request_kib(self, nanos: u64) -> Self {
        self.request_gib(nanos.saturating_mul(KIB_PER_GIB))
    }

    /// What 2^30 bytes of request content cost.
    pub const fn request_gib(mut self, nanos: u64) -> Self {
        self.request_gib = nanos;
        self
    }

    /// What 1,024 bytes of response content cost; in place of [`response_gib`](Self::response_gib).
    pub const fn response_kib(self, nanos: u64) -> Self {
        self.response_gib(nanos.saturating_mul(KIB_PER_GIB))
    }

    /// What 2^30 bytes of response content cost.
    pub const fn response_gib(mut self, nanos: u64) -> Self {
        self.response_gib = nanos;
        self
    }

    /// What one of a named quantity costs. The name is that of [`Meter::add`](super::Meter::add); the last word on
    /// a name stands.
    pub fn tokens(self, name: impl Into<Arc<str>>, nanos: u64) -> Self {
        self.tokens_per_million(name, nanos.saturating_mul(MILLION))
    }

    /// What a million of a named quantity cost, for prices below one billionth each.
    pub fn tokens_per_million(mut self, name: impl Into<Arc<str>>, nanos: u64) -> Self {
        let name = name.into();
        self.tokens.retain(|(known, _)| *known != name);
        self.tokens.push((name, nanos));
        self
    }

    pub(super) const fn measures_handler(&self) -> bool {
        self.handler_time
    }

    /// What the call of an event cost under these rates: its compute time and upstream charges come from
    /// [`UsageEvent::cost`], the rest from the event itself.
    ///
    /// For reports under other rates than those of the day; the recorder has done it once for its own. Of a call
    /// that its client left, the event holds what is billed; the recorder has priced all that was added.
    #[must_use]
    pub fn price(&self, event: &UsageEvent) -> CallCost {
        let spent = event.cost.unwrap_or_default();
        self.priced(Work {
            compute_micros: spent.compute_micros,
            upstream_nanos: spent.upstream_nanos,
            request_bytes: event.request_bytes,
            response_bytes: event.response_bytes,
            n_calls: u64::from(event.part_of.is_none()),
            quantities: event.quantities.iter().map(|(name, n)| (&**name, *n)),
        })
    }

    pub(super) fn priced<N: AsRef<str>>(
        &self,
        work: Work<impl IntoIterator<Item = (N, u64)>>,
    ) -> CallCost {
        let bytes = [
            part(self.request_gib, work.request_bytes, BYTES_PER_GIB),
            part(self.response_gib, work.response_bytes, BYTES_PER_GIB),
        ];
        let of_name = |name: &str| self.tokens.iter().find(|(known, _)| **known == *name);
        let tokens = work.quantities.into_iter().filter_map(|(name, n)| {
            of_name(name.as_ref()).map(|(_, rate)| part(*rate, n, MILLION))
        });
        CallCost {
            total_nanos: 0,
            call_nanos: self.call.saturating_mul(work.n_calls),
            compute_nanos: part(self.compute_second, work.compute_micros, MICROS_PER_SECOND),
            bytes_nanos: sum(bytes),
            upstream_nanos: work.upstream_nanos,
            tokens_nanos: sum(tokens),
            compute_micros: work.compute_micros,
        }
        .summed()
    }
}

/// What a call used.
pub(super) struct Work<Q> {
    /// One for a call; none for a report of one that goes on.
    pub(super) n_calls: u64,
    pub(super) compute_micros: u64,
    pub(super) upstream_nanos: u64,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    pub(super) quantities: Q,
}

impl CallCost {
    fn summed(mut self) -> Self {
        self.total_nanos = sum([
            self.call_nanos,
            self.compute_nanos,
            self.bytes_nanos,
            self.upstream_nanos,
            self.tokens_nanos,
        ]);
        self
    }
}

fn sum(parts: impl IntoIterator<Item = u64>) -> u64 {
    parts.into_iter().fold(0, u64::saturating_add)
}

/// `used` of units of which `unit` cost `rate`, rounded up. Two numbers of 64 bits cannot overflow 128.
fn part(rate: u64, used: u64, unit: u64) -> u64 {
    let exact = (u128::from(rate) * u128::from(used)).div_ceil(u128::from(unit.max(1)));
    u64::try_from(exact).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn work(tokens: u64) -> Work<[(&'static str, u64); 2]> {
        Work {
            n_calls: 1,
            compute_micros: 1_500_000,
            upstream_nanos: 7,
            request_bytes: 1_024,
            response_bytes: 1_025,
            quantities: [("input", tokens), ("unpriced", u64::MAX)],
        }
    }

    #[test]
    fn each_part_has_its_rate_and_a_part_of_a_unit_its_part() {
        let rates = CostRates::new()
            .call(1)
            .compute_second(1_000)
            .request_kib(100)
            .response_kib(200)
            .tokens("input", 3);
        let cost = rates.priced(work(10));
        assert_eq!((cost.call_nanos, cost.compute_nanos), (1, 1_500));
        assert_eq!(cost.bytes_nanos, 100 + 201, "a byte above is rounded up");
        assert_eq!((cost.upstream_nanos, cost.tokens_nanos), (7, 30));
        assert_eq!(cost.total_nanos, 1 + 1_500 + 301 + 7 + 30);
        assert_eq!(cost.compute_micros, 1_500_000);
    }

    #[test]
    fn a_price_below_a_billionth_is_exact_over_many() {
        let rates = CostRates::new().tokens_per_million("input", 37_500);
        assert_eq!(rates.priced(work(1_000_000)).tokens_nanos, 37_500);
        assert_eq!(rates.priced(work(1)).tokens_nanos, 1);
    }

    #[test]
    fn the_last_word_on_a_name_stands() {
        let rates = CostRates::new().tokens("input", 3).tokens("input", 5);
        assert_eq!(rates.priced(work(2)).tokens_nanos, 10);
    }

    #[test]
    fn a_rate_of_nothing_and_a_use_of_everything_stay_in_range() {
        assert_eq!(CostRates::new().priced(work(u64::MAX)).total_nanos, 7);
        let dear = CostRates::new()
            .call(u64::MAX)
            .compute_second(u64::MAX)
            .request_kib(u64::MAX)
            .tokens("input", u64::MAX);
        assert_eq!(dear.priced(work(u64::MAX)).total_nanos, u64::MAX);
    }

    proptest! {
        #[test]
        fn a_part_is_never_below_its_exact_price_and_less_than_one_above(
            rate in any::<u32>(), used in any::<u32>(), unit in 1_u64..1 << 31,
        ) {
            let exact = u128::from(rate) * u128::from(used);
            let charged = u128::from(part(rate.into(), used.into(), unit)) * u128::from(unit);
            prop_assert!(charged >= exact && charged < exact + u128::from(unit));
        }
    }
}
