//! What the events of one minute say together.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use super::LatencySketch;
use crate::{
    clock::Timestamp,
    id::{Environment, PlanName, TenantId},
    meter::{CallOutcome, UsageEvent},
};

const MICROS_PER_MINUTE: u64 = 60_000_000;
/// What a method is called that RFC 9110 and RFC 5789 do not know: a client can invent as many as it likes.
const OTHER_METHOD: &str = "OTHER";
const METHODS: [&str; 9] = [
    "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE",
];
/// The longest name of an API or a route that stands as it is; of a longer one, its beginning.
const MAX_NAME_BYTES: usize = 255;

/// What usage is counted apart for, beside the time: the least that queries, invoices and objectives need.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct UsageKey {
    /// Who pays.
    pub tenant: TenantId,
    /// Usage in the test environment is never billed.
    pub environment: Environment,
    /// The plan that governed the calls, and so their prices.
    pub plan: PlanName,
    /// The API; at most 255 bytes, of a longer name its beginning and `…`.
    pub api: Arc<str>,
    /// The method; `OTHER` for one that RFC 9110 and RFC 5789 do not know.
    pub method: Arc<str>,
    /// The route template; at most 255 bytes, of a longer one its beginning and `…`.
    pub route: Arc<str>,
    /// The caller's country, where events tell it.
    pub country: Option<Arc<str>>,
}

impl UsageKey {
    /// Usage of a route, live and of any country that no event tells; for tests and for usage that a service counts
    /// itself.
    #[must_use]
    pub fn new(tenant: TenantId, plan: PlanName, api: &str, method: &str, route: &str) -> Self {
        Self {
            tenant,
            environment: Environment::Live,
            plan,
            api: name(api).into(),
            method: known_method(method).into(),
            route: name(route).into(),
            country: None,
        }
    }

    /// What an event is counted for.
    #[must_use]
    pub fn of(event: &UsageEvent) -> Self {
        let whole = |text: &Arc<str>| match name(text) {
            Cow::Borrowed(_) => Arc::clone(text),
            Cow::Owned(short) => short.into(),
        };
        let method = match known_method(&event.method) {
            OTHER_METHOD => OTHER_METHOD.into(),
            _ => Arc::clone(&event.method),
        };
        Self {
            tenant: event.tenant.clone(),
            environment: event.environment,
            plan: event.plan.clone(),
            api: whole(&event.api),
            method,
            route: whole(&event.route),
            country: event.country.as_ref().map(whole),
        }
    }
}

fn known_method(method: &str) -> &'static str {
    let mut known = METHODS.into_iter();
    known.find(|each| *each == method).unwrap_or(OTHER_METHOD)
}

fn name(text: &str) -> Cow<'_, str> {
    const MARK: char = '…';
    if text.len() <= MAX_NAME_BYTES {
        return Cow::Borrowed(text);
    }
    let room = MAX_NAME_BYTES - MARK.len_utf8();
    let mut short = String::with_capacity(MAX_NAME_BYTES);
    let beginning = text.chars().scan(0, |end, c| {
        *end += c.len_utf8();
        (*end <= room).then_some(c)
    });
    short.extend(beginning);
    short.push(MARK);
    Cow::Owned(short)
}

/// How much was used of one named quantity. Sums stay at `u128::MAX` where they would overflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuantityTotal {
    /// All of it.
    pub amount: u128,
    /// What of it was used by calls above a limit that prices overage.
    pub overage: u128,
}

/// Numbers that add up: of a minute, an hour or a month.
///
/// An event that reports a call which goes on ([`UsageEvent::part_of`]) adds its bytes, quantities and cost and counts
/// as no call. Sums stay at their greatest number where they would overflow, so that in whatever order events are
/// added and parts merged, the result is the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageTotals {
    /// All calls, however they ended.
    pub calls: u64,
    /// Calls that a limit, an access state or a route layer refused.
    pub refused: u64,
    /// Calls that the service failed, panics among them.
    pub failed: u64,
    /// Calls whose client left.
    pub aborted: u64,
    /// Of the aborted calls, those that are not to be paid for.
    pub waived: u64,
    /// Calls above a limit that prices overage.
    pub overage: u64,
    /// Calls of a version of the API that is deprecated.
    pub deprecated: u64,
    /// Calls by the class of their status, 1xx to 5xx. A status outside of them counts in none.
    pub statuses: [u64; 5],
    /// Bytes of request content.
    pub request_bytes: u128,
    /// Bytes of response content.
    pub response_bytes: u128,
    /// What the calls cost whoever runs the service, in billionths of the currency's unit.
    pub cost_nanos: u128,
    /// Named quantities.
    pub quantities: BTreeMap<Arc<str>, QuantityTotal>,
    /// Latencies of the calls that were not refused: how long a refusal takes says nothing of the service.
    pub latency: LatencySketch,
}

fn add(sum: &mut u64, n: u64) {
    *sum = sum.saturating_add(n);
}

fn add_wide(sum: &mut u128, n: impl Into<u128>) {
    *sum = sum.saturating_add(n.into());
}

impl UsageTotals {
    /// Adds one event.
    pub fn add(&mut self, event: &UsageEvent) {
        add_wide(&mut self.request_bytes, event.request_bytes);
        add_wide(&mut self.response_bytes, event.response_bytes);
        add_wide(
            &mut self.cost_nanos,
            event.cost.map_or(0, |cost| cost.total_nanos),
        );
        for (name, n) in &event.quantities {
            let total = self.quantities.entry(Arc::clone(name)).or_default();
            add_wide(&mut total.amount, *n);
            add_wide(&mut total.overage, if event.overage { *n } else { 0 });
        }
        if event.part_of.is_none() {
            self.add_call(event);
        }
    }

    fn add_call(&mut self, event: &UsageEvent) {
        add(&mut self.calls, 1);
        match event.outcome {
            CallOutcome::Served => {}
            CallOutcome::Refused => add(&mut self.refused, 1),
            CallOutcome::Failed | CallOutcome::Panicked => add(&mut self.failed, 1),
            CallOutcome::Aborted => add(&mut self.aborted, 1),
        }
        add(&mut self.waived, u64::from(event.waived));
        add(&mut self.overage, u64::from(event.overage));
        add(&mut self.deprecated, u64::from(event.deprecated));
        let class = usize::from(event.status / 100);
        if let Some(calls) = class
            .checked_sub(1)
            .and_then(|place| self.statuses.get_mut(place))
        {
            add(calls, 1);
        }
        if event.outcome != CallOutcome::Refused {
            self.latency.record(event.latency_micros);
        }
    }

    /// Adds all of others.
    pub fn merge(&mut self, other: &Self) {
        for (sum, n) in [
            (&mut self.calls, other.calls),
            (&mut self.refused, other.refused),
            (&mut self.failed, other.failed),
            (&mut self.aborted, other.aborted),
            (&mut self.waived, other.waived),
            (&mut self.overage, other.overage),
            (&mut self.deprecated, other.deprecated),
        ] {
            add(sum, n);
        }
        for (sum, n) in self.statuses.iter_mut().zip(other.statuses) {
            add(sum, n);
        }
        add_wide(&mut self.request_bytes, other.request_bytes);
        add_wide(&mut self.response_bytes, other.response_bytes);
        add_wide(&mut self.cost_nanos, other.cost_nanos);
        for (name, n) in &other.quantities {
            let total = self.quantities.entry(Arc::clone(name)).or_default();
            add_wide(&mut total.amount, n.amount);
            add_wide(&mut total.overage, n.overage);
        }
        self.latency.merge(&other.latency);
    }

    /// The calls that a price per call applies to: not refused, not failed, not waived.
    #[must_use]
    pub const fn billable_calls(&self) -> u64 {
        self.calls
            .saturating_sub(self.refused)
            .saturating_sub(self.failed)
            .saturating_sub(self.waived)
    }
}

/// The usage of one key in one minute.
///
/// ```
/// use tollgate::{
///     clock::Timestamp,
///     id::{PlanName, TenantId},
///     meter::{EventId, UsageEvent},
///     usage::UsageMinute,
/// };
///
/// let time = Timestamp::from_unix_seconds(1_768_478_475);
/// let event = |n| -> Result<_, tollgate::id::InvalidId> {
///     Ok(UsageEvent::new(EventId::new(1, n), time, TenantId::new("acme")?, PlanName::new("pro")?))
/// };
/// let mut minute = UsageMinute::of(&event(1)?);
/// minute.add(&event(2)?)?;
/// assert_eq!(minute.totals.calls, 2);
/// assert_eq!(minute.minute.to_string(), "2026-01-15T12:01:00Z");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageMinute {
    /// What is counted for.
    pub key: UsageKey,
    /// The start of the minute.
    pub minute: Timestamp,
    /// What was used.
    pub totals: UsageTotals,
}

/// Usage of another key or another minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("this is usage of another key or another minute")]
pub struct OtherMinute;

impl UsageMinute {
    /// A minute in which nothing was used.
    #[must_use]
    pub fn new(key: UsageKey, time: Timestamp) -> Self {
        Self {
            key,
            minute: Self::start_of(time),
            totals: UsageTotals::default(),
        }
    }

    /// The minute of an event, with that event in it.
    #[must_use]
    pub fn of(event: &UsageEvent) -> Self {
        let mut minute = Self::new(UsageKey::of(event), event.time);
        minute.totals.add(event);
        minute
    }

    /// The start of the minute that a time is in.
    #[must_use]
    pub const fn start_of(time: Timestamp) -> Timestamp {
        let micros = time.as_unix_micros();
        Timestamp::from_unix_micros(micros - micros % MICROS_PER_MINUTE)
    }

    /// Adds an event.
    ///
    /// # Errors
    ///
    /// [`OtherMinute`] when the event belongs elsewhere; nothing was added.
    pub fn add(&mut self, event: &UsageEvent) -> Result<(), OtherMinute> {
        if self.minute != Self::start_of(event.time) || self.key != UsageKey::of(event) {
            return Err(OtherMinute);
        }
        self.totals.add(event);
        Ok(())
    }

    /// Adds the usage of the same key in the same minute, as another process has counted it.
    ///
    /// # Errors
    ///
    /// [`OtherMinute`] when the key or the minute differs; nothing was added.
    pub fn merge(&mut self, other: &Self) -> Result<(), OtherMinute> {
        if self.minute != other.minute || self.key != other.key {
            return Err(OtherMinute);
        }
        self.totals.merge(&other.totals);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::meter::{CallCost, EventId};

    fn event() -> impl Strategy<Value = UsageEvent> {
        let amount = || prop_oneof![0..1_000_u64, Just(u64::MAX)];
        let outcome = prop::sample::select(vec![
            CallOutcome::Served,
            CallOutcome::Refused,
            CallOutcome::Failed,
            CallOutcome::Aborted,
            CallOutcome::Panicked,
        ]);
        let flags = any::<[bool; 4]>();
        let numbers = (amount(), amount(), amount(), amount());
        let quantities = prop::collection::btree_map("[ab]", amount(), 0..3);
        let statuses = prop_oneof![100..600_u16, any::<u16>()];
        (outcome, flags, numbers, quantities, statuses).prop_map(
            |(outcome, flags, numbers, quantities, status)| {
                let mut event = UsageEvent::new(
                    EventId::new(1, 1),
                    Timestamp::from_unix_seconds(1_768_478_475),
                    TenantId::new("acme").unwrap(),
                    PlanName::new("pro").unwrap(),
                );
                event.outcome = outcome;
                event.status = status;
                [event.overage, event.waived, event.deprecated] = [flags[0], flags[1], flags[2]];
                event.part_of = flags[3].then(|| EventId::new(1, 2));
                (event.latency_micros, event.request_bytes) = (numbers.0, numbers.1);
                event.response_bytes = numbers.2;
                let cost = CallCost {
                    total_nanos: numbers.3,
                    ..CallCost::default()
                };
                event.cost = Some(cost);
                event.quantities = quantities
                    .into_iter()
                    .map(|(name, n)| (name.into(), n))
                    .collect();
                event
            },
        )
    }

    fn all(events: &[UsageEvent]) -> UsageTotals {
        let mut totals = UsageTotals::default();
        for event in events {
            totals.add(event);
        }
        totals
    }

    proptest! {
        #[test]
        fn any_order_and_any_split_make_the_same_totals(
            events in prop::collection::vec(event(), 0..40),
            shuffled in any::<u64>(),
            cuts in (0..40_usize, 0..40_usize),
        ) {
            let whole = all(&events);
            let mut other = events.clone();
            other.sort_by_key(|event| (event.latency_micros ^ shuffled).rotate_left(17));
            let (first, second) = (cuts.0.min(other.len()), cuts.1.min(other.len()));
            let (low, high) = (first.min(second), first.max(second));
            let mut merged = all(&other[high..]);
            merged.merge(&all(&other[..low]));
            merged.merge(&all(&other[low..high]));
            prop_assert_eq!(&merged, &whole);

            let calls: Vec<_> = events.iter().filter(|event| event.part_of.is_none()).collect();
            prop_assert_eq!(whole.calls, calls.len() as u64);
            let bytes: u128 = events.iter().map(|event| u128::from(event.request_bytes)).sum();
            prop_assert_eq!(whole.request_bytes, bytes);
            let refused = calls.iter().filter(|event| event.outcome == CallOutcome::Refused).count() as u64;
            prop_assert_eq!(whole.latency.count(), whole.calls - refused);
            for (name, total) in &whole.quantities {
                let amounts = events.iter().filter_map(|event| event.quantities.get(name));
                prop_assert_eq!(total.amount, amounts.map(|n| u128::from(*n)).sum::<u128>());
                prop_assert!(total.overage <= total.amount);
            }
        }
    }

    #[test]
    fn an_event_of_elsewhere_is_not_added() {
        let mut event = UsageEvent::new(
            EventId::new(1, 1),
            Timestamp::from_unix_seconds(59),
            TenantId::new("acme").unwrap(),
            PlanName::new("pro").unwrap(),
        );
        let mut minute = UsageMinute::of(&event);
        event.time = Timestamp::from_unix_seconds(60);
        assert_eq!(minute.add(&event), Err(OtherMinute));
        event.time = Timestamp::from_unix_seconds(1);
        event.route = "/other".into();
        assert_eq!(minute.add(&event), Err(OtherMinute));
        assert_eq!(minute.merge(&UsageMinute::of(&event)), Err(OtherMinute));
        assert_eq!(minute.totals.calls, 1);
    }

    #[test]
    fn what_a_client_invents_makes_no_key_of_its_own() {
        let mut event = UsageEvent::new(
            EventId::new(1, 1),
            Timestamp::from_unix_seconds(1),
            TenantId::new("acme").unwrap(),
            PlanName::new("pro").unwrap(),
        );
        event.method = "BREW".into();
        event.route = "é".repeat(40_000).into();
        let key = UsageKey::of(&event);
        assert_eq!(&*key.method, "OTHER");
        assert!(key.route.len() <= MAX_NAME_BYTES && key.route.ends_with("é…"));
        event.method = "PATCH".into();
        event.route = "/v1/x".into();
        let key = UsageKey::of(&event);
        assert_eq!((&*key.method, &*key.route), ("PATCH", "/v1/x"));
        assert_eq!(
            key,
            UsageKey::new(event.tenant, event.plan, "default", "PATCH", "/v1/x")
        );
    }
}
