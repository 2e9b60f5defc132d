//! One task that sends the calls of many as one batch: the next batch is what has come in while the last one was
//! on its way, so its size follows the load by itself.

use std::{future::Future, pin::Pin, sync::Arc, task::Poll, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use redis::Value;
use tokio::sync::{mpsc, oneshot};

use super::{
    batch::{Batch, MAX_CALLS, read},
    wire::{Answer, Operation, PackedCall},
};
use crate::redis_support::{Failed, Key, Link, RedisConnector, RedisFault, Script};

/// An answer that is late once may be a slow server; twice, the connection may be dead.
const TIMEOUTS_UNTIL_RECONNECT: u32 = 2;

/// One call in the queue.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) call: PackedCall,
    pub(super) reply: Option<oneshot::Sender<Delivery>>,
    /// What has to be released when nobody takes the answer.
    pub(super) release: Option<Release>,
}

pub(super) type Delivery = Result<Delivered, RedisFault>;

/// An answer on its way to whoever asked. One that is dropped on the way gives its slots of concurrency limits
/// back: nobody else would.
#[derive(Debug)]
pub(super) struct Delivered {
    answer: Option<Answer>,
    release: Option<Release>,
}

impl Delivered {
    /// Takes the answer; from here on the slots are the caller's.
    pub(super) fn accept(mut self) -> Option<Answer> {
        self.release = None;
        self.answer.take()
    }
}

impl Drop for Delivered {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release.send();
        }
    }
}

/// The release of a call's slots.
#[derive(Debug)]
pub(super) struct Release {
    pub(super) call: PackedCall,
    pub(super) queue: mpsc::WeakSender<Queued>,
}

impl Release {
    fn send(self) {
        if let Some(queue) = self.queue.upgrade() {
            // Where even the queue is full, the lease ends the hold.
            let _ = queue.try_send(Queued {
                call: self.call,
                reply: None,
                release: None,
            });
        }
    }
}

/// What the task works with.
pub(super) struct Driver {
    connector: Arc<RedisConnector>,
    script: Script,
    queue: mpsc::Receiver<Queued>,
    link: Connection,
    n_timeouts: u32,
    margin_micros: u64,
    /// The epoch key, where the script has to look at it.
    epoch: Option<Key>,
    metrics: DriverMetrics,
}

#[derive(Clone)]
pub(super) struct DriverMetrics {
    batches: metrics::Counter,
    calls: metrics::Counter,
    reconnects: metrics::Counter,
    pub(super) dropped_settlements: metrics::Counter,
    pub(super) served: metrics::Counter,
    pub(super) returned_units: metrics::Counter,
}

impl DriverMetrics {
    pub(super) fn new() -> Self {
        Self {
            batches: metrics::counter!("tollgate_limit_redis_batches_total"),
            calls: metrics::counter!("tollgate_limit_redis_calls_total"),
            reconnects: metrics::counter!("tollgate_limit_redis_reconnects_total"),
            dropped_settlements: metrics::counter!("tollgate_limit_settlements_dropped_total"),
            served: metrics::counter!("tollgate_limit_redis_leased_total"),
            returned_units: metrics::counter!("tollgate_limit_redis_returned_units_total"),
        }
    }
}

enum Connection {
    Up(Link),
    /// A task makes a new one.
    Making(oneshot::Receiver<Link>),
}

#[derive(Debug, thiserror::Error)]
#[error("the connection to Redis is down and being made anew")]
struct Down;

impl Driver {
    pub(super) fn new(
        connector: Arc<RedisConnector>,
        script: Script,
        link: Link,
        queue: mpsc::Receiver<Queued>,
        margin: Duration,
        epoch: Option<Key>,
        metrics: DriverMetrics,
    ) -> Self {
        Self {
            connector,
            script,
            queue,
            link: Connection::Up(link),
            n_timeouts: 0,
            margin_micros: crate::clock::micros(margin),
            epoch,
            metrics,
        }
    }

    /// Runs until every handle of the queue is gone and what was queued is sent.
    pub(super) async fn run(mut self) {
        let mut waiting = Vec::with_capacity(MAX_CALLS);
        loop {
            if waiting.is_empty() && self.queue.recv_many(&mut waiting, MAX_CALLS).await == 0 {
                return;
            }
            for batch in self.batches(&mut waiting) {
                self.exchange(batch).await;
            }
        }
    }

    /// Takes from what waits as much as one batch may hold: one for a single server, one for each tenant in a
    /// Cluster, where a script may not cross slots.
    fn batches(&self, waiting: &mut Vec<Queued>) -> Vec<Vec<Batch>> {
        let mut batches: Vec<Batch> = Vec::new();
        let is_cluster = self.connector.is_cluster();
        for queued in waiting.drain(..) {
            // Whoever asked has left, and nothing was charged yet.
            if queued
                .reply
                .as_ref()
                .is_some_and(oneshot::Sender::is_closed)
            {
                continue;
            }
            let slot = match queued.call.rules.first() {
                Some(rule) if is_cluster => Some(crate::redis_support::slot(&rule.key)),
                _ => None,
            };
            let room = batches.iter_mut().rev().find(|batch| batch.slot == slot);
            match room {
                Some(batch) if batch.has_room(&queued.call) => batch.push(queued),
                _ => {
                    let mut batch = Batch::new(slot);
                    batch.push(queued);
                    batches.push(batch);
                }
            }
        }
        if is_cluster {
            // All at once, but two of one slot one after the other.
            let mut rounds: Vec<Vec<Batch>> = Vec::new();
            for batch in batches {
                let round = rounds
                    .iter_mut()
                    .find(|round| round.iter().all(|other| other.slot != batch.slot));
                match round {
                    Some(round) => round.push(batch),
                    None => rounds.push(vec![batch]),
                }
            }
            rounds
        } else {
            batches.into_iter().map(|batch| vec![batch]).collect()
        }
    }

    /// Sends batches at once and hands their answers out.
    async fn exchange(&mut self, batches: Vec<Batch>) {
        let Some(link) = self.current() else {
            for batch in batches {
                self.fail(batch, &RedisFault::not_run(Down));
            }
            return;
        };
        let deadline = self.connector.response_timeout;
        let commands = batches.iter().map(|batch| {
            let argument = batch.argument(self.margin_micros, self.epoch.is_some());
            let (link, script) = (link.clone(), &self.script);
            let keys: Vec<&Key> = batch.keys.iter().chain(&self.epoch).collect();
            Box::pin(async move { ask(link, script, &keys, argument.as_bytes(), deadline).await })
                as Asking<'_>
        });
        let answers: Vec<Result<Value, Failed>> = all(commands.collect()).await;
        for (batch, answer) in std::iter::zip(batches, answers) {
            self.metrics.batches.increment(1);
            self.metrics.calls.increment(batch.calls.len() as u64);
            match answer.map(|value| read(&value, batch.calls.len())) {
                Ok(Ok(answers)) => {
                    self.n_timeouts = 0;
                    deliver(batch, answers);
                }
                Ok(Err(bad)) => {
                    self.fail(batch, &RedisFault::unknown(bad));
                    self.reconnect();
                }
                Err(failed) => {
                    self.fail(batch, &failed.fault);
                    self.n_timeouts = if failed.is_timeout {
                        self.n_timeouts + 1
                    } else {
                        0
                    };
                    if failed.is_broken || self.n_timeouts >= TIMEOUTS_UNTIL_RECONNECT {
                        self.reconnect();
                    }
                }
            }
        }
    }

    fn fail(&self, batch: Batch, fault: &RedisFault) {
        for queued in batch.calls {
            // A slot that may have been taken is nobody's; giving back what was not taken does nothing.
            if let Some(release) = queued.release.filter(|_| fault.is_unknown()) {
                release.send();
            }
            match queued.reply {
                // Whoever has left needs no answer.
                Some(reply) => drop(reply.send(Err(fault.clone()))),
                None if queued.call.operation == Operation::Settle => {
                    self.metrics.dropped_settlements.increment(1);
                }
                None => {}
            }
        }
    }

    /// The connection, if there is one.
    fn current(&mut self) -> Option<Link> {
        if let Connection::Making(making) = &mut self.link {
            match making.try_recv() {
                Ok(link) => {
                    self.metrics.reconnects.increment(1);
                    self.link = Connection::Up(link);
                }
                Err(oneshot::error::TryRecvError::Empty) => {}
                Err(oneshot::error::TryRecvError::Closed) => self.link = self.make(),
            }
        }
        match &self.link {
            Connection::Up(link) => Some(link.clone()),
            Connection::Making(_) => None,
        }
    }

    fn reconnect(&mut self) {
        if matches!(self.link, Connection::Up(_)) {
            self.n_timeouts = 0;
            self.link = self.make();
        }
    }

    fn make(&self) -> Connection {
        let (give, made) = oneshot::channel();
        let connector = Arc::clone(&self.connector);
        tokio::spawn(async move {
            let mut pauses = ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(20))
                .with_max_delay(Duration::from_secs(1))
                .with_jitter()
                .without_max_times()
                .build();
            // Until it is made or nobody needs it any more.
            while !give.is_closed() {
                match connector.connect().await {
                    Ok(link) => {
                        let _ = give.send(link);
                        return;
                    }
                    Err(error) => {
                        tracing::debug!(target: "tollgate::redis", %error, "no connection yet");
                        let pause = pauses.next().unwrap_or(Duration::from_secs(1));
                        tokio::time::sleep(pause).await;
                    }
                }
            }
        });
        Connection::Making(made)
    }
}

/// Sends a batch; once more in full to a server that does not know the script, and has done nothing.
async fn ask(
    mut link: Link,
    script: &Script,
    keys: &[&Key],
    argument: &[u8],
    deadline: Duration,
) -> Result<Value, Failed> {
    match link.call(script.by_digest(keys, argument), deadline).await {
        Err(failed) if failed.is_no_script => {
            link.call(script.in_full(keys, argument), deadline).await
        }
        answer => answer,
    }
}

/// A batch on its way.
type Asking<'a> = Pin<Box<dyn Future<Output = Result<Value, Failed>> + Send + 'a>>;

/// All of some futures, in their order.
async fn all(mut futures: Vec<Asking<'_>>) -> Vec<Result<Value, Failed>> {
    if futures.len() == 1
        && let Some(only) = futures.pop()
    {
        return vec![only.await];
    }
    let mut done: Vec<Option<_>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(move |context| {
        let mut is_pending = false;
        for (future, done) in std::iter::zip(&mut futures, &mut done) {
            if done.is_none() {
                match future.as_mut().poll(context) {
                    Poll::Ready(value) => *done = Some(value),
                    Poll::Pending => is_pending = true,
                }
            }
        }
        if is_pending {
            return Poll::Pending;
        }
        Poll::Ready(done.drain(..).flatten().collect())
    })
    .await
}

fn deliver(batch: Batch, answers: Vec<Answer>) {
    for (queued, answer) in std::iter::zip(batch.calls, answers) {
        let admitted = answer.values.first() == Some(&super::wire::status::ADMITTED);
        if let Some(reply) = queued.reply {
            // Dropped on the way, it releases what it holds.
            drop(reply.send(Ok(Delivered {
                release: queued.release.filter(|_| admitted),
                answer: Some(answer),
            })));
        }
    }
}
