//! The only source of time.
//!
//! Every decision takes the time as an argument; a layer reads the clock once per request and hands it
//! down. Tests hold a [`ManualClock`] still.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A point of wall-clock time, in whole microseconds since 1970-01-01T00:00:00Z.
///
/// Serialises as RFC 3339 text in UTC.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The start of 1970 in UTC.
    pub const UNIX_EPOCH: Self = Self(0);
    /// The last point that can be written as RFC 3339: two days before the year 10000 at the latest time zone (9999-12-30T22:00:00Z).
    pub const MAX: Self = Self(253_402_207_200_000_000);

    /// A point so many microseconds after the start of 1970; later than [`Timestamp::MAX`] becomes it.
    #[must_use]
    pub const fn from_unix_micros(micros: u64) -> Self {
        if micros > Self::MAX.0 {
            Self::MAX
        } else {
            Self(micros)
        }
    }

    /// A point so many seconds after the start of 1970; later than [`Timestamp::MAX`] becomes it.
    #[must_use]
    pub const fn from_unix_seconds(seconds: u64) -> Self {
        Self::from_unix_micros(seconds.saturating_mul(1_000_000))
    }

    /// Microseconds since the start of 1970.
    #[must_use]
    pub const fn as_unix_micros(self) -> u64 {
        self.0
    }

    /// Whole seconds since the start of 1970, rounded down.
    #[must_use]
    pub const fn as_unix_seconds(self) -> u64 {
        self.0 / 1_000_000
    }

    /// The point `duration` later, at most [`Timestamp::MAX`].
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self::from_unix_micros(self.0.saturating_add(micros(duration)))
    }

    /// The point `duration` earlier, at least [`Timestamp::UNIX_EPOCH`].
    #[must_use]
    pub fn saturating_sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(micros(duration)))
    }

    /// The time from `earlier` to `self`, zero when `earlier` is later.
    #[must_use]
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// The same point as a [`jiff::Timestamp`], for calendars and formatting.
    #[must_use]
    pub fn to_jiff(self) -> jiff::Timestamp {
        i64::try_from(self.0)
            .ok()
            .and_then(|micros| jiff::Timestamp::from_microsecond(micros).ok())
            .unwrap_or(jiff::Timestamp::MAX)
    }
}

impl From<jiff::Timestamp> for Timestamp {
    /// A point before 1970 becomes [`Timestamp::UNIX_EPOCH`].
    fn from(timestamp: jiff::Timestamp) -> Self {
        Self::from_unix_micros(u64::try_from(timestamp.as_microsecond()).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.to_jiff(), f)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let timestamp = jiff::Timestamp::deserialize(deserializer)?;
        if timestamp.as_second() < 0 {
            return Err(D::Error::custom(
                "a point of time before 1970 is not accepted",
            ));
        }
        Ok(Self::from(timestamp))
    }
}

/// One reading of the clock: the wall clock and a monotonic one, taken together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    wall: Timestamp,
    monotonic_micros: u64,
}

impl Now {
    /// A reading from its two parts; for implementors of [`Clock`].
    #[must_use]
    pub const fn new(wall: Timestamp, monotonic_micros: u64) -> Self {
        Self {
            wall,
            monotonic_micros,
        }
    }

    /// What the calendar says; may step in either direction.
    #[must_use]
    pub const fn wall(self) -> Timestamp {
        self.wall
    }

    /// Microseconds since a start of this process's own choice; never steps back.
    #[must_use]
    pub const fn monotonic_micros(self) -> u64 {
        self.monotonic_micros
    }

    /// The time since an earlier monotonic reading, zero when that reading is later.
    #[must_use]
    pub const fn since(self, earlier_monotonic_micros: u64) -> Duration {
        Duration::from_micros(
            self.monotonic_micros
                .saturating_sub(earlier_monotonic_micros),
        )
    }
}

/// A source of time.
///
/// # Contract
///
/// [`Now::monotonic_micros`] never decreases between two calls of which one happens after the other.
/// The call is cheap and does not block: it happens on every request.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Reads both clocks.
    fn now(&self) -> Now;
}

/// The clock of the operating system.
///
/// Reads the monotonic clock each time and the wall clock once a second, so a stepped wall clock is seen
/// within a second.
#[derive(Debug)]
pub struct SystemClock {
    origin: Instant,
    wall_at_origin: AtomicU64,
    anchored_at: AtomicU64,
}

const ANCHOR_EVERY_MICROS: u64 = 1_000_000;

impl SystemClock {
    /// Starts a monotonic clock at zero.
    #[must_use]
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
            wall_at_origin: AtomicU64::new(system_wall_micros()),
            anchored_at: AtomicU64::new(0),
        }
    }

    /// The clock as the shared handle that builders take.
    #[must_use]
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(Self::new())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let monotonic = micros(self.origin.elapsed());
        let anchored_at = self.anchored_at.load(Ordering::Relaxed);
        if monotonic.wrapping_sub(anchored_at) >= ANCHOR_EVERY_MICROS && monotonic > anchored_at {
            // Two threads may both anchor: each writes a true pair within a microsecond of the other.
            self.wall_at_origin.store(
                system_wall_micros().saturating_sub(monotonic),
                Ordering::Relaxed,
            );
            self.anchored_at.store(monotonic, Ordering::Relaxed);
        }
        let wall = self
            .wall_at_origin
            .load(Ordering::Relaxed)
            .saturating_add(monotonic);
        Now::new(Timestamp::from_unix_micros(wall), monotonic)
    }
}

fn system_wall_micros() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, micros)
}

pub(crate) fn micros(duration: Duration) -> u64 {
    // In 64 bits: the clock is read on every call.
    duration
        .as_secs()
        .saturating_mul(1_000_000)
        .saturating_add(duration.subsec_micros().into())
}

/// A clock that stands still until it is told to move. Cloning gives a second handle to the same clock.
#[derive(Clone, Debug)]
pub struct ManualClock {
    hands: Arc<Hands>,
}

#[derive(Debug)]
struct Hands {
    wall: AtomicU64,
    monotonic: AtomicU64,
}

impl ManualClock {
    /// A clock whose wall reads `wall`; its monotonic part starts at one second.
    #[must_use]
    pub fn at(wall: Timestamp) -> Self {
        let hands = Hands {
            wall: AtomicU64::new(wall.as_unix_micros()),
            monotonic: AtomicU64::new(1_000_000),
        };
        Self {
            hands: Arc::new(hands),
        }
    }

    /// Lets time pass: both clocks move on by `duration`.
    pub fn advance(&self, duration: Duration) {
        self.hands
            .monotonic
            .fetch_add(micros(duration), Ordering::Relaxed);
        self.hands
            .wall
            .fetch_add(micros(duration), Ordering::Relaxed);
    }

    /// Steps the wall clock alone, forwards or back, as an administrator or NTP does.
    pub fn set_wall(&self, wall: Timestamp) {
        self.hands
            .wall
            .store(wall.as_unix_micros(), Ordering::Relaxed);
    }
}

impl Default for ManualClock {
    /// 2026-01-15T12:00:00Z: the middle of a month, a day and an hour.
    fn default() -> Self {
        Self::at(Timestamp::from_unix_seconds(1_768_478_400))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Now {
        Now::new(
            Timestamp::from_unix_micros(self.hands.wall.load(Ordering::Relaxed)),
            self.hands.monotonic.load(Ordering::Relaxed),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_agrees_with_the_system() {
        let clock = SystemClock::new();
        let now = clock.now();
        assert!(now.wall().as_unix_micros().abs_diff(system_wall_micros()) < 60_000_000);
        assert!(clock.now().monotonic_micros() >= now.monotonic_micros());
    }

    #[test]
    fn a_timestamp_is_written_as_rfc_3339() {
        let text = serde_json::to_string(&ManualClock::default().now().wall()).unwrap();
        assert_eq!(text, "\"2026-01-15T12:00:00Z\"");
        assert_eq!(
            serde_json::from_str::<Timestamp>(&text).unwrap(),
            ManualClock::default().now().wall()
        );
        assert!(serde_json::from_str::<Timestamp>("\"1969-01-01T00:00:00Z\"").is_err());
    }

    #[test]
    fn the_last_point_can_be_written() {
        assert!(
            Timestamp::from_unix_micros(u64::MAX)
                .to_string()
                .starts_with("9999-12-30")
        );
    }
}
