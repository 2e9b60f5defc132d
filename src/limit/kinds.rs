//! The kinds of rule, as a service writes them.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use super::rule::{Algorithm, Edge, Period, Rule};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// A token bucket: `n` units per period, refilled continuously, and a burst.
///
/// With burst b and rate r it admits at most b + r·W units in any window of length W; units that are given back
/// within the time of a whole refill count as never taken. Whatever charges it above
/// its limit, a settlement or a rule that never refuses, brings it at most one burst below empty, so nobody is
/// locked out for longer than two full refills.
///
/// Also read from text: `"100/minute".parse::<Rate>()`.
///
/// The burst times the period, in microseconds and after reducing the rate's fraction, is at most 2^53;
/// beyond that the rule does not compile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Rate {
    n: u64,
    period: Duration,
    burst: Option<u64>,
}

impl Rate {
    /// `n` units in each `period`.
    pub const fn per(n: u64, period: Duration) -> Self {
        Self {
            n,
            period,
            burst: None,
        }
    }

    /// `n` units a second: `Rate::per_second(5)` means five per second.
    pub const fn per_second(n: u64) -> Self {
        Self::per(n, Duration::from_secs(1))
    }

    /// `n` units a minute.
    pub const fn per_minute(n: u64) -> Self {
        Self::per(n, MINUTE)
    }

    /// `n` units an hour.
    pub const fn per_hour(n: u64) -> Self {
        Self::per(n, HOUR)
    }

    /// `n` units a day.
    pub const fn per_day(n: u64) -> Self {
        Self::per(n, DAY)
    }

    /// The bucket's size: how many units may pass at once. `n` unless set.
    pub const fn burst(mut self, burst: u64) -> Self {
        self.burst = Some(burst);
        self
    }
}

impl From<Rate> for Rule {
    fn from(rate: Rate) -> Self {
        let burst = rate.burst.unwrap_or(rate.n);
        Self::new(
            "rate",
            Algorithm::TokenBucket {
                n: rate.n,
                period: rate.period,
                burst,
            },
        )
    }
}

/// A sliding window: at most `limit` units in any stretch of the window's length.
///
/// The limit is at most [`Cost::MAX`](super::Cost::MAX).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Window {
    limit: u64,
    window: Duration,
    cells: NonZeroU32,
    edge: Edge,
    log: bool,
}

const DEFAULT_CELLS: NonZeroU32 = NonZeroU32::new(10).unwrap();

impl Window {
    /// At most `limit` units in any stretch of length `window`, counted in ten cells, [`Edge::Strict`].
    pub const fn new(limit: u64, window: Duration) -> Self {
        Self {
            limit,
            window,
            cells: DEFAULT_CELLS,
            edge: Edge::Strict,
            log: false,
        }
    }

    /// How many sub-windows, 1 to 100: more give units back sooner and cost more memory. Ten unless set.
    pub const fn cells(mut self, cells: NonZeroU32) -> Self {
        self.cells = cells;
        self
    }

    /// Weighs the oldest cell by its overlap, see [`Edge::Smooth`].
    pub const fn smooth(mut self) -> Self {
        self.edge = Edge::Smooth;
        self
    }

    /// Keeps the time of every admitted unit: exact, for limits up to 10,000.
    pub const fn exact_log(mut self) -> Self {
        self.log = true;
        self
    }
}

impl From<Window> for Rule {
    fn from(window: Window) -> Self {
        let Window {
            limit,
            window,
            cells,
            edge,
            log,
        } = window;
        let algorithm = if log {
            Algorithm::SlidingLog { limit, window }
        } else {
            Algorithm::SlidingWindow {
                limit,
                window,
                cells,
                edge,
            }
        };
        Self::new("window", algorithm)
    }
}

/// A quota: at most `limit` units in each calendar period.
///
/// Around the edge of two periods it admits close to twice the limit. The limit is at most
/// [`Cost::MAX`](super::Cost::MAX).
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Quota {
    limit: u64,
    period: Period,
    time_zone: Option<Arc<str>>,
}

impl Quota {
    /// `limit` units in each `period`.
    pub const fn new(limit: u64, period: Period) -> Self {
        Self {
            limit,
            period,
            time_zone: None,
        }
    }

    /// `limit` units in each hour.
    pub const fn hourly(limit: u64) -> Self {
        Self::new(limit, Period::Hour)
    }

    /// `limit` units in each day.
    pub const fn daily(limit: u64) -> Self {
        Self::new(limit, Period::Day)
    }

    /// `limit` units in each calendar month.
    pub const fn monthly(limit: u64) -> Self {
        Self::new(limit, Period::Month)
    }

    /// `limit` units from one billing day to the next; a calendar month for a tenant without an anchor.
    pub const fn per_billing_period(limit: u64) -> Self {
        Self::new(limit, Period::Billing)
    }

    /// The IANA time zone, such as `Europe/Berlin`, whose midnight starts a period. UTC unless set.
    pub fn time_zone(mut self, name: impl Into<Arc<str>>) -> Self {
        self.time_zone = Some(name.into());
        self
    }
}

impl From<Quota> for Rule {
    fn from(quota: Quota) -> Self {
        let Quota {
            limit,
            period,
            time_zone,
        } = quota;
        Self::new(
            "quota",
            Algorithm::Quota {
                limit,
                period,
                time_zone,
            },
        )
    }
}

/// At most so many calls in flight at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Concurrency {
    limit: u64,
    lease: Duration,
}

impl Concurrency {
    /// At most `limit` calls in flight.
    pub const fn new(limit: u64) -> Self {
        Self {
            limit,
            lease: Duration::from_secs(60),
        }
    }

    /// How long a slot outlives a process that died holding it; a minute unless set. A store in this
    /// process's memory needs no lease: a slot is released when the response body ends or is dropped.
    pub const fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }
}

impl From<Concurrency> for Rule {
    fn from(concurrency: Concurrency) -> Self {
        let Concurrency { limit, lease } = concurrency;
        Self::new("concurrency", Algorithm::Concurrency { limit, lease })
    }
}
