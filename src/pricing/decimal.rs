use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Decimals that a price may have: a billionth of a thousandth.
pub(super) const PRICE_DECIMALS: u32 = 12;
/// 10 to the power of [`PRICE_DECIMALS`].
pub(super) const PICOS: u128 = 1_000_000_000_000;
/// The largest price: 10^15 units of the currency.
const MAX_PRICE_PICOS: u128 = PICOS * 1_000_000_000_000_000;
const PERCENT_DECIMALS: u32 = 4;
/// A hundred per cent, in the steps of [`Percent`].
pub(super) const WHOLE: u32 = 1_000_000;

/// A decimal number that cannot be taken as it is written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecimalError {
    /// It has a minus sign, and what it stands for cannot be below zero.
    #[error("it must not be negative: what is given back is a credit of an invoice")]
    Negative,
    /// It is written with an exponent.
    #[error("write it without an exponent, such as \"0.0005\"")]
    Exponent,
    /// It is no decimal number.
    #[error("write digits with at most one point between them, such as \"0.0005\"")]
    Malformed,
    /// It is finer than what it stands for.
    #[error("it has more than {most} decimals")]
    TooFine {
        /// The decimals that it may have.
        most: u32,
    },
    /// It is larger than what it stands for may be.
    #[error("it is too large")]
    TooLarge,
}

/// The number times 10 to the power of `decimals`, exactly.
pub(super) fn parse(text: &str, decimals: u32) -> Result<u128, DecimalError> {
    if text.starts_with('-') {
        return Err(DecimalError::Negative);
    }
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
    let (whole, fraction) = match text.split_once('.') {
        Some((whole, fraction)) if is_digits(fraction) => (whole, fraction),
        None => (text, ""),
        // The exponent is what is wrong with `1.5e-3`, not its place behind the point.
        Some(_) if has_exponent(text) => return Err(DecimalError::Exponent),
        Some(_) => return Err(DecimalError::Malformed),
    };
    if !is_digits(whole) {
        return Err(if has_exponent(text) {
            DecimalError::Exponent
        } else {
            DecimalError::Malformed
        });
    }
    let too_fine = DecimalError::TooFine { most: decimals };
    // Zeros at the end say nothing.
    let fraction = fraction.trim_end_matches('0');
    let missing = u32::try_from(fraction.len())
        .ok()
        .and_then(|length| decimals.checked_sub(length))
        .ok_or(too_fine)?;
    let digits = |sum: Option<u128>, digit: u8| {
        sum?.checked_mul(10)?
            .checked_add(u128::from(digit.wrapping_sub(b'0')))
    };
    whole
        .bytes()
        .chain(fraction.bytes())
        .fold(Some(0), digits)
        .and_then(|number: u128| number.checked_mul(10_u128.checked_pow(missing)?))
        .ok_or(DecimalError::TooLarge)
}

fn has_exponent(text: &str) -> bool {
    text.bytes().next().is_some_and(|it| it.is_ascii_digit())
        && text.contains(['e', 'E'])
        && text
            .bytes()
            .all(|it| it.is_ascii_digit() || matches!(it, b'.' | b'e' | b'E' | b'+' | b'-'))
}

/// Writes `number` times 10 to the power of -`decimals`, with at least `least` decimals.
pub(super) fn write(
    f: &mut fmt::Formatter<'_>,
    number: u128,
    decimals: u32,
    least: u32,
) -> fmt::Result {
    let scale = 10_u128.checked_pow(decimals).ok_or(fmt::Error)?;
    let (whole, mut fraction) = (number / scale, number % scale);
    let mut length = decimals;
    while length > least && fraction.is_multiple_of(10) {
        fraction /= 10;
        length -= 1;
    }
    if length == 0 {
        return write!(f, "{whole}");
    }
    let length = usize::try_from(length).map_err(|_| fmt::Error)?;
    write!(f, "{whole}.{fraction:0length$}")
}

macro_rules! as_text {
    ($name:ident) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'_, str>::deserialize(deserializer)?;
                text.parse().map_err(D::Error::custom)
            }
        }
    };
}
pub(super) use as_text;

/// A price of one unit or package: up to 12 decimals of the currency's unit, exactly.
///
/// Finer than the currency's smallest coin: `0.0005` of a dollar for a call. At most 10^15.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitPrice(u128);

impl UnitPrice {
    /// In 10^-12 of the currency's unit.
    #[must_use]
    pub const fn as_picos(self) -> u128 {
        self.0
    }
}

impl FromStr for UnitPrice {
    type Err = DecimalError;

    fn from_str(text: &str) -> Result<Self, DecimalError> {
        let picos = parse(text, PRICE_DECIMALS)?;
        if picos > MAX_PRICE_PICOS {
            return Err(DecimalError::TooLarge);
        }
        Ok(Self(picos))
    }
}

impl fmt::Display for UnitPrice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.0, PRICE_DECIMALS, 0)
    }
}

as_text!(UnitPrice);

/// From 0 to 100 per cent, with up to four decimals.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(u32);

impl Percent {
    /// In millionths of the whole.
    #[must_use]
    pub const fn as_millionths(self) -> u32 {
        self.0
    }
}

impl FromStr for Percent {
    type Err = DecimalError;

    fn from_str(text: &str) -> Result<Self, DecimalError> {
        let steps = parse(text, PERCENT_DECIMALS)?;
        match u32::try_from(steps) {
            Ok(steps) if steps <= WHOLE => Ok(Self(steps)),
            _ => Err(DecimalError::TooLarge),
        }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.0.into(), PERCENT_DECIMALS, 0)
    }
}

as_text!(Percent);

/// How a fraction of the smallest coin becomes a whole one, once for each line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Rounding {
    /// Towards the seller's loss.
    Down,
    /// To the nearest; a half to the even neighbour, so that many lines neither gain nor lose.
    #[default]
    HalfEven,
    /// To the nearest; a half up, as most tax offices count.
    HalfUp,
    /// Towards the seller's gain.
    Up,
}

/// An amount that is not rounded yet: a fraction of the currency's unit, never below zero.
///
/// Written as a decimal number where it has at most 12 decimals, as a fraction such as `1/3` where it has more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Exact {
    /// In 10^-12 of the currency's unit; the fraction is in lowest terms.
    numerator: u128,
    denominator: u128,
}

impl Exact {
    pub(super) const ONE: Self = Self::picos(PICOS);
    pub(super) const ZERO: Self = Self {
        numerator: 0,
        denominator: 1,
    };

    pub(super) const fn picos(picos: u128) -> Self {
        Self {
            numerator: picos,
            denominator: 1,
        }
    }

    /// `None` where the result has no room.
    pub(super) fn times(self, factor: u128) -> Option<Self> {
        self.scaled(factor, 1)
    }

    /// Times `numerator / denominator`; `None` where the result has no room, or for a denominator of zero.
    pub(super) fn scaled(self, numerator: u128, denominator: u128) -> Option<Self> {
        if denominator == 0 {
            return None;
        }
        let common = gcd(numerator, denominator);
        let (numerator, denominator) = (numerator / common, denominator / common);
        // Crosswise first, so that what cancels out needs no room.
        let left = gcd(self.numerator, denominator);
        let right = gcd(numerator, self.denominator);
        Some(Self {
            numerator: (self.numerator / left).checked_mul(numerator / right)?,
            denominator: (self.denominator / right).checked_mul(denominator / left)?,
        })
    }

    pub(super) fn plus(self, other: Self) -> Option<Self> {
        let common = gcd(self.denominator, other.denominator);
        let left = self.numerator.checked_mul(other.denominator / common)?;
        let right = other.numerator.checked_mul(self.denominator / common)?;
        let numerator = left.checked_add(right)?;
        let denominator = self.denominator.checked_mul(other.denominator / common)?;
        let common = gcd(numerator, denominator);
        Some(Self {
            numerator: numerator / common,
            denominator: denominator / common,
        })
    }

    /// Whether it is less than so many 10^-12.
    pub(super) fn is_below(self, picos: u128) -> bool {
        // The whole part is smaller, or it is as large and has no fraction: without a product that might overflow.
        self.numerator / self.denominator < picos
    }

    pub(super) fn is_above(self, picos: u128) -> bool {
        let whole = self.numerator / self.denominator;
        whole > picos || (whole == picos && !self.numerator.is_multiple_of(self.denominator))
    }

    /// In the smallest coin of a currency with `exponent` decimals.
    pub(super) fn round(self, rounding: Rounding, exponent: u32) -> Option<i128> {
        let coin = 10_u128.checked_pow(PRICE_DECIMALS.checked_sub(exponent)?)?;
        let Self {
            numerator,
            denominator,
        } = self.scaled(1, coin)?;
        let (whole, rest) = (numerator / denominator, numerator % denominator);
        // Compared with what is missing to the next coin, as twice the rest might overflow.
        let half = rest.cmp(&(denominator - rest));
        let up = match rounding {
            Rounding::Down => false,
            Rounding::Up => rest > 0,
            Rounding::HalfUp => half.is_ge(),
            Rounding::HalfEven => half.is_gt() || (half.is_eq() && whole % 2 == 1),
        };
        i128::try_from(whole.checked_add(up.into())?).ok()
    }
}

const fn gcd(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    if a == 0 { 1 } else { a }
}

impl fmt::Display for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.denominator == 1 {
            return write(f, self.numerator, PRICE_DECIMALS, 0);
        }
        let common = gcd(self.numerator, PICOS);
        match self.denominator.checked_mul(PICOS / common) {
            Some(denominator) => write!(f, "{}/{denominator}", self.numerator / common),
            // Rather a product that is left to the reader than a wrong number.
            None => write!(f, "{}/{}/{PICOS}", self.numerator, self.denominator),
        }
    }
}

impl FromStr for Exact {
    type Err = DecimalError;

    fn from_str(text: &str) -> Result<Self, DecimalError> {
        let Some((numerator, denominators)) = text.split_once('/') else {
            return parse(text, PRICE_DECIMALS).map(Self::picos);
        };
        let number = |text: &str| parse(text, 0);
        let whole = Self::picos(PICOS).times(number(numerator)?);
        denominators
            .split('/')
            .try_fold(whole, |exact, by| {
                let by = number(by)?;
                Ok(exact.and_then(|exact| exact.scaled(1, by)))
            })?
            .ok_or(DecimalError::TooLarge)
    }
}

as_text!(Exact);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decimal_is_taken_exactly_or_refused_with_its_reason() {
        let price = |text: &str| text.parse::<UnitPrice>().map(UnitPrice::as_picos);
        assert_eq!(price("0.0005"), Ok(500_000_000));
        assert_eq!(price("0.000000000001"), Ok(1));
        assert_eq!(price("1000000000000000"), Ok(MAX_PRICE_PICOS));
        assert_eq!(price("1.5000000000000000000000"), Ok(1_500_000_000_000));
        assert_eq!(
            price("1000000000000000.000000000001"),
            Err(DecimalError::TooLarge)
        );
        assert_eq!(price(&"9".repeat(60)), Err(DecimalError::TooLarge));
        assert_eq!(
            price("0.0000000000001"),
            Err(DecimalError::TooFine { most: 12 })
        );
        for text in ["-0.5", "-", "-1e5"] {
            assert_eq!(price(text), Err(DecimalError::Negative), "{text}");
        }
        for text in ["1e-3", "1.5E3", "5e", "1e5.5"] {
            assert_eq!(price(text), Err(DecimalError::Exponent), "{text}");
        }
        for text in [
            "", ".", "5.", ".5", "+5", "1,5", "0x5", "5 ", "1.2.3", "٥", "NaN", "1_000",
        ] {
            assert_eq!(price(text), Err(DecimalError::Malformed), "{text}");
        }
        assert_eq!("100.0001".parse::<Percent>(), Err(DecimalError::TooLarge));
    }

    #[test]
    fn a_fraction_is_written_so_that_it_is_read_back() {
        for (numerator, denominator, text) in [
            (1, 3, "1/3"),
            (1, 2, "0.5"),
            (7, 1, "7"),
            (3, 3, "1"),
            (2, 2_000, "0.001"),
            (1, PICOS * PICOS, "1/1000000000000000000000000"),
        ] {
            let exact = Exact::picos(PICOS).scaled(numerator, denominator).unwrap();
            assert_eq!(exact.to_string(), text);
            assert_eq!(text.parse(), Ok(exact));
        }
        assert!("1/0".parse::<Exact>().is_err());
    }

    #[test]
    fn every_mode_rounds_halves_by_its_rule() {
        let cents = |picos, rounding| Exact::picos(picos).round(rounding, 2).unwrap();
        let cent = PICOS / 100;
        for (picos, down, half_even, half_up, up) in [
            (0, 0, 0, 0, 0),
            (1, 0, 0, 0, 1),
            (cent / 2 - 1, 0, 0, 0, 1),
            (cent / 2, 0, 0, 1, 1),
            (cent / 2 + 1, 0, 1, 1, 1),
            (cent, 1, 1, 1, 1),
            (cent + cent / 2, 1, 2, 2, 2),
            (2 * cent + cent / 2, 2, 2, 3, 3),
        ] {
            assert_eq!(cents(picos, Rounding::Down), down);
            assert_eq!(cents(picos, Rounding::HalfEven), half_even);
            assert_eq!(cents(picos, Rounding::HalfUp), half_up);
            assert_eq!(cents(picos, Rounding::Up), up);
        }
        assert_eq!(
            Exact::picos(u128::MAX).round(Rounding::Up, 2),
            Some(34028236692093846346337460744)
        );
    }
}
