use std::{collections::BTreeSet, sync::Arc};

use super::{
    decimal::{self, Percent, Rounding, UnitPrice, WHOLE},
    model::{DecimalText, MeterPrice, Model, Partial, Prices, SplitEntry, Tier},
    money::{Currency, Money, MoneyError},
};
use crate::error::ConfigError;

/// Prices that were checked, in the form that [`rate`](super::rate) reads.
///
/// ```
/// use tollgate::pricing::{MeterPrice, PriceBook, Prices, Tier};
///
/// let prices = Prices::new("USD").meter(MeterPrice::graduated("calls", [Tier::up_to(1_000, "0"), Tier::rest("0.001")]));
/// assert!(PriceBook::new(&prices).is_ok());
///
/// let gap = [Tier::up_to(1_000, "0"), Tier::rest("0.001").from(1_100)];
/// let error = PriceBook::new(&Prices::new("USD").meter(MeterPrice::graduated("calls", gap))).unwrap_err();
/// assert_eq!(error.path(), "meters[0].tiers[1].from");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriceBook {
    pub(super) currency: Currency,
    pub(super) rounding: Rounding,
    pub(super) fees: Vec<(Arc<str>, Money)>,
    pub(super) minimum: Option<Money>,
    pub(super) meters: Vec<Meter>,
    source: Prices,
}

/// The price of one meter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meter {
    pub(super) meter: Arc<str>,
    pub(super) api: Option<Arc<str>>,
    pub(super) charge: Charge,
    pub(super) included: u64,
    pub(super) overage: Option<UnitPrice>,
    pub(super) discount: Option<Percent>,
    pub(super) minimum: Option<Money>,
    pub(super) cap: Option<Money>,
    pub(super) splits: Vec<(Arc<str>, Percent)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Charge {
    Flat(Money),
    Graduated(Vec<Step>),
    Package {
        size: u64,
        price: UnitPrice,
        partial: Partial,
    },
    PerUnit(UnitPrice),
    Volume(Vec<Step>),
}

/// One tier, from its first unit to its last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) price: UnitPrice,
    pub(super) fee: Option<Money>,
}

impl PriceBook {
    /// Checks prices.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field, such as `meters[0].tiers[1].from`, and what to write instead.
    pub fn new(prices: &Prices) -> Result<Self, ConfigError> {
        let currency = prices.currency.parse::<Currency>().map_err(|source| {
            let reason = format!("`{}`: {source}", prices.currency);
            ConfigError::new("currency", reason).caused_by(source)
        })?;
        let reader = Reader { currency };
        let mut names = BTreeSet::new();
        let mut fees = Vec::with_capacity(prices.fees.len());
        for (index, fee) in prices.fees.iter().enumerate() {
            let at = |error: ConfigError| error.under(format_args!("fees[{index}]"));
            check_name("name", &fee.name).map_err(at)?;
            if !names.insert(&fee.name) {
                let reason = "two fees share this name: rename one";
                return Err(at(ConfigError::new("name", reason)));
            }
            let amount = reader.amount("amount", &fee.amount).map_err(at)?;
            fees.push((Arc::clone(&fee.name), amount));
        }
        let minimum = reader.optional("minimum", prices.minimum.as_ref())?;
        let mut known = BTreeSet::new();
        let mut meters = Vec::with_capacity(prices.meters.len());
        for (index, price) in prices.meters.iter().enumerate() {
            let at = |error: ConfigError| error.under(format_args!("meters[{index}]"));
            if !known.insert((&price.meter, &price.api)) {
                let reason =
                    "this meter has a price already: remove one, or say for which `api` it is";
                return Err(at(ConfigError::new("meter", reason)));
            }
            meters.push(reader.meter(price).map_err(at)?);
        }
        Ok(Self {
            currency,
            rounding: prices.rounding,
            fees,
            minimum,
            meters,
            source: prices.clone(),
        })
    }

    /// The currency of all amounts.
    #[must_use]
    pub const fn currency(&self) -> Currency {
        self.currency
    }

    /// The prices as they were written.
    pub const fn source(&self) -> &Prices {
        &self.source
    }

    /// The price that units of a meter of an API fall under.
    pub(super) fn price_of(&self, api: &str, meter: &str) -> Option<usize> {
        let find = |own: Option<&str>| {
            self.meters
                .iter()
                .position(|price| &*price.meter == meter && price.api.as_deref() == own)
        };
        find(Some(api)).or_else(|| find(None))
    }
}

/// Reads amounts of one currency.
struct Reader {
    currency: Currency,
}

impl Reader {
    fn amount(&self, field: &str, text: &DecimalText) -> Result<Money, ConfigError> {
        let minor = decimal::parse(&text.0, self.currency.exponent())
            .map_err(|source| amount_fault(field, text, source))?;
        let minor = i128::try_from(minor)
            .ok()
            // So that a hundred thousand lines of such amounts have room.
            .filter(|minor| *minor <= i128::from(i64::MAX))
            .ok_or_else(|| ConfigError::new(field, MoneyError::TooLarge.to_string()))?;
        Ok(Money::from_minor(minor, self.currency))
    }

    fn optional(
        &self,
        field: &str,
        text: Option<&DecimalText>,
    ) -> Result<Option<Money>, ConfigError> {
        text.map(|text| self.amount(field, text)).transpose()
    }

    fn meter(&self, entry: &MeterPrice) -> Result<Meter, ConfigError> {
        check_name("meter", &entry.meter)?;
        if let Some(api) = &entry.api {
            check_name("api", api)?;
        }
        check_fields(entry)?;
        let charge = self.charge(entry)?;
        let overage = entry.overage.as_ref();
        let discount = entry.discount.as_ref();
        let minimum = self.optional("minimum", entry.minimum.as_ref())?;
        let cap = self.optional("cap", entry.cap.as_ref())?;
        if let (Some(minimum), Some(cap)) = (minimum, cap)
            && minimum.minor() > cap.minor()
        {
            let reason = format!("it is below the minimum of {minimum}: raise it, or lower that");
            return Err(ConfigError::new("cap", reason));
        }
        Ok(Meter {
            meter: Arc::clone(&entry.meter),
            api: entry.api.clone(),
            charge,
            included: entry.included,
            overage: overage.map(|text| price("overage", text)).transpose()?,
            discount: discount.map(|text| percent("discount", text)).transpose()?,
            minimum,
            cap,
            splits: splits(&entry.splits)?,
        })
    }

    fn charge(&self, entry: &MeterPrice) -> Result<Charge, ConfigError> {
        let needed = |field: &'static str| {
            ConfigError::new(
                field,
                format!("a {} price needs it", model_name(entry.model)),
            )
        };
        let written = || entry.price.as_ref().ok_or_else(|| needed("price"));
        Ok(match entry.model {
            Model::Flat => Charge::Flat(self.amount("price", written()?)?),
            Model::Graduated => Charge::Graduated(self.tiers(&entry.tiers)?),
            Model::Package => Charge::Package {
                size: match entry.size.ok_or_else(|| needed("size"))? {
                    0 => {
                        let reason = "a package holds at least one unit";
                        return Err(ConfigError::new("size", reason));
                    }
                    size => size,
                },
                price: price("price", written()?)?,
                partial: entry.partial.ok_or_else(|| {
                    let reason =
                        "say what a package that is not full costs: `round_up` or `prorate`";
                    ConfigError::new("partial", reason)
                })?,
            },
            Model::PerUnit => Charge::PerUnit(price("price", written()?)?),
            Model::Volume => Charge::Volume(self.tiers(&entry.tiers)?),
        })
    }

    fn tiers(&self, tiers: &[Tier]) -> Result<Vec<Step>, ConfigError> {
        if tiers.is_empty() {
            let reason = "write at least one tier, the last without `up_to`";
            return Err(ConfigError::new("tiers", reason));
        }
        let mut steps = Vec::with_capacity(tiers.len());
        let mut first = 1;
        for (index, tier) in tiers.iter().enumerate() {
            let at = |error: ConfigError| error.under(format_args!("tiers[{index}]"));
            let is_last = index + 1 == tiers.len();
            let last = last_unit(tier, first, is_last).map_err(at)?;
            steps.push(Step {
                first,
                last,
                price: price("price", &tier.price).map_err(at)?,
                fee: self.optional("fee", tier.fee.as_ref()).map_err(at)?,
            });
            // Only the last tier ends with the last unit there is.
            first = last.saturating_add(1);
        }
        Ok(steps)
    }
}

/// Checks where a tier begins and ends; `first` follows from the tier before.
fn last_unit(tier: &Tier, first: u64, is_last: bool) -> Result<u64, ConfigError> {
    let before = first - 1;
    match tier.from {
        Some(0) => {
            let reason = "units are counted from 1: write 1";
            return Err(ConfigError::new("from", reason));
        }
        Some(from) if from < first => {
            let reason =
                format!("it overlaps the tier before, which ends with {before}: write {first}");
            return Err(ConfigError::new("from", reason));
        }
        Some(from) if from > first => {
            let reason =
                format!("it leaves a gap, as units from {first} on have no price: write {first}");
            return Err(ConfigError::new("from", reason));
        }
        Some(_) | None => {}
    }
    match tier.up_to {
        None if is_last => Ok(u64::MAX),
        None => {
            let reason = "only the last tier has no end: write the last unit of this one";
            Err(ConfigError::new("up_to", reason))
        }
        Some(last) if is_last => {
            let reason = format!(
                "it leaves a gap, as units above {last} have no price: leave it out, or add a tier without it"
            );
            Err(ConfigError::new("up_to", reason))
        }
        Some(last) if last < first => {
            let reason =
                format!("tiers go backwards: this one begins with {first}, so write at least that");
            Err(ConfigError::new("up_to", reason))
        }
        Some(u64::MAX) => {
            let reason = "nothing is left for the tiers behind it: remove them, or write less";
            Err(ConfigError::new("up_to", reason))
        }
        Some(last) => Ok(last),
    }
}

fn check_name(field: &str, name: &str) -> Result<(), ConfigError> {
    crate::id::TenantId::new(name)
        .map(drop)
        .map_err(|source| ConfigError::new(field, source.to_string()).caused_by(source))
}

const fn model_name(model: Model) -> &'static str {
    match model {
        Model::Flat => "flat",
        Model::Graduated => "graduated",
        Model::Package => "package",
        Model::PerUnit => "per_unit",
        Model::Volume => "volume",
    }
}

/// A field that the model does not read would be silently without effect.
fn check_fields(entry: &MeterPrice) -> Result<(), ConfigError> {
    let model = entry.model;
    let has_tiers = matches!(model, Model::Graduated | Model::Volume);
    let is_package = model == Model::Package;
    let is_flat = model == Model::Flat;
    let unread = [
        ("price", has_tiers && entry.price.is_some()),
        ("size", !is_package && entry.size.is_some()),
        ("partial", !is_package && entry.partial.is_some()),
        ("tiers", !has_tiers && !entry.tiers.is_empty()),
        ("included", is_flat && entry.included > 0),
        ("overage", is_flat && entry.overage.is_some()),
    ];
    match unread.into_iter().find(|(_, is_unread)| *is_unread) {
        None => Ok(()),
        Some((field, _)) => {
            let reason = format!(
                "a {} price does not read it: leave it out",
                model_name(model)
            );
            Err(ConfigError::new(field, reason))
        }
    }
}

fn price(field: &str, text: &DecimalText) -> Result<UnitPrice, ConfigError> {
    text.0
        .parse()
        .map_err(|source| amount_fault(field, text, source))
}

fn percent(field: &str, text: &DecimalText) -> Result<Percent, ConfigError> {
    text.0.parse().map_err(|source| match source {
        decimal::DecimalError::TooLarge => {
            let reason = format!("`{}`: a percentage is at most 100", text.0);
            ConfigError::new(field, reason).caused_by(source)
        }
        source => amount_fault(field, text, source),
    })
}

fn splits(entries: &[SplitEntry]) -> Result<Vec<(Arc<str>, Percent)>, ConfigError> {
    let mut names = BTreeSet::new();
    let mut splits = Vec::with_capacity(entries.len());
    let mut sum = 0_u32;
    for (index, entry) in entries.iter().enumerate() {
        let at = |error: ConfigError| error.under(format_args!("splits[{index}]"));
        check_name("to", &entry.to).map_err(at)?;
        if !names.insert(&entry.to) {
            let reason = "two splits share this name: add them up";
            return Err(at(ConfigError::new("to", reason)));
        }
        let share = percent("percent", &entry.percent).map_err(at)?;
        sum = sum.saturating_add(share.as_millionths());
        if sum > WHOLE {
            let reason = "with this one more than 100 per cent are given away: lower it";
            return Err(at(ConfigError::new("percent", reason)));
        }
        splits.push((Arc::clone(&entry.to), share));
    }
    Ok(splits)
}

/// Says what was written, cut short where it is long.
fn amount_fault(field: &str, text: &DecimalText, source: decimal::DecimalError) -> ConfigError {
    const SHOWN: usize = 40;
    let mut shown: String = text.0.chars().take(SHOWN).collect();
    if shown.len() < text.0.len() {
        shown.push_str("..");
    }
    ConfigError::new(field, format!("{shown:?}: {source}")).caused_by(source)
}
