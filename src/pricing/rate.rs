use std::{collections::BTreeMap, sync::Arc};

use super::{
    book::{Charge, Meter, PriceBook, Step},
    decimal::{Exact, PRICE_DECIMALS, Rounding, UnitPrice, WHOLE},
    line::{Line, LineKind, PricingError, Rated, Share, TraceStep, Unpriced},
    model::Partial,
    money::{Currency, Money, parts},
    period::Part,
    usage::{UsageTotals, Used},
};

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
        let overage = price.overage.map_or(0, |_| used.overage.min(used.units));
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
            shares: shares(price, amount),
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

/// Who gets how much of a line.
fn shares(price: &Meter, amount: Money) -> Vec<Share> {
    let steps = price
        .splits
        .iter()
        .map(|(_, percent)| percent.as_millionths());
    let amounts = parts(amount, steps, WHOLE);
    let shares = price.splits.iter().zip(amounts);
    shares
        .map(|((to, percent), amount)| Share {
            to: Arc::clone(to),
            percent: *percent,
            amount,
        })
        .collect()
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
