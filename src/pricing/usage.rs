use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    id::Environment,
    meter::{CallOutcome, UsageEvent},
};

/// The meter of calls.
pub const CALLS: &str = "calls";
/// The meter of bytes of request content.
pub const REQUEST_BYTES: &str = "request_bytes";
/// The meter of bytes of response content.
pub const RESPONSE_BYTES: &str = "response_bytes";

/// Units of one meter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Used {
    /// All units.
    pub units: u64,
    /// Those of them that belong to calls above a limit which prices overage.
    #[serde(default)]
    pub overage: u64,
}

impl Used {
    /// So many units, of which so many are overage: at most all of them.
    #[must_use]
    pub fn new(units: u64, overage: u64) -> Self {
        Self {
            units,
            overage: overage.min(units),
        }
    }

    pub(super) fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The sum; stays at `u64::MAX` where it would overflow. Of each, at most all units are overage.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let overage = |used: Self| used.overage.min(used.units);
        Self {
            units: self.units.saturating_add(other.units),
            overage: overage(self).saturating_add(overage(other)),
        }
    }
}

/// What one tenant used in one period, by API and meter: what [`rate`](super::rate) prices.
///
/// Sums do not depend on order or grouping: filled event by event, minute by minute or from several processes, the
/// same use comes to the same totals. Nothing here drops an event that comes twice: that is the sink's part.
///
/// ```
/// use tollgate::{clock::Timestamp, id::{PlanName, TenantId}, meter::{EventId, UsageEvent}, pricing::UsageTotals};
///
/// let mut event = UsageEvent::new(EventId::new(1, 1), Timestamp::UNIX_EPOCH, TenantId::new("acme")?, PlanName::new("pro")?);
/// event.quantities.insert("tokens".into(), 812);
/// let mut usage = UsageTotals::new();
/// assert!(usage.record(&event));
/// assert_eq!(usage.units("default", "calls"), 1);
/// assert_eq!(usage.units("default", "tokens"), 812);
///
/// event.waived = true;
/// assert!(!usage.record(&event));
/// # Ok::<(), tollgate::id::InvalidId>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Entry>", into = "Vec<Entry>")]
pub struct UsageTotals {
    by_api: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Used>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    api: Arc<str>,
    meter: Arc<str>,
    units: u64,
    #[serde(default)]
    overage: u64,
}

impl UsageTotals {
    /// Nothing used.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds units of a meter of an API.
    pub fn add(&mut self, api: &str, meter: &str, used: Used) {
        // Owned names only for what is new.
        let meters = match self.by_api.get_mut(api) {
            Some(meters) => meters,
            None => self.by_api.entry(Arc::from(api)).or_default(),
        };
        match meters.get_mut(meter) {
            Some(sum) => *sum = sum.plus(used),
            None => {
                meters.insert(Arc::from(meter), Used::default().plus(used));
            }
        }
    }

    /// Adds what an event is paid for; `false` when it is not paid for at all.
    ///
    /// Not paid for are calls of test keys, calls that were refused, that failed or whose handler panicked, and calls
    /// that are [waived](UsageEvent::waived). A client that left pays what the event tells. The report of a call that
    /// goes on adds bytes and quantities, its last event the call.
    pub fn record(&mut self, event: &UsageEvent) -> bool {
        if !is_billed(event) {
            return false;
        }
        let used = |units: u64| Used::new(units, if event.overage { units } else { 0 });
        let calls = u64::from(event.part_of.is_none());
        let own = [
            (CALLS, calls),
            (REQUEST_BYTES, event.request_bytes),
            (RESPONSE_BYTES, event.response_bytes),
        ];
        // A quantity of such a name would count twice.
        let is_own = |meter: &str| own.iter().any(|(name, _)| *name == meter);
        let quantities = event.quantities.iter();
        let quantities = quantities.map(|(meter, units)| (&**meter, *units));
        for (meter, units) in own
            .into_iter()
            .chain(quantities.filter(|(meter, _)| !is_own(meter)))
        {
            if units > 0 {
                self.add(&event.api, meter, used(units));
            }
        }
        true
    }

    /// Adds all of other totals.
    pub fn merge(&mut self, other: &Self) {
        for (api, meter, used) in other.iter() {
            self.add(api, meter, used);
        }
    }

    /// The units of a meter of an API.
    #[must_use]
    pub fn units(&self, api: &str, meter: &str) -> u64 {
        self.used(api, meter).units
    }

    /// The units of a meter of an API, and those of them that are overage.
    #[must_use]
    pub fn used(&self, api: &str, meter: &str) -> Used {
        let meters = self.by_api.get(api);
        let used = meters.and_then(|meters| meters.get(meter));
        used.copied().unwrap_or_default()
    }

    /// API, meter and units, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>, Used)> + '_ {
        self.by_api
            .iter()
            .flat_map(|(api, meters)| meters.iter().map(move |(meter, used)| (api, meter, *used)))
    }

    /// Whether nothing was used.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_api.is_empty()
    }
}

fn is_billed(event: &UsageEvent) -> bool {
    event.environment == Environment::Live
        && !event.waived
        && matches!(event.outcome, CallOutcome::Served | CallOutcome::Aborted)
}

impl<'a> Extend<&'a UsageEvent> for UsageTotals {
    fn extend<I: IntoIterator<Item = &'a UsageEvent>>(&mut self, events: I) {
        for event in events {
            self.record(event);
        }
    }
}

impl<'a> FromIterator<&'a UsageEvent> for UsageTotals {
    fn from_iter<I: IntoIterator<Item = &'a UsageEvent>>(events: I) -> Self {
        let mut usage = Self::new();
        usage.extend(events);
        usage
    }
}

impl From<Vec<Entry>> for UsageTotals {
    fn from(entries: Vec<Entry>) -> Self {
        let mut usage = Self::new();
        for entry in entries {
            let used = Used::new(entry.units, entry.overage);
            usage.add(&entry.api, &entry.meter, used);
        }
        usage
    }
}

impl From<UsageTotals> for Vec<Entry> {
    fn from(usage: UsageTotals) -> Self {
        let entries = usage.iter().map(|(api, meter, used)| Entry {
            api: Arc::clone(api),
            meter: Arc::clone(meter),
            units: used.units,
            overage: used.overage,
        });
        entries.collect()
    }
}
