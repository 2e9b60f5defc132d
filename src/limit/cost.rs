//! What one call takes from each rule.

use std::sync::Arc;

use super::Unit;
use crate::head::RequestHead;

/// The units that one call takes, by what a rule counts.
///
/// The default is one request and nothing else. A cost of zero peeks: it changes nothing and passes unless
/// the limit is already overdrawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    requests: u64,
    bytes: u64,
    custom: Vec<CustomCost>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct CustomCost {
    name: Arc<str>,
    amount: u64,
    is_reserved: bool,
}

impl Default for Cost {
    fn default() -> Self {
        Self::requests(1)
    }
}

impl Cost {
    /// The largest amount of one unit that a call may take: 2^53 - 1, so that every store counts exactly.
    pub const MAX: u64 = (1 << 53) - 1;

    /// So many requests, no bytes, nothing custom.
    #[must_use]
    pub const fn requests(n: u64) -> Self {
        Self {
            requests: if n > Self::MAX { Self::MAX } else { n },
            bytes: 0,
            custom: Vec::new(),
        }
    }

    /// Sets the bytes of request content.
    #[must_use]
    pub fn bytes(mut self, n: u64) -> Self {
        self.bytes = n.min(Self::MAX);
        self
    }

    /// Charges a custom quantity before the call. It stays charged unless the handler names the quantity: then
    /// the difference is settled when the call ends.
    #[must_use]
    pub fn with(self, name: impl Into<Arc<str>>, n: u64) -> Self {
        self.set(name.into(), n, false)
    }

    /// Holds a custom quantity for the call, such as the most tokens that it may use. What the handler has named
    /// by the end of the call stays charged and the rest is released, all of it where nothing was named.
    #[must_use]
    pub fn reserve(self, name: impl Into<Arc<str>>, n: u64) -> Self {
        self.set(name.into(), n, true)
    }

    fn set(mut self, name: Arc<str>, n: u64, is_reserved: bool) -> Self {
        let amount = n.min(Self::MAX);
        let cost = CustomCost {
            name,
            amount,
            is_reserved,
        };
        match self.custom.iter_mut().find(|known| known.name == cost.name) {
            Some(known) => *known = cost,
            None => self.custom.push(cost),
        }
        self
    }

    pub(super) fn is_reserved(&self, name: &str) -> bool {
        let mut custom = self.custom.iter();
        custom.any(|cost| *cost.name == *name && cost.is_reserved)
    }

    /// The amount of one unit, zero when the call takes none of it.
    #[must_use]
    pub fn amount(&self, unit: &Unit) -> u64 {
        match unit {
            Unit::Requests => self.requests,
            Unit::Bytes => self.bytes,
            Unit::Custom(name) => {
                let mut custom = self.custom.iter();
                custom
                    .find(|cost| cost.name == *name)
                    .map_or(0, |cost| cost.amount)
            }
        }
    }
}

/// Says what a call takes before it is admitted. A closure works.
pub trait CostOf: Send + Sync + 'static {
    /// The call's cost, from what is known before its body is read.
    fn cost_of(&self, head: &RequestHead<'_>) -> Cost;
}

impl<F> CostOf for F
where
    F: Fn(&RequestHead<'_>) -> Cost + Send + Sync + 'static,
{
    fn cost_of(&self, head: &RequestHead<'_>) -> Cost {
        self(head)
    }
}
