//! The reader of one stream.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use redis::{Cmd, Value};
use tokio::{
    sync::watch,
    time::{error::Elapsed, timeout},
};

use super::{
    Count, Shared,
    entry::{DeadEntry, Entry, EntryId, StrangeEntries, of_claim, of_read},
};
use crate::{
    redis_support::{HeldLink, Key, RedisFault, Script},
    sink::{Position, SinkError, Verdict, unavailable},
};

const LEAVE: &str = include_str!("leave.lua");
/// How long an answer may take, beside the time that a command waits.
const PATIENCE: Duration = Duration::from_secs(5);
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LAST_DELAY: Duration = Duration::from_secs(5);
/// How long a batch may take to be counted: an answer of the database that never comes is not waited for.
const COUNT_PATIENCE: Duration = Duration::from_secs(60);
/// A consumer that has read nothing for a day and owes nothing is dead.
const DEAD_AFTER: Duration = Duration::from_secs(86_400);

pub(super) struct Worker {
    shared: Arc<Shared>,
    link: HeldLink,
    stream: Key,
    /// The stream's name in tables and logs.
    name: String,
    stopped: watch::Receiver<bool>,
    leave: Script,
    delays: ExponentialBackoff,
}

/// Why entries could not be read or counted; both are tried again.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the stream cannot be read")]
    Redis(#[from] RedisFault),
    #[error("the stream cannot be read")]
    Strange(#[from] StrangeEntries),
    #[error("usage cannot be counted")]
    Sink(#[from] SinkError),
    #[error("PostgreSQL does not answer")]
    TooSlow(#[from] Elapsed),
}

fn delays() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_jitter()
        .with_min_delay(FIRST_DELAY)
        .with_max_delay(LAST_DELAY)
        .without_max_times()
        .build()
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, shard: u16, stopped: watch::Receiver<bool>) -> Self {
        let stream = shared.space.usage_stream(shard);
        Self {
            link: HeldLink::new(shared.connector.clone(), None, PATIENCE),
            name: String::from_utf8_lossy(&stream).into_owned(),
            stream,
            shared,
            stopped,
            leave: Script::new(LEAVE),
            delays: delays(),
        }
    }

    fn is_stopped(&self) -> bool {
        // Whoever would say so may be gone.
        *self.stopped.borrow() || self.stopped.has_changed().is_err()
    }

    pub(super) async fn run(mut self) {
        while !self.is_stopped() {
            if let Err(failure) = self.read_on().await {
                self.shared.tally.add(Count::Failures, 1);
                tracing::warn!(
                    target: "tollgate::usage",
                    stream = self.name,
                    error = &failure as &dyn std::error::Error,
                    "usage is not counted now; it waits in the stream"
                );
                let delay = self.delays.next().unwrap_or(LAST_DELAY);
                // A stop ends the wait; its sender may be gone, which is one too.
                let _ = timeout(delay, self.stopped.changed()).await;
            }
        }
        let _ = self.end_consumers(&self.shared.consumer).await;
    }

    /// Reads until it is stopped or something fails: first what this consumer has read and not acknowledged, then what
    /// dead ones have, then what is new.
    async fn read_on(&mut self) -> Result<(), Failure> {
        self.join().await?;
        let mut own = "0".to_owned();
        while !self.is_stopped() {
            let entries = of_read(self.read(&own, None).await?)?;
            let Some(last) = entries.last() else { break };
            own = last.id.to_string();
            self.count(entries).await?;
        }
        let mut claimed_at = None;
        while !self.is_stopped() {
            let now = self.shared.clock.now();
            let is_due = claimed_at.is_none_or(|at| now.since(at) >= self.shared.claim_after / 2);
            if is_due {
                claimed_at = Some(now.monotonic_micros());
                self.claim().await?;
            }
            let wait = self.shared.wait.min(self.shared.claim_after);
            let entries = of_read(self.read(">", Some(wait)).await?)?;
            if entries.is_empty() {
                self.delays = delays();
            } else {
                self.count(entries).await?;
            }
        }
        Ok(())
    }

    fn command(&self, name: &str) -> Cmd {
        let mut command = redis::cmd(name);
        command.arg(&*self.stream);
        command
    }

    /// Makes the group where there is none; it reads the stream from its beginning.
    async fn join(&self) -> Result<(), Failure> {
        let mut create = redis::cmd("XGROUP");
        create.arg("CREATE").arg(&*self.stream);
        create.arg(&self.shared.group).arg("0").arg("MKSTREAM");
        match self.link.call(create, Duration::ZERO).await {
            Err(fault) if !is_there_already(&fault) => Err(fault.into()),
            _ => Ok(()),
        }
    }

    async fn read(&self, from: &str, wait: Option<Duration>) -> Result<Value, RedisFault> {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP")
            .arg(&self.shared.group)
            .arg(&self.shared.consumer);
        read.arg("COUNT").arg(self.shared.batch);
        if let Some(wait) = wait {
            let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
            read.arg("BLOCK").arg(millis);
        }
        read.arg("STREAMS").arg(&*self.stream).arg(from);
        self.link.call(read, wait.unwrap_or_default()).await
    }

    /// Takes over what other consumers have not acknowledged for long, and ends those that are dead.
    async fn claim(&mut self) -> Result<(), Failure> {
        let idle = u64::try_from(self.shared.claim_after.as_millis()).unwrap_or(u64::MAX);
        let mut cursor = "0-0".to_owned();
        while !self.is_stopped() {
            let mut claim = self.command("XAUTOCLAIM");
            claim.arg(&self.shared.group).arg(&self.shared.consumer);
            claim.arg(idle).arg(&cursor);
            claim.arg("COUNT").arg(self.shared.batch);
            let (next, entries) = of_claim(self.link.call(claim, Duration::ZERO).await?)?;
            if !entries.is_empty() {
                self.shared.tally.add(Count::Claimed, entries.len());
                self.count(entries).await?;
            }
            if next == "0-0" {
                break;
            }
            cursor = next;
        }
        self.end_consumers("").await
    }

    async fn end_consumers(&self, own: &str) -> Result<(), Failure> {
        let arguments = [
            self.shared.group.clone().into_bytes(),
            own.to_owned().into_bytes(),
            DEAD_AFTER.as_millis().to_string().into_bytes(),
        ];
        let keys = [&*self.stream];
        self.link.run(&self.leave, &keys, &arguments).await?;
        Ok(())
    }

    /// Counts entries and then acknowledges them.
    async fn count(&mut self, entries: Vec<Entry>) -> Result<(), Failure> {
        let mut ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
        let Some(last) = ids.iter().max().copied() else {
            return Ok(());
        };
        let (mut events, mut event_ids, mut dead) = (Vec::new(), Vec::new(), Vec::new());
        for entry in entries {
            match entry.content {
                Ok(event) => {
                    events.push(event);
                    event_ids.push(entry.id);
                }
                Err(content) => dead.push((entry.id, content)),
            }
        }
        let position = Position {
            stream: self.name.clone(),
            millis: i64::try_from(last.millis).unwrap_or(i64::MAX),
            sequence: last.sequence,
        };
        let counting = self.shared.sink.count(&events, Some(&position));
        let verdicts = timeout(COUNT_PATIENCE, counting).await??;
        let (mut n_new, mut n_again) = (0, 0);
        for ((event, id), verdict) in events.iter().zip(event_ids).zip(verdicts) {
            match verdict {
                Verdict::Accepted => n_new += 1,
                Verdict::Rejected { reason } => {
                    let body = serde_json::to_vec(event).unwrap_or_default();
                    dead.push((id, DeadEntry { reason, body }));
                }
                Verdict::Duplicate => n_again += 1,
                // It stays unacknowledged, and is read again.
                Verdict::Retry { .. } => ids.retain(|each| *each != id),
            }
        }
        timeout(COUNT_PATIENCE, self.bury(&dead)).await??;
        // Only now: what is acknowledged is never read again.
        let mut acknowledge = self.command("XACK");
        acknowledge.arg(&self.shared.group);
        for id in &ids {
            acknowledge.arg(id.to_string());
        }
        self.link.call(acknowledge, Duration::ZERO).await?;
        self.shared.tally.add(Count::Events, n_new);
        self.shared.tally.add(Count::Duplicates, n_again);
        self.shared.tally.add(Count::DeadLetters, dead.len());
        self.delays = delays();
        Ok(())
    }

    /// Writes entries to the dead letters, each once.
    async fn bury(&self, dead: &[(EntryId, DeadEntry)]) -> Result<(), SinkError> {
        if dead.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = dead.iter().map(|(id, _)| id.to_string()).collect();
        let reasons: Vec<_> = dead.iter().map(|(_, entry)| entry.reason).collect();
        let bodies: Vec<_> = dead.iter().map(|(_, entry)| &*entry.body).collect();
        sqlx::query(
            "INSERT INTO tollgate.usage_dead_letters (stream, entry, reason, body)
             SELECT $1, entry, reason, body FROM unnest($2::text[], $3::text[], $4::bytea[]) AS t(entry, reason, body)
             ON CONFLICT DO NOTHING",
        )
        .bind(&self.name)
        .bind(&ids)
        .bind(reasons)
        .bind(bodies)
        .execute(self.shared.sink.pool())
        .await
        .map_err(unavailable)?;
        tracing::error!(
            target: "tollgate::usage",
            stream = self.name,
            first = ids.first(),
            entries = ids.len(),
            "entries that are no usage events went to tollgate.usage_dead_letters"
        );
        Ok(())
    }
}

fn is_there_already(fault: &RedisFault) -> bool {
    let (RedisFault::NotRun(cause) | RedisFault::Unknown(cause)) = fault;
    cause
        .downcast_ref::<redis::RedisError>()
        .is_some_and(|error| error.code() == Some("BUSYGROUP"))
}
