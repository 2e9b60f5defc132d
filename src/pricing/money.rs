use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::decimal::{self, DecimalError, PRICE_DECIMALS, as_text};

/// A currency of ISO 4217 with its smallest coin, such as `USD` with two decimals or `JPY` with none.
///
/// Funds, metals, test codes and withdrawn currencies are none.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Currency(iso_currency::Currency);

impl Currency {
    /// Three capital letters.
    #[must_use]
    pub fn code(self) -> &'static str {
        self.0.code()
    }

    /// How many decimals an amount has: 2 for dollars and cents, 0 for yen, 3 for dinars.
    #[must_use]
    pub fn exponent(self) -> u32 {
        self.0.exponent().map_or(0, u32::from)
    }
}

impl FromStr for Currency {
    type Err = MoneyError;

    fn from_str(text: &str) -> Result<Self, MoneyError> {
        iso_currency::Currency::from_code(text)
            .filter(|known| known.code() == text && known.is_superseded().is_none())
            .filter(|known| !known.is_special() && !known.is_fund())
            .filter(|known| {
                let exponent = known.exponent().map(u32::from);
                exponent.is_some_and(|exponent| exponent <= PRICE_DECIMALS)
            })
            .map(Self)
            .ok_or(MoneyError::UnknownCurrency)
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

as_text!(Currency);

/// What cannot be done with an amount of money.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MoneyError {
    /// The text names no currency in use.
    #[error("write the code of a currency in use, in capital letters, such as USD (ISO 4217)")]
    UnknownCurrency,
    /// The amount is not written as one of its currency.
    #[error("the amount cannot be read")]
    Amount(#[source] DecimalError),
    /// Two amounts of different currencies were to be added.
    #[error("{left} and {right} do not add up: nothing here converts currencies")]
    Mixed {
        /// The one.
        left: Currency,
        /// The other.
        right: Currency,
    },
    /// The result has no room in 128 bits.
    #[error("the amount is too large")]
    TooLarge,
}

/// An amount of money: a whole number of the smallest coin of its currency, below zero for a credit.
///
/// Written as `12.34 USD`, with exactly the decimals of the currency, in text and in documents. Arithmetic is checked,
/// and two currencies never mix.
///
/// ```
/// use tollgate::pricing::Money;
///
/// let price: Money = "12.34 USD".parse()?;
/// let credit: Money = "-0.34 USD".parse()?;
/// assert_eq!(price.plus(credit)?.to_string(), "12.00 USD");
/// assert_eq!(price.minor(), 1234);
/// assert!(price.plus("5 JPY".parse()?).is_err());
/// # Ok::<(), tollgate::pricing::MoneyError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Money {
    minor: i128,
    currency: Currency,
}

impl Money {
    /// So many of the currency's smallest coin.
    #[must_use]
    pub const fn from_minor(minor: i128, currency: Currency) -> Self {
        Self { minor, currency }
    }

    /// Nothing.
    #[must_use]
    pub const fn zero(currency: Currency) -> Self {
        Self::from_minor(0, currency)
    }

    /// An amount of a currency, such as `-12.34`, with at most the decimals of the currency.
    ///
    /// # Errors
    ///
    /// [`MoneyError::Amount`] when the text is something else.
    pub fn parse(text: &str, currency: Currency) -> Result<Self, MoneyError> {
        let (is_negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let minor = decimal::parse(digits, currency.exponent()).map_err(|error| {
            // Of two signs the second is the fault, not that the amount is below zero.
            let is_second_sign = error == DecimalError::Negative;
            MoneyError::Amount(if is_second_sign {
                DecimalError::Malformed
            } else {
                error
            })
        })?;
        let minor = if is_negative {
            0_i128.checked_sub_unsigned(minor)
        } else {
            0_i128.checked_add_unsigned(minor)
        };
        let minor = minor.ok_or(MoneyError::TooLarge)?;
        Ok(Self { minor, currency })
    }

    /// In the currency's smallest coin.
    #[must_use]
    pub const fn minor(self) -> i128 {
        self.minor
    }

    /// The currency.
    #[must_use]
    pub const fn currency(self) -> Currency {
        self.currency
    }

    /// Whether it is nothing.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.minor == 0
    }

    /// The sum.
    ///
    /// # Errors
    ///
    /// [`MoneyError::Mixed`] for another currency, [`MoneyError::TooLarge`] where the sum has no room.
    pub fn plus(self, other: Self) -> Result<Self, MoneyError> {
        self.with(other, i128::checked_add)
    }

    /// The difference.
    ///
    /// # Errors
    ///
    /// [`MoneyError::Mixed`] for another currency, [`MoneyError::TooLarge`] where the difference has no room.
    pub fn minus(self, other: Self) -> Result<Self, MoneyError> {
        self.with(other, i128::checked_sub)
    }

    fn with(
        self,
        other: Self,
        operation: impl Fn(i128, i128) -> Option<i128>,
    ) -> Result<Self, MoneyError> {
        if self.currency != other.currency {
            return Err(MoneyError::Mixed {
                left: self.currency,
                right: other.currency,
            });
        }
        let minor = operation(self.minor, other.minor).ok_or(MoneyError::TooLarge)?;
        Ok(Self { minor, ..self })
    }

    /// The sum of amounts of one currency; nothing of it when there are none.
    ///
    /// # Errors
    ///
    /// As [`Money::plus`].
    pub fn sum(
        currency: Currency,
        amounts: impl IntoIterator<Item = Self>,
    ) -> Result<Self, MoneyError> {
        let mut amounts = amounts.into_iter();
        amounts.try_fold(Self::zero(currency), Self::plus)
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.minor < 0 {
            f.write_str("-")?;
        }
        let exponent = self.currency.exponent();
        decimal::write(f, self.minor.unsigned_abs(), exponent, exponent)?;
        write!(f, " {}", self.currency)
    }
}

impl FromStr for Money {
    type Err = MoneyError;

    fn from_str(text: &str) -> Result<Self, MoneyError> {
        let (amount, currency) = text.split_once(' ').ok_or(MoneyError::UnknownCurrency)?;
        Self::parse(amount, currency.parse()?)
    }
}

as_text!(Money);

/// Parts of an amount by shares in `of`ths: each is the cumulated share rounded towards zero, less what went before.
///
/// Where the shares come to the whole, the parts add up to the amount, whatever each of them rounds to.
pub(super) fn parts(whole: Money, shares: impl Iterator<Item = u32>, of: u32) -> Vec<Money> {
    let of = i128::from(of.max(1));
    // Apart for the whole multiples and the rest, as one product might overflow.
    let (times, rest) = (whole.minor / of, whole.minor % of);
    let (mut upto, mut given) = (0, 0);
    shares
        .map(|share| {
            upto += i128::from(share);
            let next = times.saturating_mul(upto).saturating_add(rest * upto / of);
            let part = next - given;
            given = next;
            Money::from_minor(part, whole.currency)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_has_the_decimals_of_its_currency() {
        for text in ["12.34 USD", "-0.05 EUR", "500 JPY", "1.234 KWD", "0.00 USD"] {
            assert_eq!(text.parse::<Money>().unwrap().to_string(), text);
        }
        assert_eq!("12 USD".parse::<Money>().unwrap().to_string(), "12.00 USD");
        for text in [
            "12.345 USD",
            "0.5 JPY",
            "1e3 USD",
            "--5 USD",
            "5USD",
            "5 USD ",
        ] {
            assert!(text.parse::<Money>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_currencies_in_use_are_known() {
        for code in ["usd", "XXX", "XAU", "XTS", "DEM", "US", "", "USDX", "CHE"] {
            assert_eq!(
                code.parse::<Currency>(),
                Err(MoneyError::UnknownCurrency),
                "{code}"
            );
        }
    }

    #[test]
    fn sums_are_checked() {
        let usd: Currency = "USD".parse().unwrap();
        let most = Money::from_minor(i128::MAX, usd);
        assert_eq!(
            most.plus(Money::from_minor(1, usd)),
            Err(MoneyError::TooLarge)
        );
        let least = Money::from_minor(i128::MIN, usd);
        assert!(
            least
                .to_string()
                .starts_with("-1701411834604692317316873037158841057.28")
        );
        assert_eq!(
            least.minus(Money::from_minor(1, usd)),
            Err(MoneyError::TooLarge)
        );
    }
}
