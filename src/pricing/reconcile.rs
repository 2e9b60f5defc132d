use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::usage::UsageTotals;

/// Two counts of the same use compared, such as what the recorder acknowledged with what the event store holds.
///
/// Plain data: it goes with an invoice to whoever looks at it before it is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ReconcileReport {
    /// Every meter of either count, in the order of API and meter.
    pub meters: Vec<ReconciledMeter>,
}

/// One meter by two counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ReconciledMeter {
    /// The API.
    pub api: Arc<str>,
    /// The meter.
    pub meter: Arc<str>,
    /// By the count that is known to be whole.
    pub expected: u64,
    /// By the count that is priced.
    pub counted: u64,
}

impl ReconciledMeter {
    /// How many units more were counted than expected; below zero for fewer.
    #[must_use]
    pub fn difference(&self) -> i128 {
        i128::from(self.counted) - i128::from(self.expected)
    }
}

impl ReconcileReport {
    /// Compares two counts.
    #[must_use]
    pub fn compare(expected: &UsageTotals, counted: &UsageTotals) -> Self {
        let mut both = expected.clone();
        both.merge(counted);
        let meters = both.iter().map(|(api, meter, _)| ReconciledMeter {
            api: Arc::clone(api),
            meter: Arc::clone(meter),
            expected: expected.units(api, meter),
            counted: counted.units(api, meter),
        });
        Self {
            meters: meters.collect(),
        }
    }

    /// Whether both counts agree on every meter.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.meters.iter().all(|meter| meter.difference() == 0)
    }
}
