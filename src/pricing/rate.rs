use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    book::{Charge, Meter, PriceBook, Step},
    decimal::{Exact, PRICE_DECIMALS, Percent, Rounding, UnitPrice, WHOLE},
    model::Partial,
    money::{Currency, Money, MoneyError, parts},
    period::Part,
    usage::{UsageTotals, Used},
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

/// Prices what was used in a part of a billing period.
///
/// The same use and prices give the same lines. What a whole period's price speaks of (fees, flat prices, minimums,
/// caps and included units) is shared by the seconds of the part; tiers and packages are not, and count from the
/// part's first unit.
///
/// ```
/// use tollgate::{clock::Timestamp, pricing::{BillingPeriod, MeterPrice, PriceBook, Prices, Tier, UsageTotals, Used, rate}};
///
/// let tiers = [Tier::up_to(1_000, "0"), Tier::up_to(10_000, "0.001"), Tier::rest("0.0005")];
/// let prices = PriceBook::new(&Prices::new("USD").meter(MeterPrice::graduated("calls", tiers)))?;
/// let mut usage = UsageTotals::new();
/// usage.add("chat", "calls", Used::new(12_001, 0));
/// let day = BillingPeriod::new(Timestamp::UNIX_EPOCH, Timestamp::from_unix_seconds(86_400))?;
///
/// // 1,000 for nothing, 9,000 at 0.001, 2,001 at 0.0005: 10.0005, rounded once.
/// let rated = rate(&prices, &usage, day.whole())?;
/// assert_eq!(rated.total.to_string(), "10.00 USD");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`PricingError::TooLarge`] when an amount has no room in 128 bits, [`PricingError::Money`] when the sum has none.
pub fn rate(prices: &PriceBook, usage: &UsageTotals, part: Part) -> Result<Rated, PricingError> {
    let currency = prices.currency;
    let mut used: Vec<BTreeMap<Arc<str>, Used>> = vec![BTreeMap::new(); prices.meters.len()];
    let mut unpriced = Vec::new();
    for (api, meter, units) in usage.iter() {
        let own = prices
            .price_of(api, meter)
            .and_then(|index| used.get_mut(index));
        match own {
            Some(by_api) => {
                by_api.insert(Arc::clone(api), units);
            }
            None => unpriced.push(Unpriced {
                api: Arc::clone(api),
                meter: Arc::clone(meter),
                units: units.units,
            }),
        }
    }
    let mut lines = Vec::with_capacity(prices.fees.len() + used.len() + 1);
    for (name, amount) in &prices.fees {
        lines.push(fee_line(name, *amount, prices.rounding, part)?);
    }
    for (meter, by_api) in prices.meters.iter().zip(&used) {
        let line = MeterLine::new(currency, prices.rounding, part).of(meter, by_api)?;
        if line.used.units > 0 || !line.amount.is_zero() {
            lines.push(line);
        }
    }
    let mut total = Money::sum(currency, lines.iter().map(|line| line.amount))?;
    if let Some(minimum) = prices.minimum {
        let least = part.of_money(minimum, prices.rounding)?;
        if total.minor() < least.minor() {
            lines.push(minimum_line(minimum, least, least.minus(total)?, part));
            total = least;
        }
    }
    Ok(Rated {
        lines,
        total,
        unpriced,
    })
}

fn fee_line(
    name: &Arc<str>,
    whole: Money,
    rounding: Rounding,
    part: Part,
) -> Result<Line, PricingError> {
    let amount = part.of_money(whole, rounding)?;
    let mut trace = vec![TraceStep::Flat { amount: whole }];
    trace.extend(prorated(whole, amount, part));
    Ok(plain_line(LineKind::Fee, name, amount, trace))
}

fn minimum_line(whole: Money, least: Money, missing: Money, part: Part) -> Line {
    let mut trace = Vec::from_iter(prorated(whole, least, part));
    trace.push(TraceStep::Minimum { amount: least });
    plain_line(LineKind::Minimum, &Arc::from("minimum"), missing, trace)
}

pub(super) fn plain_line(
    kind: LineKind,
    name: &Arc<str>,
    amount: Money,
    trace: Vec<TraceStep>,
) -> Line {
    Line {
        kind,
        name: Arc::clone(name),
        api: None,
        used: Used::default(),
        by_api: BTreeMap::new(),
        amount,
        shares: Vec::new(),
        trace,
    }
}

/// Nothing to tell of a whole period.
fn prorated(of: Money, amount: Money, part: Part) -> Option<TraceStep> {
    let (seconds, of_seconds) = part.seconds();
    (!part.is_whole()).then_some(TraceStep::Prorated {
        of,
        seconds,
        of_seconds,
        amount,
    })
}

/// A line of a meter in the making.
struct MeterLine {
    currency: Currency,
    rounding: Rounding,
    part: Part,
    amount: Exact,
    trace: Vec<TraceStep>,
}

impl MeterLine {
    const fn new(currency: Currency, rounding: Rounding, part: Part) -> Self {
        Self {
            currency,
            rounding,
            part,
            amount: Exact::ZERO,
            trace: Vec::new(),
        }
    }

    fn of(
        mut self,
        price: &Meter,
        by_api: &BTreeMap<Arc<str>, Used>,
    ) -> Result<Line, PricingError> {
        let used = by_api
            .values()
            .fold(Used::default(), |sum, used| sum.plus(*used));
        let overage = price.overage.map_or(0, |_| used.overage);
        let mut units = used.units - overage;
        let included = self.part.of_units(price.included).min(units);
        if included > 0 {
            units -= included;
            self.trace.push(TraceStep::Included { units: included });
        }
        self.charge(&price.charge, units)?;
        if let Some(price) = price.overage.filter(|_| overage > 0) {
            let amount = cost(overage, price)?;
            self.add(amount)?;
            self.trace.push(TraceStep::Overage {
                units: overage,
                price,
                amount,
            });
        }
        if let Some(percent) = price.discount {
            let left = WHOLE.saturating_sub(percent.as_millionths());
            let amount = self.amount.scaled(left.into(), WHOLE.into());
            self.amount = amount.ok_or(PricingError::TooLarge)?;
            self.trace.push(TraceStep::Discount {
                percent,
                amount: self.amount,
            });
        }
        self.bound(price)?;
        let amount = self.round()?;
        let (to, percents): (Vec<_>, Vec<_>) = price.splits.iter().cloned().unzip();
        let steps = percents.iter().map(|percent| percent.as_millionths());
        let amounts = parts(amount, steps, WHOLE);
        let shares = to.into_iter().zip(percents).zip(amounts);
        Ok(Line {
            kind: LineKind::Usage,
            name: Arc::clone(&price.meter),
            api: price.api.clone(),
            used,
            by_api: match &price.api {
                Some(_) => BTreeMap::new(),
                None => by_api
                    .iter()
                    .map(|(api, used)| (Arc::clone(api), used.units))
                    .collect(),
            },
            amount,
            shares: shares
                .map(|((to, percent), amount)| Share {
                    to,
                    percent,
                    amount,
                })
                .collect(),
            trace: self.trace,
        })
    }

    fn add(&mut self, amount: Exact) -> Result<(), PricingError> {
        self.amount = self.amount.plus(amount).ok_or(PricingError::TooLarge)?;
        Ok(())
    }

    fn charge(&mut self, charge: &Charge, units: u64) -> Result<(), PricingError> {
        if units == 0 {
            return Ok(());
        }
        match charge {
            Charge::Flat(whole) => {
                let amount = self.part.of_money(*whole, self.rounding)?;
                self.trace.push(TraceStep::Flat { amount: *whole });
                self.trace.extend(prorated(*whole, amount, self.part));
                self.add(exact(amount)?)
            }
            Charge::Graduated(tiers) => {
                let reached = tiers
                    .iter()
                    .enumerate()
                    .take_while(|(_, tier)| tier.first <= units);
                for (index, tier) in reached {
                    self.tier(index, tier, units.min(tier.last) - (tier.first - 1))?;
                }
                Ok(())
            }
            Charge::Package {
                size,
                price,
                partial,
            } => self.packages(units, *size, *price, *partial),
            Charge::PerUnit(price) => {
                let amount = cost(units, *price)?;
                self.trace.push(TraceStep::Units {
                    units,
                    price: *price,
                    amount,
                });
                self.add(amount)
            }
            Charge::Volume(tiers) => {
                let mut numbered = tiers.iter().enumerate();
                match numbered.find(|(_, tier)| units <= tier.last) {
                    Some((index, tier)) => self.tier(index, tier, units),
                    // The last tier has no end.
                    None => Ok(()),
                }
            }
        }
    }

    fn tier(&mut self, index: usize, tier: &Step, units: u64) -> Result<(), PricingError> {
        let mut amount = cost(units, tier.price)?;
        if let Some(fee) = tier.fee {
            amount = amount.plus(exact(fee)?).ok_or(PricingError::TooLarge)?;
        }
        self.trace.push(TraceStep::Tier {
            tier: u64::try_from(index).unwrap_or(u64::MAX).saturating_add(1),
            units,
            price: tier.price,
            fee: tier.fee,
            amount,
        });
        self.add(amount)
    }

    fn packages(
        &mut self,
        units: u64,
        size: u64,
        price: UnitPrice,
        partial: Partial,
    ) -> Result<(), PricingError> {
        let (paid, of) = match partial {
            Partial::Prorate => (units, size),
            Partial::RoundUp => (units.div_ceil(size), 1),
        };
        let packages = Exact::ONE.scaled(paid.into(), of.into());
        let amount = Exact::picos(price.as_picos()).scaled(paid.into(), of.into());
        let (packages, amount) = packages.zip(amount).ok_or(PricingError::TooLarge)?;
        self.trace.push(TraceStep::Packages {
            units,
            size,
            packages,
            price,
            amount,
        });
        self.add(amount)
    }

    /// The least and the most that the line costs.
    fn bound(&mut self, price: &Meter) -> Result<(), PricingError> {
        if let Some(whole) = price.minimum {
            let least = self.part.of_money(whole, self.rounding)?;
            if self.amount.is_below(picos(least)?) {
                self.trace.extend(prorated(whole, least, self.part));
                self.trace.push(TraceStep::Minimum { amount: least });
                self.amount = exact(least)?;
            }
        }
        if let Some(whole) = price.cap {
            let most = self.part.of_money(whole, self.rounding)?;
            if self.amount.is_above(picos(most)?) {
                self.trace.extend(prorated(whole, most, self.part));
                self.trace.push(TraceStep::Cap { amount: most });
                self.amount = exact(most)?;
            }
        }
        Ok(())
    }

    fn round(&mut self) -> Result<Money, PricingError> {
        let minor = self.amount.round(self.rounding, self.currency.exponent());
        let amount = Money::from_minor(minor.ok_or(PricingError::TooLarge)?, self.currency);
        let was_whole = exact(amount).is_ok_and(|whole| whole == self.amount);
        if !was_whole {
            self.trace.push(TraceStep::Rounded {
                exact: self.amount,
                rounding: self.rounding,
            });
        }
        Ok(amount)
    }
}

fn cost(units: u64, price: UnitPrice) -> Result<Exact, PricingError> {
    let amount = Exact::picos(price.as_picos()).times(units.into());
    amount.ok_or(PricingError::TooLarge)
}

fn exact(amount: Money) -> Result<Exact, PricingError> {
    picos(amount).map(Exact::picos)
}

fn picos(amount: Money) -> Result<u128, PricingError> {
    let picos = PRICE_DECIMALS
        .checked_sub(amount.currency().exponent())
        .and_then(|decimals| 10_u128.checked_pow(decimals))
        .and_then(|coin| u128::try_from(amount.minor()).ok()?.checked_mul(coin));
    picos.ok_or(PricingError::TooLarge)
}
