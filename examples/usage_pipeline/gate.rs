//! The process that meters: a gate whose events are promised before they are offered.

use std::{
    collections::HashSet,
    convert::Infallible,
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use async_trait::async_trait;
use http::{Request, Response};
use tollgate::{
    Meter, Tollgate,
    identity::NewKey,
    meter::{EventId, Recorder, UsageEvent},
    plan::Plan,
    redis_support::RedisConnector,
    sink::{RedisStreamSink, SinkError, UsageSink, Verdict, Verdicts},
};
use tower::{Layer, ServiceExt, service_fn};

use crate::servers::Outcome;

/// The length of a line of the ledger: an id and a line feed.
pub(crate) const LINE: u64 = 33;

pub(crate) fn ledger(dir: &Path) -> PathBuf {
    dir.join("ledger")
}

/// Writes each batch down before it is offered, so that a process that begins again offers it again: what a spool does.
/// The ids go to the ledger, which the end is compared with.
#[derive(Debug)]
struct Promising {
    sink: RedisStreamSink,
    outbox: PathBuf,
    book: Mutex<(File, HashSet<EventId>)>,
}

impl Promising {
    fn open(sink: RedisStreamSink, dir: &Path) -> Outcome<Self> {
        let path = ledger(dir);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let ids = text.lines().filter(|line| line.len() == 32);
        let ids = ids
            .map(|id| serde_json::from_value(id.into()))
            .collect::<Result<_, _>>()?;
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        // A line that was cut off by a kill stands in the outbox.
        file.set_len(text.len() as u64 / LINE * LINE)?;
        let outbox = dir.join("outbox");
        Ok(Self {
            sink,
            outbox,
            book: Mutex::new((file, ids)),
        })
    }

    fn promise(&self, batch: &[UsageEvent]) -> Outcome<()> {
        let (ledger, promised) = &mut *self.book.lock().map_err(|_| "a panic")?;
        let new: Vec<_> = batch
            .iter()
            .filter(|event| !promised.contains(&event.id))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let whole = self.outbox.with_extension("whole");
        fs::write(&whole, serde_json::to_vec(batch)?)?;
        fs::rename(&whole, &self.outbox)?;
        let lines: String = new.iter().map(|event| format!("{}\n", event.id)).collect();
        ledger.write_all(lines.as_bytes())?;
        promised.extend(new.iter().map(|event| event.id));
        Ok(())
    }

    /// Offers what a process before this one had promised.
    async fn keep_promises(&self) -> Outcome<usize> {
        while let Ok(text) = fs::read(&self.outbox) {
            let batch: Vec<UsageEvent> = serde_json::from_slice(&text)?;
            if self.write(&batch).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(self.book.lock().map_err(|_| "a panic")?.1.len())
    }
}

#[async_trait]
impl UsageSink for Promising {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        self.promise(batch).map_err(SinkError::unavailable)?;
        let verdicts = self.sink.write(batch).await?;
        // Now and then it comes twice more, in other batches, as after a spool was read again.
        if batch
            .first()
            .is_some_and(|event| event.id.as_u128() % 8 == 0)
        {
            let (first, second) = batch.split_at(batch.len() / 2);
            self.sink.write(second).await?;
            self.sink.write(first).await?;
        }
        if let Verdicts::Each(each) = &verdicts
            && each
                .iter()
                .all(|verdict| matches!(verdict, Verdict::Accepted | Verdict::Duplicate))
        {
            fs::remove_file(&self.outbox).map_err(SinkError::unavailable)?;
        }
        Ok(verdicts)
    }
}

/// Meters calls until so many events are promised.
pub(crate) async fn run(redis: &str, dir: &Path, n_events: usize) -> Outcome<()> {
    let connector = RedisConnector::single(redis)?.connect_timeout(Duration::from_secs(5));
    let builder = RedisStreamSink::builder(connector).max_entries(5_000_000);
    let sink = Promising::open(builder.connect().await?, dir)?;
    let n_promised = sink.keep_promises().await?;
    let recorder = Recorder::builder(sink)
        .tick(Duration::from_millis(5))
        .backoff(Duration::from_millis(20), Duration::from_millis(200))
        .build()?;
    let gate = Tollgate::builder()
        .plans([Plan::new("pro")])
        .recorder(recorder)
        .build()?;
    let mut keys = Vec::new();
    for tenant in ["acme", "globex", "initech"] {
        keys.push(
            gate.keys()
                .issue(NewKey::for_tenant(tenant).plan("pro"))
                .await?
                .key,
        );
    }
    let service = gate
        .layer()
        .layer(service_fn(async |request: Request<String>| {
            if let Some(meter) = request.extensions().get::<Meter>() {
                meter.add("tokens", 12);
            }
            Ok::<_, Infallible>(Response::new("an answer".to_owned()))
        }));
    for call in n_promised..n_events {
        let request = Request::get("/v1/chat").header("x-api-key", keys[call % 3].expose());
        let response = service
            .clone()
            .oneshot(request.body(String::new())?)
            .await?;
        http_body_util::BodyExt::collect(response.into_body()).await?;
        while call % 64 == 0 && gate.usage().counters().queued > 10_000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    match gate.shutdown(Duration::from_secs(60)).await {
        report if report.dropped == 0 => Ok(()),
        report => Err(format!("{report:?}").into()),
    }
}
