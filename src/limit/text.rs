//! Lengths of time, scopes, units and rates as text.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{
    kinds::Rate,
    rule::{Period, Scope, Unit},
};
use crate::error::ConfigError;

/// A length of time as people write it: `second`, `10s`, `500ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Length(pub(super) Duration);

const UNITS: [(&str, Duration, &[&str]); 7] = [
    ("d", Duration::from_secs(86_400), &["day", "days"]),
    ("h", Duration::from_secs(3_600), &["hour", "hours"]),
    ("m", Duration::from_secs(60), &["min", "minute", "minutes"]),
    ("s", Duration::from_secs(1), &["sec", "second", "seconds"]),
    (
        "ms",
        Duration::from_millis(1),
        &["millisecond", "milliseconds"],
    ),
    (
        "us",
        Duration::from_micros(1),
        &["microsecond", "microseconds"],
    ),
    (
        "ns",
        Duration::from_nanos(1),
        &["nanosecond", "nanoseconds"],
    ),
];

impl FromStr for Length {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text:?} is not a length of time: write `second`, `minute`, `10s` or `500ms`")
        };
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim();
        let (_, length, _) = UNITS
            .iter()
            .find(|(short, _, names)| *short == unit || names.contains(&unit))
            .ok_or_else(wrong)?;
        let n: u128 = if number.is_empty() {
            1
        } else {
            number.parse().map_err(|_| wrong())?
        };
        let nanos = length.as_nanos().checked_mul(n).ok_or_else(wrong)?;
        let seconds = u64::try_from(nanos / 1_000_000_000).map_err(|_| wrong())?;
        // Below 10^9.
        let subsec_nanos = (nanos % 1_000_000_000) as u32;
        Ok(Self(Duration::new(seconds, subsec_nanos)))
    }
}

impl fmt::Display for Length {
    /// In the greatest unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        for (short, length, names) in &UNITS {
            if nanos == length.as_nanos()
                && let Some(name) = names.iter().find(|name| name.len() > 3 || **name == "day")
            {
                return f.write_str(name);
            }
            if nanos.is_multiple_of(length.as_nanos()) && nanos > 0 {
                return write!(f, "{}{short}", nanos / length.as_nanos());
            }
        }
        f.write_str("0s")
    }
}

impl Serialize for Length {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// Marks a name of the service's own that would be taken for another word.
const CUSTOM: &str = "custom:";

const SCOPES: [(&str, Scope); 4] = [
    ("tenant", Scope::Tenant),
    ("key", Scope::Key),
    ("route", Scope::Route),
    ("address", Scope::Address),
];

const QUANTITIES: [(&str, Unit); 4] = [
    ("requests", Unit::Requests),
    ("request", Unit::Requests),
    ("bytes", Unit::Bytes),
    ("byte", Unit::Bytes),
];

const PERIODS: [(&str, Period); 8] = [
    ("hour", Period::Hour),
    ("day", Period::Day),
    ("month", Period::Month),
    ("billing", Period::Billing),
    ("hourly", Period::Hour),
    ("daily", Period::Day),
    ("monthly", Period::Month),
    ("billing_period", Period::Billing),
];

/// What a word stands for.
enum Word<'a, T> {
    Known(T),
    /// A name of the service's own.
    Own(&'a str),
    /// Nearly a known word: most likely misspelt, and then it would count nothing.
    Nearly(&'static str),
}

impl<'a, T: Clone> Word<'a, T> {
    fn read(text: &'a str, known: &[(&'static str, T)]) -> Self {
        if let Some((_, value)) = known.iter().find(|(word, _)| *word == text) {
            return Self::Known(value.clone());
        }
        if let Some(name) = text.strip_prefix(CUSTOM) {
            return Self::Own(name);
        }
        match known.iter().find(|(word, _)| is_nearly(text, word)) {
            Some((word, _)) => Self::Nearly(word),
            None => Self::Own(text),
        }
    }

    fn or_own<E: serde::de::Error>(self, text: &str, own: impl FnOnce(&str) -> T) -> Result<T, E> {
        match self {
            Self::Known(value) => Ok(value),
            Self::Own(name) => Ok(own(name)),
            Self::Nearly(word) => Err(E::custom(format_args!(
                "{text:?} is nearly `{word}`: write that, or `{CUSTOM}{text}` if it is a name of your own"
            ))),
        }
    }
}

/// A name of the service's own as it is written: marked only where it would be read as another word.
fn serialize_own<T: Clone, S: Serializer>(
    name: &str,
    known: &[(&'static str, T)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match Word::read(name, known) {
        Word::Own(read) if read == name => serializer.serialize_str(name),
        _ => serializer.collect_str(&format_args!("{CUSTOM}{name}")),
    }
}

/// Whether a word is another one but for a slip or two: one in a short word, two in a longer one.
pub(super) fn is_nearly(text: &str, word: &str) -> bool {
    let slips = if word.len() > 5 { 2 } else { 1 };
    text.len().abs_diff(word.len()) <= slips && distance(&text.to_ascii_lowercase(), word) <= slips
}

/// How many letters must be put in, left out or changed to make one word of the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let next = (diagonal + usize::from(x != y))
                .min(left + 1)
                .min(*cell + 1);
            diagonal = *cell;
            *cell = next;
            left = next;
        }
    }
    // The first cell is only ever the left neighbour of the second, so it is not kept.
    if b.is_empty() {
        a.len()
    } else {
        row.last().copied().unwrap_or(0)
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Tenant => serializer.serialize_str("tenant"),
            Self::Key => serializer.serialize_str("key"),
            Self::Route => serializer.serialize_str("route"),
            Self::Address => serializer.serialize_str("address"),
            Self::Custom(name) => serialize_own(name, &SCOPES, serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Word::read(&text, &SCOPES).or_own(&text, |name| Self::Custom(name.into()))
    }
}

impl Serialize for Unit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Requests => serializer.serialize_str("requests"),
            Self::Bytes => serializer.serialize_str("bytes"),
            Self::Custom(name) => serialize_own(name, &QUANTITIES, serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Unit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Word::read(&text, &QUANTITIES).or_own(&text, |name| Self::custom(name))
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl FromStr for Period {
    type Err = ConfigError;

    /// Reads `hour`, `day`, `month` or `billing`; `hourly`, `daily` and `monthly` too.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the words that are read.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let known = PERIODS.iter().find(|(word, _)| *word == text);
        known.map(|(_, period)| *period).ok_or_else(|| {
            let reason =
                format!("unknown period {text:?}: write `hour`, `day`, `month` or `billing`");
            ConfigError::new("", reason)
        })
    }
}

impl FromStr for Rate {
    type Err = ConfigError;

    /// Reads `100/minute`, `5 per second` or `100/10s`; underscores may group the digits.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when the text is not a whole number, `/` or `per`, and a length of time.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let wrong = |reason: String| ConfigError::new("", reason);
        let (n, length) = text
            .split_once('/')
            .or_else(|| text.split_once(" per "))
            .ok_or_else(|| {
                wrong(format!(
                    "{text:?} is not a rate: write `100/minute`, `5 per second` or `100/10s`"
                ))
            })?;
        let n: u64 = n.trim().replace('_', "").parse().map_err(|source| {
            wrong(format!("{:?} is not a whole number of units", n.trim())).caused_by(source)
        })?;
        let Length(period) = length.parse().map_err(wrong)?;
        Ok(Self::per(n, period))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_read_from_text() {
        let rate = |text: &str| text.parse::<Rate>().unwrap();
        assert_eq!(rate("100/minute"), Rate::per_minute(100));
        assert_eq!(rate("5 per second"), Rate::per_second(5));
        assert_eq!(rate("1_000/10s"), Rate::per(1_000, Duration::from_secs(10)));
        assert_eq!(
            rate(" 3 / 2 hours"),
            Rate::per(3, Duration::from_secs(7_200))
        );
        for wrong in [
            "",
            "5",
            "5/",
            "/s",
            "-5/s",
            "5/fortnight",
            "1.5/s",
            "5 each second",
        ] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong:?}");
        }
        assert!(format!("1/{}d", u64::MAX).parse::<Rate>().is_err());
    }

    #[test]
    fn words_are_read_as_people_write_them_and_slips_are_refused() {
        let unit = |text: &str| serde_json::from_value::<Unit>(text.into());
        assert_eq!(unit("request").unwrap(), Unit::Requests);
        assert_eq!(unit("byte").unwrap(), Unit::Bytes);
        for own in ["tokens", "custom:tokens"] {
            assert_eq!(unit(own).unwrap(), Unit::custom("tokens"));
        }
        for slip in ["reqests", "Requests", "requestss", "byts"] {
            assert!(
                unit(slip).unwrap_err().to_string().contains("is nearly"),
                "{slip}"
            );
        }
        // What is a name for sure is written so that it is read as the same.
        for name in ["tokens", "requests", "byts", "custom:x", "votes"] {
            let written = serde_json::to_value(Unit::custom(name)).unwrap();
            let read: Unit = serde_json::from_value(written).unwrap();
            assert_eq!(read, Unit::custom(name));
        }
        let scope = |text: &str| serde_json::from_value::<Scope>(text.into());
        assert_eq!(
            scope("workspace").unwrap(),
            Scope::Custom("workspace".into())
        );
        assert!(scope("tennant").is_err());
        let period = |text: &str| serde_json::from_value::<Period>(text.into());
        assert_eq!(period("monthly").unwrap(), Period::Month);
        assert!(
            period("weekly")
                .unwrap_err()
                .to_string()
                .contains("`month`")
        );
    }

    #[test]
    fn a_distance_is_the_least_number_of_slips() {
        for (a, b, n) in [
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("token", "tokens", 1),
            ("a", "a", 0),
            ("ab", "ba", 2),
        ] {
            assert_eq!(distance(a, b), n, "{a} {b}");
        }
    }
}
