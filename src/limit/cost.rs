//! What one call takes from each rule.

use std::sync::Arc;

use smallvec::SmallVec;

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
    custom: SmallVec<[(Arc<str>, u64); 2]>,
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
            custom: SmallVec::new_const(),
        }
    }

    /// Sets the bytes of request content.
    #[must_use]
    pub fn bytes(mut self, n: u64) -> Self {
        self.bytes = n.min(Self::MAX);
        self
    }

    /// Sets a custom quantity, such as the tokens that a call reserves before they are used.
    #[must_use]
    pub fn with(mut self, name: impl Into<Arc<str>>, n: u64) -> Self {
        let name = name.into();
        let n = n.min(Self::MAX);
        match self.custom.iter_mut().find(|(known, _)| *known == name) {
            Some((_, amount)) => *amount = n,
            None => self.custom.push((name, n)),
        }
        self
    }

    /// The amount of one unit, zero when the call takes none of it.
    #[must_use]
    pub fn amount(&self, unit: &Unit) -> u64 {
        match unit {
            Unit::Requests => self.requests,
            Unit::Bytes => self.bytes,
            Unit::Custom(name) => self
                .custom
                .iter()
                .find(|(known, _)| known == name)
                .map_or(0, |(_, amount)| *amount),
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
