use std::{sync::Arc, time::Duration};

use super::{
    durability::Durability,
    event::printable,
    recorder::Recorder,
    spool::{Opened, Spool, SpoolError},
};
use crate::{
    clock::{Clock, SystemClock},
    error::ConfigError,
    sink::UsageSink,
};

/// Longer waits are mistakes, and would overflow the runtime's timer.
const MAX_DURATION: Duration = Duration::from_secs(86_400);

/// Sets up a [`Recorder`].
#[derive(Debug)]
#[must_use]
pub struct RecorderBuilder {
    sink: Arc<dyn UsageSink>,
    clock: Option<Arc<dyn Clock>>,
    durability: Durability,
    settings: Settings,
}

#[derive(Debug)]
pub(super) struct Settings {
    pub(super) source: Arc<str>,
    pub(super) queue_capacity: usize,
    pub(super) tick: Duration,
    pub(super) max_batch: usize,
    pub(super) max_batch_bytes: usize,
    pub(super) write_timeout: Duration,
    pub(super) min_backoff: Duration,
    pub(super) max_backoff: Duration,
    pub(super) dead_letters: usize,
    pub(super) report_every: Option<Duration>,
}

impl RecorderBuilder {
    pub(super) fn new(sink: Arc<dyn UsageSink>) -> Self {
        Self {
            sink,
            clock: None,
            durability: Durability::Memory,
            settings: Settings {
                source: Arc::from("tollgate"),
                queue_capacity: 65_536,
                tick: Duration::from_millis(100),
                max_batch: 1_000,
                max_batch_bytes: 1 << 20,
                write_timeout: Duration::from_secs(30),
                min_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(30),
                dead_letters: 1_000,
                report_every: None,
            },
        }
    }

    /// The instance's name: the `source` of its events. `tollgate` unless set.
    pub fn source(mut self, name: impl AsRef<str>) -> Self {
        self.settings.source = Arc::from(&*printable(name.as_ref()));
        self
    }

    /// The clock of the calls. The system's unless set.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// What events survive until the sink has given its last word; [`Durability::Memory`] unless set.
    ///
    /// A spool whose directory cannot be written to is an error of [`build`](Self::build), as are a lock that another
    /// recorder holds and a file that a newer version wrote. One that fails later does not stop the service: events
    /// are then held in memory as without a spool, which the log and the counters say.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// How many settled calls may wait; 65,536 unless set, at least 1, at most 16,777,216.
    ///
    /// The queue takes 16 bytes for each place from the start and about 400 bytes more for each waiting call,
    /// 27 MiB for a full default queue, beside the quantities and the identities that the calls share. A call names
    /// at most [`MAX_QUANTITIES`](super::MAX_QUANTITIES), so this bounds the bytes as well: 2 KiB for each place.
    ///
    /// With a spool the queue holds the events of one tick, without one what a sink is behind.
    pub const fn queue_capacity(mut self, n_events: usize) -> Self {
        self.settings.queue_capacity = n_events;
        self
    }

    /// How often the queue is looked at, and so how old an event gets before it is appended to the spool and first
    /// offered to the sink; 100 ms unless set, at least 1 ms. With a spool, a kill loses the events of one tick.
    pub const fn tick(mut self, tick: Duration) -> Self {
        self.settings.tick = tick;
        self
    }

    /// The most events that are offered to the sink at once; 1,000 unless set, at least 1.
    pub const fn max_batch(mut self, n_events: usize) -> Self {
        self.settings.max_batch = n_events;
        self
    }

    /// The bytes, about and as JSON, at which a batch ends; 1 MiB unless set, 1 KiB to 8 MiB. The event that reaches it
    /// is the batch's last, so that a batch may be longer by one event.
    pub const fn max_batch_bytes(mut self, n_bytes: usize) -> Self {
        self.settings.max_batch_bytes = n_bytes;
        self
    }

    /// How long the sink may take for one batch before it is offered again; 30 s unless set, at least 1 ms.
    pub const fn write_timeout(mut self, timeout: Duration) -> Self {
        self.settings.write_timeout = timeout;
        self
    }

    /// The waits between offers of the same batch: from `min` doubling to `max`, with jitter; 100 ms to 30 s
    /// unless set. There is no last offer while the recorder runs: the queue or the spool bounds what may wait.
    pub const fn backoff(mut self, min: Duration, max: Duration) -> Self {
        self.settings.min_backoff = min;
        self.settings.max_backoff = max;
        self
    }

    /// How many rejected events are kept for [`Recorder::dead_letters`], at most about 24 MiB of them; 1,000 unless
    /// set. A spool keeps them over a restart. The oldest leave first, and are counted as lost
    /// ([`LossReason::DeadLettersFull`](super::LossReason::DeadLettersFull)).
    pub const fn dead_letters(mut self, n_events: usize) -> Self {
        self.settings.dead_letters = n_events;
        self
    }

    /// How often a call that goes on reports what it has used, at least 1 ms; never unless set.
    ///
    /// Without it a stream of an hour makes its one event at its end, and is lost whole when the process is killed
    /// before. With it, at most the last interval and the queue are lost. Reported are calls that somebody
    /// [holds](super::MeterHold) and those that stream an answer of unknown length: for each interval in which they
    /// used something one more event, with an id of its own, that names the call in
    /// [`part_of`](super::UsageEvent::part_of). A sink must then not take each event for a call.
    ///
    /// Reports are made by the background task on its [tick](Self::tick). They tell what was handed over, whatever
    /// the [`AbortPolicy`](super::AbortPolicy). Limits are not charged by reports: what a call used beyond its
    /// reservation is charged when it ends.
    pub const fn report_every(mut self, interval: Duration) -> Self {
        self.settings.report_every = Some(interval);
        self
    }

    /// Checks the settings and makes the recorder; starts its task when called inside of a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the setting that is out of its range; also when the operating system gives no
    /// random bytes for the ids of events. It names `durability` when the spool's directory cannot be used.
    ///
    /// Blocks while it reads what an earlier life has left in a spool.
    pub fn build(self) -> Result<Recorder, ConfigError> {
        let settings = self.settings;
        let refuse = |path: &str, reason: &'static str| Err(ConfigError::new(path, reason));
        if !(1..=1 << 24).contains(&settings.queue_capacity) {
            return refuse(
                "queue_capacity",
                "must be 1 to 16777216 events: leave it at 65536 when in doubt",
            );
        }
        if settings.max_batch == 0 {
            return refuse("max_batch", "must be at least 1 event");
        }
        if !(1 << 10..=8 << 20).contains(&settings.max_batch_bytes) {
            return refuse(
                "max_batch_bytes",
                "must be 1024 to 8388608 bytes: leave it at 1048576 when in doubt",
            );
        }
        if settings.tick < Duration::from_millis(1) {
            return refuse("tick", "must be at least 1 ms");
        }
        if settings.write_timeout < Duration::from_millis(1) {
            return refuse("write_timeout", "must be at least 1 ms");
        }
        if settings.min_backoff < Duration::from_millis(1)
            || settings.max_backoff < settings.min_backoff
        {
            return refuse(
                "backoff",
                "the shortest wait must be at least 1 ms and the longest no shorter than it",
            );
        }
        let reports = settings.report_every.unwrap_or(MAX_DURATION);
        if !(Duration::from_millis(1)..=MAX_DURATION).contains(&reports) {
            return refuse("report_every", "must be 1 ms to a day: a minute suits most");
        }
        let longest = [settings.tick, settings.write_timeout, settings.max_backoff];
        if longest.iter().any(|duration| *duration > MAX_DURATION) {
            return refuse("tick, write_timeout or backoff", "must be at most a day");
        }
        let mut boot = [0; 8];
        getrandom::fill(&mut boot).map_err(|source| {
            ConfigError::new(
                "boot_id",
                "the operating system gives no random bytes for the ids of events",
            )
            .caused_by(source)
        })?;
        let boot = u64::from_be_bytes(boot);
        let clock = self.clock.unwrap_or_else(SystemClock::shared);
        let spool = open(&self.durability, boot, &*clock)?;
        Ok(Recorder::assemble(boot, clock, self.sink, settings, spool))
    }
}

fn open(
    durability: &Durability,
    boot: u64,
    clock: &dyn Clock,
) -> Result<Option<(Spool, Opened)>, ConfigError> {
    let Some((directory, limits)) = durability.files()? else {
        return Ok(None);
    };
    Spool::open(directory, limits, boot, clock.now().wall())
        .map(Some)
        .map_err(SpoolError::into_config_error)
}
