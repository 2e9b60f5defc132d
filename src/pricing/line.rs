use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    decimal::{Exact, Percent, Rounding, UnitPrice},
    money::{Money, MoneyError},
    usage::Used,
};
use crate::id::TenantId;

/// Use cannot be priced, or an invoice not be drafted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PricingError {
    /// A period or a part of one does not last a second.
    #[error("the period does not last a second")]
    EmptyPeriod,
    /// A part reaches beyond its period.
    #[error("the part reaches beyond its period")]
    OutsidePeriod,
    /// Two parts of an invoice's period overlap.
    #[error("two parts of the period overlap at {at}")]
    OverlappingParts {
        /// The first second that belongs to both.
        at: crate::clock::Timestamp,
    },
    /// Two credits of an invoice share a name.
    #[error("two credits share the name `{name}`: add them up")]
    SameCredit {
        /// The name.
        name: Arc<str>,
    },
    /// A credit is not above zero, or its name is no identifier.
    #[error("a credit has a name and is an amount above zero")]
    NoCredit,
    /// An invoice has no plan and no credit, so that nothing says its currency.
    #[error("an invoice needs a plan or a credit")]
    Empty,
    /// A correction was asked for of an invoice of somebody else, or of another period.
    #[error("the invoice before is of {tenant} or of another period")]
    AnotherInvoice {
        /// Whose the invoice before is.
        tenant: TenantId,
    },
    /// There are no more versions.
    #[error("the invoice has too many versions")]
    TooManyVersions,
    /// Amounts do not add up.
    #[error("the amounts do not add up")]
    Money(#[from] MoneyError),
    /// An amount has no room in 128 bits.
    #[error("an amount is too large")]
    TooLarge,
}

/// What a line is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LineKind {
    /// Given back, below zero.
    Credit,
    /// An amount for the period, whatever is used.
    Fee,
    /// What is missing to the least that a period costs.
    Minimum,
    /// What was used of a meter.
    Usage,
}

impl LineKind {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Credit => "credit",
            Self::Fee => "fee",
            Self::Minimum => "minimum",
            Self::Usage => "usage",
        }
    }
}

/// One line of what a period costs, rounded once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Line {
    /// What it is for.
    pub kind: LineKind,
    /// The name of the fee or credit, or the meter.
    pub name: Arc<str>,
    /// The API whose price it is; absent for all that have no price of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<Arc<str>>,
    /// All units, and those of them that are overage.
    #[serde(default, skip_serializing_if = "Used::is_none")]
    pub used: Used,
    /// The units of each API, where the price is for several.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_api: BTreeMap<Arc<str>, u64>,
    /// What it costs.
    pub amount: Money,
    /// Who gets how much of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<Share>,
    /// How the amount came about, step by step.
    pub trace: Vec<TraceStep>,
}

impl fmt::Display for Line {
    /// For people: `calls of chat: 12000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(api) = &self.api {
            write!(f, " of {api}")?;
        }
        match self.kind {
            LineKind::Usage => write!(f, ": {}", self.used.units),
            _ => Ok(()),
        }
    }
}

/// Somebody's share of a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Share {
    /// Who gets it.
    pub to: Arc<str>,
    /// How much of the line.
    pub percent: Percent,
    /// The amount.
    pub amount: Money,
}

/// One step from units to an amount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
#[non_exhaustive]
pub enum TraceStep {
    /// The most that the line may cost took effect.
    Cap {
        /// What the line costs.
        amount: Money,
    },
    /// A percentage was taken off.
    Discount {
        /// How much.
        percent: Percent,
        /// What is left.
        amount: Exact,
    },
    /// The amount of the fee, or of a flat price.
    Flat {
        /// The amount.
        amount: Money,
    },
    /// Units that cost nothing.
    Included {
        /// How many.
        units: u64,
    },
    /// The least that the line costs took effect.
    Minimum {
        /// What the line costs.
        amount: Money,
    },
    /// Units of calls above a limit.
    Overage {
        /// How many.
        units: u64,
        /// The price of one.
        price: UnitPrice,
        /// What they cost.
        amount: Exact,
    },
    /// Packages.
    Packages {
        /// Units.
        units: u64,
        /// Units of a package.
        size: u64,
        /// Packages that are paid for, a partial one as a fraction.
        packages: Exact,
        /// The price of a package.
        price: UnitPrice,
        /// What they cost.
        amount: Exact,
    },
    /// The share of a part of the period: of a fee, a flat price, a minimum or a cap.
    Prorated {
        /// What is shared.
        of: Money,
        /// Seconds of the part.
        seconds: u64,
        /// Seconds of the period.
        of_seconds: u64,
        /// The share.
        amount: Money,
    },
    /// The smallest coin was reached.
    Rounded {
        /// The amount before.
        exact: Exact,
        /// By which rule.
        rounding: Rounding,
    },
    /// Units in a tier.
    Tier {
        /// The tier's number, from 1.
        tier: u64,
        /// How many units of it.
        units: u64,
        /// The price of one.
        price: UnitPrice,
        /// The amount for the tier itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fee: Option<Money>,
        /// What both cost.
        amount: Exact,
    },
    /// Units at one price.
    Units {
        /// How many.
        units: u64,
        /// The price of one.
        price: UnitPrice,
        /// What they cost.
        amount: Exact,
    },
}

/// Units that no price is for: told, so that nothing is free by mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Unpriced {
    /// The API.
    pub api: Arc<str>,
    /// The meter.
    pub meter: Arc<str>,
    /// How many.
    pub units: u64,
}

/// What a period, or a part of one, costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Rated {
    /// Fees first, then meters in the order of the prices, then what is missing to the minimum.
    pub lines: Vec<Line>,
    /// Their sum.
    pub total: Money,
    /// Units that no price is for.
    pub unpriced: Vec<Unpriced>,
}
