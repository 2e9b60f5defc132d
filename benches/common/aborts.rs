//! Clients that leave at random points of their calls, over real connections, and what the gate says of it.
//!
//! A file of its own, so that the tests run a small number of the same streams.

#[path = "dice.rs"]
mod dice;

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use dice::Dice;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::Handle,
    task::JoinSet,
    time::timeout,
};
use tokio_stream::StreamExt as _;
use tollgate::{
    Tollgate,
    identity::NewKey,
    limit::{
        Concurrency, Decision, LimitCall, LimitStore, LimitStoreError, MemoryLimits,
        OwnedLimitCall, Quota, Receipt, Settlement, Unit,
    },
    meter::{CallOutcome, Meter},
    plan::Plan,
    prelude::{Cost, RequestHead},
    sink::MemorySink,
};
use tower::{Layer as _, ServiceExt as _, service_fn};

const CHUNK: Bytes = Bytes::from_static(b"ten bytes.");
const N_FRAMES: u64 = 20;
const QUOTA: u64 = 1 << 40;
/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most clients at once.
const N_CLIENTS: u64 = 16;
/// More than clients that left can hold until the server has heard of it.
const N_SLOTS: u64 = 100_000;

/// Counts what it charges and settles.
#[derive(Debug, Default)]
struct CountedLimits {
    store: MemoryLimits,
    n_charged: AtomicU64,
    n_settled: AtomicU64,
    /// What the last call left of the slots and of the quota.
    left: Mutex<Vec<u64>>,
}

#[async_trait]
impl LimitStore for CountedLimits {
    fn try_decide(&self, call: &LimitCall<'_>) -> Option<Result<Decision, LimitStoreError>> {
        let decision = self.store.try_decide(call);
        if let Some(Ok(decision)) = &decision
            && decision.is_admitted()
        {
            self.n_charged.fetch_add(1, Ordering::SeqCst);
            let left = decision.states.iter().map(|state| state.remaining);
            *self.left.lock().expect("a sound lock") = left.collect();
        }
        decision
    }

    async fn decide(self: Arc<Self>, _: OwnedLimitCall) -> Result<Decision, LimitStoreError> {
        unreachable!("counts in memory answer at once")
    }

    fn settle(&self, call: &LimitCall<'_>, receipt: &Receipt, settlement: &Settlement) {
        self.n_settled.fetch_add(1, Ordering::SeqCst);
        self.store.settle(call, receipt, settlement);
    }
}

/// Over which protocol the clients speak.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// What became of the streams. [`Figures::check`] says whether it is what should have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) protocol: &'static str,
    pub(crate) seed: u64,
    /// Calls that clients began.
    pub(crate) sent: u64,
    /// Calls that the server handed to the gate: it never sees a stream that is reset at once.
    pub(crate) seen: u64,
    pub(crate) opened: u64,
    pub(crate) charged: u64,
    pub(crate) settled_charges: u64,
    pub(crate) settled: u64,
    pub(crate) events: u64,
    pub(crate) duplicates: u64,
    pub(crate) aborted: u64,
    pub(crate) served: u64,
    pub(crate) open: u64,
    /// Slots that nobody holds and that are not free.
    pub(crate) slots_leaked: u64,
    /// Tasks that are alive beyond those that were before.
    pub(crate) tasks_leaked: u64,
    /// Events whose quantities are not those of the frames that were handed over.
    pub(crate) miscounted: u64,
    /// What the quota was charged beyond the sum of the events.
    pub(crate) quota_difference: i128,
    pub(crate) seconds: f64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            protocol,
            seed,
            sent,
            seen,
            opened,
            charged,
            settled_charges,
            settled,
            events,
            duplicates,
            aborted,
            served,
            open,
            slots_leaked,
            tasks_leaked,
            miscounted,
            quota_difference,
            seconds,
        } = self;
        write!(
            f,
            "aborts protocol={protocol} seed={seed} sent={sent} seen={seen} opened={opened} charged={charged} \
             settled_charges={settled_charges} settled={settled} events={events} duplicates={duplicates} \
             aborted={aborted} served={served} open={open} slots_leaked={slots_leaked} \
             tasks_leaked={tasks_leaked} miscounted={miscounted} quota_difference={quota_difference} \
             seconds={seconds:.1}"
        )
    }
}

impl Figures {
    /// Each call that was seen is charged once, settled once and told once, and nothing is left behind.
    pub(crate) fn check(&self) -> Result<(), String> {
        let once = [
            self.opened,
            self.charged,
            self.settled_charges,
            self.settled,
            self.events,
            self.aborted + self.served,
        ];
        let left = [
            self.duplicates,
            self.open,
            self.slots_leaked,
            self.tasks_leaked,
            self.miscounted,
        ];
        let is_sound = once.iter().all(|n| *n == self.seen)
            && left.iter().all(|n| *n == 0)
            && self.quota_difference == 0
            && self.seen <= self.sent
            && self.aborted > self.seen / 4;
        is_sound.then_some(()).ok_or_else(|| self.to_string())
    }
}

/// Answers after a moment with twenty frames, some of them after a moment, and meters each.
async fn stream(
    request: Request<Incoming>,
) -> Result<
    Response<StreamBody<impl tokio_stream::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>,
    Infallible,
> {
    let meter = request.extensions().get::<Meter>().cloned();
    let path = request.uri().path().len() as u64;
    for _ in 0..path % 4 {
        tokio::task::yield_now().await;
    }
    if path.is_multiple_of(5) {
        // Hangs until the client leaves.
        std::future::pending::<()>().await;
    }
    let frames = tokio_stream::iter(0..N_FRAMES).then(move |n| {
        let meter = meter.clone();
        async move {
            if n % 7 == path % 7 {
                tokio::task::yield_now().await;
            }
            if n == N_FRAMES / 2 && path % 3 == 1 {
                std::future::pending::<()>().await;
            }
            if let Some(meter) = &meter {
                meter.add("chunks", 1);
            }
            Ok(Frame::data(CHUNK))
        }
    });
    Ok(Response::new(StreamBody::new(Box::pin(frames))))
}

/// Paths of different length: the service takes its turns from it.
fn path(dice: &mut Dice) -> String {
    format!("/{}", "x".repeat(dice.below(30) as usize))
}

/// Where a client of the figures' server leaves.
struct Target {
    addr: SocketAddr,
    key: String,
    sent: AtomicU64,
}

/// One call on a connection of its own, left after some bytes, by a reset or by a close.
async fn leave_http1(target: &Target, dice: &mut Dice) {
    let Ok(mut stream) = TcpStream::connect(target.addr).await else {
        return;
    };
    let head = format!(
        "GET {} HTTP/1.1\r\nhost: a\r\nx-api-key: {}\r\n\r\n",
        path(dice),
        target.key
    );
    target.sent.fetch_add(1, Ordering::SeqCst);
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    match dice.below(4) {
        0 => {}
        1 => tokio::task::yield_now().await,
        _ => {
            let mut some = vec![0; 1 + dice.below(700) as usize];
            let patience = Duration::from_micros(200 + dice.below(3_000));
            let _ = timeout(patience, stream.read_exact(&mut some)).await;
        }
    }
    // A close leaves the port in TIME_WAIT, and there are not enough ports for all; a reset frees it.
    if dice.below(16) > 0 {
        let _ = stream.set_zero_linger();
    }
}

/// Some calls on one connection, each left after some frames; gives how many were begun.
async fn leave_http2(target: &Target, dice: &mut Dice, n: u64) -> u64 {
    let Ok(stream) = TcpStream::connect(target.addr).await else {
        return 0;
    };
    let Ok((mut sender, connection)) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await
    else {
        return 0;
    };
    let connection = tokio::spawn(connection);
    let mut n_begun = 0;
    while n_begun < n && sender.ready().await.is_ok() {
        let request = Request::get(format!("http://a{}", path(dice)))
            .header("x-api-key", &target.key)
            .body(Empty::<Bytes>::new())
            .expect("a request");
        n_begun += 1;
        target.sent.fetch_add(1, Ordering::SeqCst);
        let answer = sender.send_request(request);
        // Few are reset before they are sent: the server ends a connection that does nothing else.
        let patience = match dice.below(32) {
            0 => continue,
            n => Duration::from_micros(n * 150),
        };
        let Ok(Ok(response)) = timeout(patience, answer).await else {
            continue;
        };
        let mut body = response.into_body();
        for _ in 0..dice.below(N_FRAMES + 3) {
            let frame = timeout(Duration::from_millis(2), body.frame()).await;
            if !matches!(frame, Ok(Some(Ok(_)))) {
                break;
            }
        }
    }
    drop(sender);
    let _ = timeout(Duration::from_secs(1), connection).await;
    n_begun
}

/// Sends `n` streams and leaves them at random points.
pub(crate) async fn run(protocol: Protocol, n: u64, seed: u64) -> Figures {
    let n_tasks_before = Handle::current().metrics().num_alive_tasks();
    let started = std::time::Instant::now();
    let limits = Arc::new(CountedLimits::default());
    let sink = MemorySink::new();
    let tokens = Quota::monthly(QUOTA).unit(Unit::custom("chunks"));
    let plan = Plan::new("free")
        .rule(Concurrency::new(N_SLOTS))
        .rule(tokens.named("chunks"));
    let gate = Tollgate::builder()
        .plans([plan])
        .limits(Arc::clone(&limits))
        .cost(|_: &RequestHead<'_>| Cost::default().reserve("chunks", N_FRAMES))
        .usage(sink.clone())
        .build()
        .expect("a legal gate");
    let new = NewKey::for_tenant("acme").plan("free");
    let key = gate.keys().issue(new).await.expect("a key").key;
    let seen = Arc::new(AtomicU64::new(0));

    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    let counter = Arc::clone(&seen);
    let service =
        gate.layer()
            .layer(service_fn(stream))
            .map_request(move |request: Request<Incoming>| {
                counter.fetch_add(1, Ordering::SeqCst);
                request
            });
    let server = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            connections.spawn(async move {
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
            while connections.try_join_next().is_some() {}
        }
    });

    let target = Arc::new(Target {
        addr,
        key: key.expose().to_owned(),
        sent: AtomicU64::new(0),
    });
    let mut clients = JoinSet::new();
    for client in 0..N_CLIENTS {
        let share = n / N_CLIENTS + u64::from(client < n % N_CLIENTS);
        let target = Arc::clone(&target);
        let mut dice = Dice(seed.wrapping_mul(N_CLIENTS).wrapping_add(client));
        clients.spawn(async move {
            let mut done = 0;
            while done < share {
                done += match protocol {
                    Protocol::Http1 => {
                        leave_http1(&target, &mut dice).await;
                        1
                    }
                    Protocol::Http2 => {
                        leave_http2(&target, &mut dice, (share - done).min(100)).await
                    }
                };
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.expect("a client");
    }

    // Whatever still waits in a socket or in a task comes to its end.
    let settled = async {
        loop {
            let counters = gate.usage().counters();
            assert!(counters.is_balanced(), "{counters:?}");
            let before = seen.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            if gate.usage().counters().open == 0 && seen.load(Ordering::SeqCst) == before {
                break;
            }
        }
    };
    let _ = timeout(PATIENCE, settled).await;
    server.abort();
    let _ = server.await;
    gate.usage().flush().await;
    let counters = gate.usage().counters();
    let events = sink.events();
    let chunks =
        |event: &tollgate::meter::UsageEvent| event.quantities.get("chunks").copied().unwrap_or(0);
    let mut figures = Figures {
        protocol: match protocol {
            Protocol::Http1 => "http1",
            Protocol::Http2 => "http2",
        },
        seed,
        sent: target.sent.load(Ordering::SeqCst),
        seen: seen.load(Ordering::SeqCst),
        opened: counters.opened,
        charged: limits.n_charged.load(Ordering::SeqCst),
        settled_charges: limits.n_settled.load(Ordering::SeqCst),
        settled: counters.settled,
        events: events.len() as u64,
        duplicates: sink.duplicates(),
        aborted: count(&events, CallOutcome::Aborted),
        served: count(&events, CallOutcome::Served),
        open: counters.open,
        miscounted: events
            .iter()
            .filter(|event| event.response_bytes != chunks(event) * CHUNK.len() as u64)
            .count() as u64,
        seconds: started.elapsed().as_secs_f64(),
        ..Figures::default()
    };

    // One more call, refused nothing, says what the limits hold.
    let probe = Request::get("/")
        .header("x-api-key", &target.key)
        .body(Empty::<Bytes>::new())
        .expect("a request");
    let served = service_fn(async |_: Request<Empty<Bytes>>| {
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    });
    let answer = gate.layer().layer(served).oneshot(probe).await;
    drop(answer.expect("infallible"));
    let left = limits.left.lock().expect("a sound lock").clone();
    let [slots, quota] = left[..] else {
        panic!("two rules left {left:?}")
    };
    // The probe itself holds a slot and reserves twenty chunks.
    figures.slots_leaked = N_SLOTS - 1 - slots;
    let used = i128::from(QUOTA) - i128::from(quota) - i128::from(N_FRAMES);
    let told: i128 = events.iter().map(|event| i128::from(chunks(event))).sum();
    figures.quota_difference = used - told;
    let _ = gate.shutdown(Duration::from_secs(1)).await;
    drop(gate);
    let n_tasks = || Handle::current().metrics().num_alive_tasks();
    let ended = async {
        while n_tasks() > n_tasks_before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = timeout(Duration::from_secs(10), ended).await;
    figures.tasks_leaked = n_tasks().saturating_sub(n_tasks_before) as u64;
    figures
}

fn count(events: &[tollgate::meter::UsageEvent], outcome: CallOutcome) -> u64 {
    let with = events.iter().filter(|event| event.outcome == outcome);
    with.count() as u64
}
