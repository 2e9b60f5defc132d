//! Calls without a server, and sinks that do as they are told.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::StatusCode;
use tollgate::{
    clock::{Clock as _, SystemClock},
    id::{PlanName, TenantId},
    identity::{Grant, Identity},
    meter::{CallMeter, Durability, Recorder, RecorderBuilder, SpoolDir, UsageEvent},
    plan::Plan,
    sink::{MemorySink, SinkError, UsageSink, Verdict, Verdicts, batch_id},
    tenant::{Tenant, TenantRecord},
};

pub(crate) fn identity(tenant: &str) -> Identity {
    let plan = Plan::new("pro").compile().unwrap();
    let name = PlanName::new("pro").unwrap();
    let record = TenantRecord::new(TenantId::new(tenant).unwrap(), name);
    Identity::new(
        Tenant::new(Arc::new(record)),
        Arc::new(plan),
        Grant::default(),
    )
    .unwrap()
}

/// Makes calls of some tenants that have ended when they return.
#[derive(Debug)]
pub(crate) struct Calls {
    meter: CallMeter,
    clock: SystemClock,
    recorder: Recorder,
}

impl Calls {
    pub(crate) fn of(recorder: &Recorder) -> Self {
        Self {
            meter: CallMeter::new(recorder.clone(), "jobs"),
            clock: SystemClock::new(),
            recorder: recorder.clone(),
        }
    }

    /// One call that says its number.
    pub(crate) fn call(&self, caller: &Identity, number: u64) {
        let call = self.meter.open(self.clock.now());
        call.meter().identify(caller);
        call.meter().add("number", number);
        call.end(StatusCode::OK);
    }

    pub(crate) fn calls(&self, tenant: &str, numbers: impl IntoIterator<Item = u64>) {
        let caller = identity(tenant);
        for number in numbers {
            self.call(&caller, number);
        }
    }

    pub(crate) fn assert_balanced(&self) {
        let counters = self.recorder.counters();
        assert!(counters.is_balanced(), "{counters:?}");
    }
}

pub(crate) fn number(event: &UsageEvent) -> u64 {
    event.quantities["number"]
}

pub(crate) fn numbers(events: &[UsageEvent]) -> Vec<u64> {
    events.iter().map(number).collect()
}

/// A recorder with a spool, a short tick and short waits.
pub(crate) fn spooled(sink: impl UsageSink, directory: &Path) -> RecorderBuilder {
    with_spool(sink, SpoolDir::new(directory))
}

pub(crate) fn with_spool(sink: impl UsageSink, directory: SpoolDir) -> RecorderBuilder {
    Recorder::builder(sink)
        .tick(Duration::from_millis(2))
        .backoff(Duration::from_millis(1), Duration::from_millis(5))
        .durability(Durability::Spool(directory))
}

/// A sink that is down until it is told otherwise. Notes the bytes of each batch that it is offered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Switched {
    is_up: Arc<AtomicBool>,
    hangs: Arc<AtomicBool>,
    rejects: Arc<AtomicBool>,
    offered: Arc<Mutex<Vec<(String, String)>>>,
    pub(crate) accepted: MemorySink,
}

impl Switched {
    pub(crate) fn down() -> Self {
        Self::default()
    }

    pub(crate) fn hanging() -> Self {
        let sink = Self::default();
        sink.hangs.store(true, Ordering::Relaxed);
        sink
    }

    pub(crate) fn rejecting() -> Self {
        let sink = Self::default();
        sink.reject(true);
        sink.up();
        sink
    }

    pub(crate) fn up(&self) {
        self.is_up.store(true, Ordering::Relaxed);
    }

    pub(crate) fn hang(&self) {
        self.hangs.store(true, Ordering::Relaxed);
    }

    pub(crate) fn break_down(&self) {
        self.is_up.store(false, Ordering::Relaxed);
    }

    pub(crate) fn reject(&self, on: bool) {
        self.rejects.store(on, Ordering::Relaxed);
    }

    /// The id and the JSON of each batch that was offered.
    pub(crate) fn offered(&self) -> Vec<(String, String)> {
        self.offered.lock().unwrap().clone()
    }
}

#[async_trait]
impl UsageSink for Switched {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        let json = serde_json::to_string(batch).unwrap();
        let offer = (batch_id(batch).to_string(), json);
        self.offered.lock().unwrap().push(offer);
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if !self.is_up.load(Ordering::Relaxed) {
            return Err(SinkError::unavailable("out of order"));
        }
        if self.rejects.load(Ordering::Relaxed) {
            let rejected = Verdict::Rejected { reason: "too_old" };
            return Ok(Verdicts::Each(vec![rejected; batch.len()]));
        }
        self.accepted.write(batch).await
    }
}

/// Appends a line for each event to a file, again for each time that it is offered; now and then it fails after it has
/// written, and now and then before.
#[derive(Debug)]
pub(crate) struct Lines {
    file: File,
    n_writes: std::sync::atomic::AtomicU64,
}

impl Lines {
    pub(crate) fn append_to(path: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Self {
            file: file.unwrap(),
            n_writes: std::sync::atomic::AtomicU64::new(u64::from(std::process::id())),
        }
    }
}

#[async_trait]
impl UsageSink for Lines {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        let n = self.n_writes.fetch_add(1, Ordering::Relaxed);
        if n.is_multiple_of(5) {
            return Err(SinkError::unavailable("connection refused"));
        }
        // A kill may cut a line: whatever follows begins on a line of its own.
        let mut lines = String::from("\n");
        for event in batch {
            lines += &format!("{} {} .\n", event.id, number(event));
        }
        (&self.file).write_all(lines.as_bytes()).unwrap();
        if n.is_multiple_of(7) {
            return Err(SinkError::unavailable("connection reset"));
        }
        Ok(Verdicts::AllAccepted)
    }
}

/// A file system of its own, of that many KiB; `None` for one who may not mount.
#[derive(Debug)]
pub(crate) struct Tmpfs(PathBuf);

impl Tmpfs {
    pub(crate) fn mount(at: &Path, kib: u32) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let size = format!("size={kib}k");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(at)
            .output();
        let mounted = mounted.is_ok_and(|output| output.status.success());
        mounted.then(|| Self(at.to_owned()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn make_read_only(&self) {
        let status = Command::new("mount")
            .args(["-o", "remount,ro"])
            .arg(&self.0)
            .status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
