//! The arithmetic of calendar quotas: periods that tile time without gap or overlap.
//!
//! A quota admits at most L units in each period; its worst window, around the edge between two periods,
//! admits close to **2L**.
//!
//! A period lasts from one boundary to the next. Boundaries are computed by the calendar of the rule's time
//! zone, so a day is 23 or 25 hours long when the clock changes. A billing period starts at the tenant's
//! anchor and on the same day and hour of each month after (and before) it; in a month without that day, on
//! the month's last: each boundary is counted from the anchor itself, so an anchor on the 31st comes back to
//! the 31st after February. An instant at a boundary belongs to the new period.

use std::sync::Arc;

use jiff::{Span, Timestamp as Instant, Zoned, civil::Date, tz::TimeZone};

use super::{
    reading::{Reading, Wait},
    rule::Period,
    sliding_window::check_limit,
};
use crate::{clock::Timestamp, error::ConfigError};

const MICROS_PER_HOUR: i64 = 3_600_000_000;

/// A quota's numbers and calendar, checked.
#[derive(Clone, Debug)]
pub struct QuotaParameters {
    limit: u64,
    period: Period,
    zone: TimeZone,
}

/// One period of a quota, from `start` up to but without `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeriodBounds {
    /// The first instant of the period.
    pub start: Timestamp,
    /// The first instant after it.
    pub end: Timestamp,
}

impl PeriodBounds {
    /// Whether an instant lies in the period.
    #[must_use]
    pub fn contains(&self, instant: Timestamp) -> bool {
        self.start <= instant && instant < self.end
    }
}

impl QuotaParameters {
    /// A quota of `limit` units in each `period` of a time zone, UTC when none is named.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with the path `limit` or `time_zone` when the limit is above
    /// [`Cost::MAX`](super::Cost::MAX) or the zone is not in the IANA database. A copy of the database is
    /// built in, for hosts that have none.
    pub fn new(
        limit: u64,
        period: Period,
        time_zone: Option<&Arc<str>>,
    ) -> Result<Self, ConfigError> {
        check_limit(limit)?;
        let zone = match time_zone {
            None => TimeZone::UTC,
            Some(name) => TimeZone::get(name).map_err(|source| {
                ConfigError::new(
                    "time_zone",
                    format!(
                        "{name:?} is not a time zone: write an IANA name such as Europe/Berlin"
                    ),
                )
                .caused_by(source)
            })?,
        };
        Ok(Self {
            limit,
            period,
            zone,
        })
    }

    /// Units in a period.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// The calendar period.
    #[must_use]
    pub const fn period(&self) -> Period {
        self.period
    }

    /// The period that `now` lies in. `anchor` is the start of the tenant's billing periods; without one a
    /// billing period is a calendar month.
    ///
    /// The last period that the calendar can express has no end.
    #[must_use]
    pub fn bounds(&self, now: Timestamp, anchor: Option<Timestamp>) -> PeriodBounds {
        match (self.period, anchor) {
            (Period::Hour, _) => self.hour(now),
            (Period::Day, _) => {
                let today = now.to_jiff().to_zoned(self.zone.clone()).date();
                enclosing(now, 0, |days| {
                    self.midnight(today, Span::new().try_days(days).ok()?)
                })
            }
            (Period::Billing, Some(anchor)) => {
                let anchor = anchor.to_jiff().to_zoned(self.zone.clone());
                let guess = months_between(&anchor, &now.to_jiff().to_zoned(self.zone.clone()));
                enclosing(now, guess, |months| {
                    let boundary = anchor
                        .checked_add(Span::new().try_months(months).ok()?)
                        .ok()?;
                    Some(Timestamp::from(boundary.timestamp()))
                })
            }
            (Period::Month | Period::Billing, _) => {
                let today = now.to_jiff().to_zoned(self.zone.clone()).date();
                let first = today.first_of_month();
                enclosing(now, 0, |months| {
                    self.midnight(first, Span::new().try_months(months).ok()?)
                })
            }
        }
    }

    /// The first instant of the day `span` after `date`.
    fn midnight(&self, date: Date, span: Span) -> Option<Timestamp> {
        let date = date.checked_add(span).ok()?;
        // `Zoned::start_of_day` says what midnight means on a day that has none or two.
        let midnight = date.to_zoned(self.zone.clone()).ok()?.start_of_day().ok()?;
        Some(Timestamp::from(midnight.timestamp()))
    }

    /// A full local hour, cut short where the zone's offset changes, so that a change by less than an hour
    /// leaves neither gap nor overlap.
    fn hour(&self, now: Timestamp) -> PeriodBounds {
        let instant = now.to_jiff();
        let offset = i64::from(self.zone.to_offset(instant).seconds()) * 1_000_000;
        let micros = instant.as_microsecond();
        let start = (micros + offset).div_euclid(MICROS_PER_HOUR) * MICROS_PER_HOUR - offset;
        let end = start + MICROS_PER_HOUR;
        // The database lists some changes that leave the offset as it is.
        let moves_offset = |change: &Instant| {
            Instant::from_microsecond(change.as_microsecond() - 1)
                .is_ok_and(|before| self.zone.to_offset(before) != self.zone.to_offset(*change))
        };
        let changed = Instant::from_microsecond(micros + 1)
            .ok()
            .and_then(|after| {
                self.zone
                    .preceding(after)
                    .map(|change| change.timestamp())
                    .take_while(|change| change.as_microsecond() > start)
                    .find(moves_offset)
            })
            .map_or(start, Instant::as_microsecond);
        let changes = self
            .zone
            .following(instant)
            .map(|change| change.timestamp())
            .take_while(|change| change.as_microsecond() < end)
            .find(moves_offset)
            .map_or(end, Instant::as_microsecond);
        let timestamp =
            |micros: i64| Timestamp::from_unix_micros(u64::try_from(micros).unwrap_or(0));
        PeriodBounds {
            start: timestamp(start.max(changed)),
            end: timestamp(end.min(changes)),
        }
    }

    /// How long a call of `amount` units waits when `used` are used in a period that ends at `end`.
    #[must_use]
    pub fn wait(&self, used: u64, amount: u64, now: Timestamp, end: Timestamp) -> Wait {
        if amount > self.limit || self.limit == 0 {
            return Wait::Forever;
        }
        if used <= self.limit - amount {
            return Wait::Zero;
        }
        Wait::micros(until(now, end).max(1))
    }

    /// The count when `used` units are used in a period that ends at `end`.
    #[must_use]
    pub fn read(&self, used: u64, now: Timestamp, end: Timestamp) -> Reading {
        let reset_micros = (used > 0).then(|| until(now, end));
        Reading::new(used, self.limit.saturating_sub(used), reset_micros)
    }
}

const fn until(now: Timestamp, end: Timestamp) -> u64 {
    end.as_unix_micros().saturating_sub(now.as_unix_micros())
}

/// The period around `now`, between the last boundary up to it and the next. `boundary` tells the boundaries
/// by number, in order; `guess` is a number near by.
///
/// Looking at the boundaries alone makes the periods tile, whatever a zone does to its midnights.
fn enclosing(
    now: Timestamp,
    guess: i64,
    boundary: impl Fn(i64) -> Option<Timestamp>,
) -> PeriodBounds {
    let mut index = guess;
    while boundary(index).is_some_and(|start| start > now) {
        index -= 1;
    }
    while boundary(index + 1).is_some_and(|next| next <= now) {
        index += 1;
    }
    PeriodBounds {
        start: boundary(index).unwrap_or(Timestamp::UNIX_EPOCH),
        end: boundary(index + 1).unwrap_or(Timestamp::MAX),
    }
}

fn months_between(anchor: &Zoned, now: &Zoned) -> i64 {
    let months = |zoned: &Zoned| i64::from(zoned.year()) * 12 + i64::from(zoned.month());
    months(now) - months(anchor)
}
