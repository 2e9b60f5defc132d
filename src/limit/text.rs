//! Lengths of time, scopes, units and rates as text.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::rule::{Rate, Scope, Unit};
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

/// Marks a name of the service's own, so that a misspelt `adress` is an error and not a scope without values.
const CUSTOM: &str = "custom:";

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Tenant => serializer.serialize_str("tenant"),
            Self::Key => serializer.serialize_str("key"),
            Self::Route => serializer.serialize_str("route"),
            Self::Address => serializer.serialize_str("address"),
            Self::Custom(name) => serializer.collect_str(&format_args!("{CUSTOM}{name}")),
        }
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(match text.as_str() {
            "tenant" => Self::Tenant,
            "key" => Self::Key,
            "route" => Self::Route,
            "address" => Self::Address,
            other => match other.strip_prefix(CUSTOM) {
                Some(name) => Self::Custom(name.into()),
                None => {
                    return Err(D::Error::custom(format_args!(
                        "unknown scope {other:?}: write `tenant`, `key`, `route`, `address` or `custom:` and a name"
                    )));
                }
            },
        })
    }
}

impl Serialize for Unit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Requests => serializer.serialize_str("requests"),
            Self::Bytes => serializer.serialize_str("bytes"),
            Self::Custom(name) => serializer.collect_str(&format_args!("{CUSTOM}{name}")),
        }
    }
}

impl<'de> Deserialize<'de> for Unit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(match text.as_str() {
            "requests" => Self::Requests,
            "bytes" => Self::Bytes,
            other => match other.strip_prefix(CUSTOM) {
                Some(name) => Self::custom(name),
                None => {
                    return Err(D::Error::custom(format_args!(
                        "unknown unit {other:?}: write `requests`, `bytes` or `custom:` and a name"
                    )));
                }
            },
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
}
