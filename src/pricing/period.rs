use serde::{Deserialize, Serialize};

use super::{
    decimal::{Exact, PRICE_DECIMALS, Rounding},
    line::PricingError,
    money::Money,
};
use crate::{clock::Timestamp, limit::PeriodBounds};

/// The time that one invoice is for, from `start` up to but without `end`, in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Bounds", into = "Bounds")]
pub struct BillingPeriod {
    start: u64,
    end: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bounds {
    start: Timestamp,
    end: Timestamp,
}

impl BillingPeriod {
    /// A period between two points, each rounded down to its second.
    ///
    /// # Errors
    ///
    /// [`PricingError::EmptyPeriod`] when it would not last a second.
    pub const fn new(start: Timestamp, end: Timestamp) -> Result<Self, PricingError> {
        let (start, end) = (start.as_unix_seconds(), end.as_unix_seconds());
        if start >= end {
            return Err(PricingError::EmptyPeriod);
        }
        Ok(Self { start, end })
    }

    /// The first instant.
    #[must_use]
    pub const fn start(self) -> Timestamp {
        Timestamp::from_unix_seconds(self.start)
    }

    /// The first instant after it.
    #[must_use]
    pub const fn end(self) -> Timestamp {
        Timestamp::from_unix_seconds(self.end)
    }

    /// Whether an instant lies in it.
    #[must_use]
    pub const fn contains(self, instant: Timestamp) -> bool {
        let second = instant.as_unix_seconds();
        self.start <= second && second < self.end
    }

    /// All of it.
    #[must_use]
    pub const fn whole(self) -> Part {
        Part {
            period: self,
            from: self.start,
            to: self.end,
        }
    }

    /// The part between two instants: the time that a plan was in force before or after a change.
    ///
    /// # Errors
    ///
    /// [`PricingError::OutsidePeriod`] unless the period holds all of it, [`PricingError::EmptyPeriod`] when it would
    /// not last a second.
    pub const fn part(self, from: Timestamp, to: Timestamp) -> Result<Part, PricingError> {
        let (from, to) = (from.as_unix_seconds(), to.as_unix_seconds());
        if from < self.start || to > self.end {
            return Err(PricingError::OutsidePeriod);
        }
        if from >= to {
            return Err(PricingError::EmptyPeriod);
        }
        Ok(Part {
            period: self,
            from,
            to,
        })
    }
}

impl TryFrom<PeriodBounds> for BillingPeriod {
    type Error = PricingError;

    fn try_from(bounds: PeriodBounds) -> Result<Self, PricingError> {
        Self::new(bounds.start, bounds.end)
    }
}

impl TryFrom<Bounds> for BillingPeriod {
    type Error = PricingError;

    fn try_from(bounds: Bounds) -> Result<Self, PricingError> {
        Self::new(bounds.start, bounds.end)
    }
}

impl From<BillingPeriod> for Bounds {
    fn from(period: BillingPeriod) -> Self {
        Self {
            start: period.start(),
            end: period.end(),
        }
    }
}

/// A part of a billing period, or all of it.
///
/// What belongs to a whole period is shared by seconds, cumulated from the period's start: parts that follow each other
/// add up to the whole, to the last coin and the last included unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    period: BillingPeriod,
    from: u64,
    to: u64,
}

impl Part {
    /// The period that it is a part of.
    #[must_use]
    pub const fn period(self) -> BillingPeriod {
        self.period
    }

    /// Its first instant.
    #[must_use]
    pub const fn from(self) -> Timestamp {
        Timestamp::from_unix_seconds(self.from)
    }

    /// The first instant after it.
    #[must_use]
    pub const fn to(self) -> Timestamp {
        Timestamp::from_unix_seconds(self.to)
    }

    /// Whether it is all of the period.
    #[must_use]
    pub const fn is_whole(self) -> bool {
        self.from == self.period.start && self.to == self.period.end
    }

    /// How many seconds it lasts, and how many the period.
    #[must_use]
    pub const fn seconds(self) -> (u64, u64) {
        (self.to - self.from, self.period.end - self.period.start)
    }

    /// Its share of an amount for the period, which is not below zero.
    pub(super) fn of_money(self, amount: Money, rounding: Rounding) -> Result<Money, PricingError> {
        if self.is_whole() {
            return Ok(amount);
        }
        let exponent = amount.currency().exponent();
        let upto = |second: u64| {
            let coin = 10_u128.checked_pow(PRICE_DECIMALS.checked_sub(exponent)?)?;
            Exact::picos(u128::try_from(amount.minor()).ok()?)
                .times(coin)?
                .scaled(
                    (second - self.period.start).into(),
                    (self.period.end - self.period.start).into(),
                )?
                .round(rounding, exponent)
        };
        let share = upto(self.to)
            .zip(upto(self.from))
            .map(|(to, from)| Money::from_minor(to - from, amount.currency()));
        share.ok_or(PricingError::TooLarge)
    }

    /// Its share of units for the period; a unit that falls between two parts is the former's.
    pub(super) fn of_units(self, units: u64) -> u64 {
        let length = u128::from(self.period.end - self.period.start);
        let upto = |second: u64| {
            (u128::from(units) * u128::from(second - self.period.start)).div_ceil(length)
        };
        // At most `units`.
        u64::try_from(upto(self.to) - upto(self.from)).unwrap_or(units)
    }
}
