//! Quotas kept in a file, so that they survive the process.

mod file;
mod format;
mod load;

use std::{
    fmt, io,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use self::{file::Files, format::Encoder, load::load};
use super::memory::MemoryLimits;
use crate::{
    clock::{Clock, SystemClock},
    error::ConfigError,
};

pub use self::load::{LoadedFrom, OnDamage, SnapshotLoad};

const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
const LONGEST_INTERVAL: Duration = Duration::from_secs(86_400);
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);

/// A snapshot was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The disk did not take it; the files of before are as they were.
    #[error("the snapshot of quotas was not written")]
    NotWritten(#[source] io::Error),
    /// The snapshot was [closed](QuotaSnapshot::close).
    #[error("the snapshot of quotas is closed")]
    Closed,
}

/// Keeps the quotas of a [`MemoryLimits`] in a file, so that they survive a restart and `kill -9`.
///
/// 1. When it is opened it takes a lock beside the file, reads the file and lets each quota go on from what was
///    used. Do it before the first call is served.
/// 2. A thread of its own writes the file again after each interval; no call ever waits for the disk.
/// 3. [`close`](Self::close) writes it a last time and gives the lock back.
///
/// # What is kept
///
/// What is used of each calendar quota in its present period, with the thresholds that were told. A quota whose
/// period has ended meanwhile begins anew; one whose limit has changed keeps what was used; a rule with another
/// name, period or time zone counts apart, as it does without a restart.
///
/// Buckets, sliding windows and logs are not kept: they run by a clock that starts with the process, and refill by
/// themselves. A restart admits at most one more burst, or one more limit of a window. What must outlast a restart
/// is a [`Quota`](super::Quota). Slots of a concurrency limit end with the process.
///
/// # What can be lost
///
/// After `kill -9` or a loss of power, the use of at most one interval and the time of one write; of two, where the
/// last file is damaged and the one before is read. After [`close`](Self::close) nothing. What was reserved by calls
/// that the kill cut off stays charged.
///
/// # Files
///
/// Beside `path` stand `path.previous`, the file before, `path.new` while one is written, `path.lock`, and
/// `path.damaged` where a file could not be read. Each file carries its length and a checksum, is brought to the disk
/// before it gets its name, and is at most 256 MiB; a quota takes about 100 bytes. Counts beyond are left out, and the
/// log says so. The lock is an advisory one, which network file systems may not know: use a local disk.
///
/// Dropping the last handle without a close is like a kill, but for the lock, which is free then. Cloning gives a
/// second handle to the same snapshot.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use tollgate::{
///     clock::{Clock, ManualClock},
///     id::TenantId,
///     limit::*,
/// };
///
/// let directory = std::env::temp_dir().join(format!("tollgate-doc-{}", std::process::id()));
/// std::fs::create_dir_all(&directory)?;
/// let clock = ManualClock::default();
/// let rules = RuleSet::compile([Quota::monthly(1_000)])?;
/// let left = |limits: &MemoryLimits| {
///     let owner = Owner::tenant(TenantId::new("acme").unwrap());
///     let set = Arc::new(LimitSet::new(owner, Arc::clone(&rules)));
///     let (scopes, cost) = (ScopeValues::default(), Cost::requests(1));
///     let call = LimitCall::new(&set, &scopes, &cost, clock.now());
///     limits.try_decide(&call).unwrap().unwrap().states[0].remaining
/// };
/// for expected in [999, 998] {
///     // Each turn is a process of its own.
///     let limits = Arc::new(MemoryLimits::new());
///     let snapshot = QuotaSnapshot::at(directory.join("quotas"))
///         .every(Duration::from_secs(5))
///         .clock(Arc::new(clock.clone()))
///         .open(Arc::clone(&limits))?;
///     assert_eq!(left(&limits), expected);
///     snapshot.close()?;
/// }
/// # std::fs::remove_dir_all(directory)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct QuotaSnapshot {
    shared: Arc<Shared>,
}

struct Shared {
    limits: Arc<MemoryLimits>,
    clock: Arc<dyn Clock>,
    /// `None` once closed. Held while the files are written.
    files: Mutex<Option<Files>>,
    path: PathBuf,
    load: SnapshotLoad,
    signal: Arc<Signal>,
    n_written: AtomicU64,
    n_failed: AtomicU64,
    is_failing: AtomicBool,
    written: metrics::Counter,
    failed: metrics::Counter,
}

/// Wakes the thread before its time.
#[derive(Debug, Default)]
struct Signal {
    stopped: Mutex<bool>,
    changed: Condvar,
}

/// Sets up a [`QuotaSnapshot`].
#[derive(Clone, Debug)]
#[must_use]
pub struct QuotaSnapshotBuilder {
    path: PathBuf,
    every: Duration,
    on_damage: OnDamage,
    clock: Option<Arc<dyn Clock>>,
}

impl QuotaSnapshotBuilder {
    /// How often the file is written: 10 s unless set, 10 ms to a day.
    pub const fn every(mut self, interval: Duration) -> Self {
        self.every = interval;
        self
    }

    /// What happens when no file can be read; quotas begin at zero unless set.
    pub const fn on_damage(mut self, choice: OnDamage) -> Self {
        self.on_damage = choice;
        self
    }

    /// The clock of the calls. The system's unless set.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Takes the lock, restores the quotas and starts the thread that writes them. Reads the disk.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with the path `quota_snapshot` when the interval is out of its range, the directory cannot be
    /// written to, another gate has the file, no thread can be started, or, with [`OnDamage::Refuse`], no file can
    /// be read.
    pub fn open(self, limits: Arc<MemoryLimits>) -> Result<QuotaSnapshot, ConfigError> {
        if !(SHORTEST_INTERVAL..=LONGEST_INTERVAL).contains(&self.every) {
            let reason = format!(
                "{:?} is no interval for a snapshot: write 10 ms to a day, such as 10 s",
                self.every
            );
            return Err(ConfigError::new("quota_snapshot", reason));
        }
        let clock = self.clock.unwrap_or_else(SystemClock::shared);
        let mut files = Files::open(&self.path)?;
        let load = load(&mut files, &limits, &*clock, self.on_damage)?;
        let result = |result: &'static str| metrics::counter!("tollgate_quota_snapshot_writes_total", "result" => result);
        let snapshot = QuotaSnapshot {
            shared: Arc::new(Shared {
                limits,
                clock,
                path: files.path().to_owned(),
                files: Mutex::new(Some(files)),
                load,
                signal: Arc::default(),
                n_written: AtomicU64::new(0),
                n_failed: AtomicU64::new(0),
                is_failing: AtomicBool::new(false),
                written: result("written"),
                failed: result("failed"),
            }),
        };
        snapshot.start(self.every)?;
        Ok(snapshot)
    }
}

impl QuotaSnapshot {
    /// Starts to set up a snapshot in the file `path`.
    pub fn at(path: impl Into<PathBuf>) -> QuotaSnapshotBuilder {
        QuotaSnapshotBuilder {
            path: path.into(),
            every: DEFAULT_INTERVAL,
            on_damage: OnDamage::default(),
            clock: None,
        }
    }

    /// A thread, not a task: the disk may be slow, and there may be no runtime.
    fn start(&self, every: Duration) -> Result<(), ConfigError> {
        let (shared, signal) = (
            Arc::downgrade(&self.shared),
            Arc::clone(&self.shared.signal),
        );
        let thread = std::thread::Builder::new().name("tollgate-quotas".to_owned());
        let run = move || {
            while !signal.stopped_within(every) {
                let Some(shared) = Weak::upgrade(&shared) else {
                    return;
                };
                // Told by the log and counted.
                let _ = shared.save();
            }
        };
        thread.spawn(run).map(drop).map_err(|source| {
            ConfigError::new("quota_snapshot", "no thread can be started to write it")
                .caused_by(source)
        })
    }

    /// What was found when the snapshot was opened.
    #[must_use]
    pub fn loaded(&self) -> SnapshotLoad {
        self.shared.load
    }

    /// How often the file has been written.
    #[must_use]
    pub fn n_written(&self) -> u64 {
        self.shared.n_written.load(Ordering::Relaxed)
    }

    /// How often it could not be written.
    #[must_use]
    pub fn n_failed(&self) -> u64 {
        self.shared.n_failed.load(Ordering::Relaxed)
    }

    /// Writes the file now and says how many quotas it holds. Waits for the disk.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]; the calls go on, and the next interval tries again.
    pub fn save(&self) -> Result<u64, SnapshotError> {
        self.shared.save()
    }

    /// Writes the file a last time, ends the thread and gives the lock back. Waits for the disk. When the file is
    /// not written the lock is given back all the same; closing again changes nothing.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::NotWritten`].
    pub fn close(&self) -> Result<(), SnapshotError> {
        self.shared.signal.stop();
        let saved = self.shared.save();
        drop(self.shared.files().take());
        match saved {
            Ok(_) | Err(SnapshotError::Closed) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Shared {
    fn files(&self) -> MutexGuard<'_, Option<Files>> {
        // A write that panicked has left files that are whole.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self) -> Result<u64, SnapshotError> {
        let mut files = self.files();
        let files = files.as_mut().ok_or(SnapshotError::Closed)?;
        let now = self.clock.now();
        let mut encoder = Encoder::new(now.wall());
        self.limits.visit_quotas(now, |saved| encoder.push(saved));
        let (n_counts, n_left_out) = (encoder.n_counts(), encoder.n_left_out());
        match files.write(&encoder.finish()) {
            Ok(()) => {
                self.written.increment(1);
                self.n_written.fetch_add(1, Ordering::Relaxed);
                if self.is_failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(target: "tollgate::limit", path = %self.path.display(), "the snapshot of quotas is written again");
                }
                if n_left_out > 0 {
                    tracing::error!(
                        target: "tollgate::limit",
                        n_left_out,
                        "the snapshot of quotas is full: what is left out begins at zero after a restart"
                    );
                }
                Ok(n_counts)
            }
            Err(error) => {
                self.failed.increment(1);
                self.n_failed.fetch_add(1, Ordering::Relaxed);
                // Once for each time that it begins to fail: the counter tells the rest.
                if !self.is_failing.swap(true, Ordering::Relaxed) {
                    tracing::error!(
                        target: "tollgate::limit",
                        path = %self.path.display(),
                        error = &error as &dyn std::error::Error,
                        "the snapshot of quotas was not written: a kill now forgets what was used since the last one"
                    );
                }
                Err(SnapshotError::NotWritten(error))
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.signal.stop();
    }
}

impl Signal {
    fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits for `time`, or less when it is stopped.
    fn stopped_within(&self, time: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .changed
            .wait_timeout_while(stopped, time, |stopped| !*stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl fmt::Debug for QuotaSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuotaSnapshot")
            .field("path", &self.shared.path)
            .field("loaded", &self.shared.load)
            .finish_non_exhaustive()
    }
}
