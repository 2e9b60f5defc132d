use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, de};

use super::decimal::Rounding;

/// A number as somebody wrote it, read when the plan is checked.
///
/// In a document it is text: a number of JSON or TOML would be a float, which has no `0.1`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(super) struct DecimalText(pub(super) Arc<str>);

impl<'de> Deserialize<'de> for DecimalText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl de::Visitor<'_> for Text {
            type Value = DecimalText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount as text, such as \"0.0005\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<DecimalText, E> {
                Ok(DecimalText(Arc::from(text)))
            }
        }

        deserializer.deserialize_str(Text)
    }
}

/// What a plan costs: fees of the period, and a price for each meter.
///
/// Written in code, or as the field `prices` of a plan in a document; checked with the plan. Amounts are decimal text
/// in the currency's unit. A field that is not known is an error.
///
/// ```json
/// {
///   "currency": "USD",
///   "fees": [{ "name": "base", "amount": "29.00" }],
///   "meters": [
///     { "meter": "calls", "model": "graduated", "included": 1000, "tiers": [
///       { "from": 1, "up_to": 10000, "price": "0.001" },
///       { "from": 10001, "price": "0.0005" }
///     ] },
///     { "meter": "tokens", "api": "chat", "model": "package", "size": 1000, "partial": "round_up", "price": "0.02" }
///   ]
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[must_use]
pub struct Prices {
    pub(super) currency: Arc<str>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) rounding: Rounding,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) fees: Vec<FeeEntry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) minimum: Option<DecimalText>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) meters: Vec<MeterPrice>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FeeEntry {
    pub(super) name: Arc<str>,
    pub(super) amount: DecimalText,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn decimal(text: impl Into<Arc<str>>) -> DecimalText {
    DecimalText(text.into())
}

impl Prices {
    /// Prices in a currency of ISO 4217, such as `USD`; nothing costs anything yet.
    pub fn new(currency: impl Into<Arc<str>>) -> Self {
        Self {
            currency: currency.into(),
            rounding: Rounding::default(),
            fees: Vec::new(),
            minimum: None,
            meters: Vec::new(),
        }
    }

    /// How each line is rounded; [`Rounding::HalfEven`] unless said.
    pub const fn rounding(mut self, rounding: Rounding) -> Self {
        self.rounding = rounding;
        self
    }

    /// Adds an amount for each period, whatever is used; for a part of a period its share.
    pub fn fee(mut self, name: impl Into<Arc<str>>, amount: impl Into<Arc<str>>) -> Self {
        self.fees.push(FeeEntry {
            name: name.into(),
            amount: decimal(amount),
        });
        self
    }

    /// What a period costs at least, fees and use together; for a part of a period its share.
    pub fn minimum(mut self, amount: impl Into<Arc<str>>) -> Self {
        self.minimum = Some(decimal(amount));
        self
    }

    /// Adds the price of a meter.
    pub fn meter(mut self, price: MeterPrice) -> Self {
        self.meters.push(price);
        self
    }
}

/// How units become an amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Model {
    /// One amount for a period in which anything was used.
    Flat,
    /// Each unit at the price of the tier that it falls in.
    Graduated,
    /// A price for each package of so many units.
    Package,
    /// Each unit at the same price.
    PerUnit,
    /// All units at the price of the tier that the last of them falls in.
    Volume,
}

/// What a package that is not full costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Partial {
    /// Its share.
    Prorate,
    /// As much as a full one.
    RoundUp,
}

/// One tier of a graduated or a volume price.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[must_use]
pub struct Tier {
    /// The first unit; follows from the tier before where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<u64>,
    /// The last unit; absent in the last tier alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) up_to: Option<u64>,
    pub(super) price: DecimalText,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) fee: Option<DecimalText>,
}

impl Tier {
    /// A tier that ends with a unit, itself in it.
    pub fn up_to(last: u64, price: impl Into<Arc<str>>) -> Self {
        Self {
            from: None,
            up_to: Some(last),
            price: decimal(price),
            fee: None,
        }
    }

    /// The last tier, without an end.
    pub fn rest(price: impl Into<Arc<str>>) -> Self {
        Self {
            from: None,
            up_to: None,
            price: decimal(price),
            fee: None,
        }
    }

    /// Says with which unit the tier begins. It follows from the tier before; said, it is checked.
    pub const fn from(mut self, first: u64) -> Self {
        self.from = Some(first);
        self
    }

    /// An amount for the tier: of a graduated price when its first unit is used, of a volume price when the last unit
    /// falls in it.
    pub fn fee(mut self, amount: impl Into<Arc<str>>) -> Self {
        self.fee = Some(decimal(amount));
        self
    }
}

/// What the use of one meter costs.
///
/// The meter `calls` counts calls, `request_bytes` and `response_bytes` content; any other is a quantity that handlers
/// add, such as `tokens`. The steps are always in this order: included units, model, overage, discount, minimum, cap,
/// and rounding once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[must_use]
pub struct MeterPrice {
    pub(super) meter: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) api: Option<Arc<str>>,
    pub(super) model: Model,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) price: Option<DecimalText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) partial: Option<Partial>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) tiers: Vec<Tier>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) included: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) overage: Option<DecimalText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) discount: Option<DecimalText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) minimum: Option<DecimalText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cap: Option<DecimalText>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) splits: Vec<SplitEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SplitEntry {
    pub(super) to: Arc<str>,
    pub(super) percent: DecimalText,
}

impl MeterPrice {
    fn new(meter: impl Into<Arc<str>>, model: Model) -> Self {
        Self {
            meter: meter.into(),
            api: None,
            model,
            price: None,
            size: None,
            partial: None,
            tiers: Vec::new(),
            included: 0,
            overage: None,
            discount: None,
            minimum: None,
            cap: None,
            splits: Vec::new(),
        }
    }

    fn priced(mut self, price: impl Into<Arc<str>>) -> Self {
        self.price = Some(decimal(price));
        self
    }

    /// Each unit at the same price, with up to 12 decimals.
    pub fn per_unit(meter: impl Into<Arc<str>>, price: impl Into<Arc<str>>) -> Self {
        Self::new(meter, Model::PerUnit).priced(price)
    }

    /// One amount for a period in which anything was used.
    pub fn flat(meter: impl Into<Arc<str>>, price: impl Into<Arc<str>>) -> Self {
        Self::new(meter, Model::Flat).priced(price)
    }

    /// A price for each package of `size` units; `partial` says what the last one costs.
    pub fn package(
        meter: impl Into<Arc<str>>,
        size: u64,
        price: impl Into<Arc<str>>,
        partial: Partial,
    ) -> Self {
        Self {
            size: Some(size),
            partial: Some(partial),
            ..Self::new(meter, Model::Package).priced(price)
        }
    }

    /// Each unit at the price of the tier that it falls in.
    pub fn graduated(meter: impl Into<Arc<str>>, tiers: impl IntoIterator<Item = Tier>) -> Self {
        Self {
            tiers: tiers.into_iter().collect(),
            ..Self::new(meter, Model::Graduated)
        }
    }

    /// All units at the price of the tier that the last of them falls in. One unit more can cost less than one fewer.
    pub fn volume(meter: impl Into<Arc<str>>, tiers: impl IntoIterator<Item = Tier>) -> Self {
        Self {
            tiers: tiers.into_iter().collect(),
            ..Self::new(meter, Model::Volume)
        }
    }

    /// Restricts the price to one API. A price without one is for the units of all APIs together that have none of
    /// their own.
    pub fn api(mut self, api: impl Into<Arc<str>>) -> Self {
        self.api = Some(api.into());
        self
    }

    /// So many units of a period are paid for by the fee; tiers and packages count from the next. For a part of a
    /// period its share.
    pub const fn included(mut self, units: u64) -> Self {
        self.included = units;
        self
    }

    /// The price of a unit of a call that a rule marked as overage, see [`Quota`](crate::limit::Quota); such units
    /// take no part in included units and model. Without it they are priced like all others.
    pub fn overage(mut self, price: impl Into<Arc<str>>) -> Self {
        self.overage = Some(decimal(price));
        self
    }

    /// Takes a percentage off, with up to four decimals.
    pub fn discount(mut self, percent: impl Into<Arc<str>>) -> Self {
        self.discount = Some(decimal(percent));
        self
    }

    /// What the line costs at least, used or not; for a part of a period its share.
    pub fn minimum(mut self, amount: impl Into<Arc<str>>) -> Self {
        self.minimum = Some(decimal(amount));
        self
    }

    /// What the line costs at most; for a part of a period its share.
    pub fn cap(mut self, amount: impl Into<Arc<str>>) -> Self {
        self.cap = Some(decimal(amount));
        self
    }

    /// Gives somebody a percentage of the line, with up to four decimals: an author, a marketplace. The rest stays
    /// with whoever runs the service.
    pub fn split(mut self, to: impl Into<Arc<str>>, percent: impl Into<Arc<str>>) -> Self {
        self.splits.push(SplitEntry {
            to: to.into(),
            percent: decimal(percent),
        });
        self
    }
}
