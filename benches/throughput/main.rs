//! Requests for each second that axum answers bare, behind one empty layer, and behind a whole gate:
//! `cargo bench --bench throughput`.
//!
//! One thread serves all three on loopback, another sends over [`CONNECTIONS`] kept-alive connections to each, so
//! the two share the machine in the same way whoever answers. The same requests go to all, keys included. A
//! round alternates short slices of the three; five rounds are printed, and the medians of their ratios.
//!
//! On a machine with other work the requests for each second tell about that work too. The processor time of
//! the serving thread for each request, which the kernel counts, does so less, and is printed beside them.

mod client;

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use axum::{Router, routing::get};
use client::Connection;
use tokio::task::JoinSet;
use tollgate::{
    Tollgate,
    identity::NewKey,
    limit::{Quota, Rate},
    meter::UsageEvent,
    plan::Plan,
    sink::{Filter, MemorySink},
};
use tower::ServiceBuilder;

const ROUNDS: usize = 5;
const SLICES: usize = 8;
const SLICE: Duration = Duration::from_millis(100);
const WARM_UP: Duration = Duration::from_millis(500);
const CONNECTIONS: usize = 32;
const KEYS: usize = 1_024;
const HELLO: &str = "hello";
const NAMES: [&str; 3] = ["bare", "one empty layer", "whole gate"];

/// Where the three are served, what opens the gate, and where the kernel counts the serving thread's time.
struct Served {
    addresses: [SocketAddr; 3],
    keys: Vec<String>,
    processor_time: PathBuf,
}

async fn serve(router: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        // The peer's address, as a gate wants it, for all three.
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
            let _ = stream.set_nodelay(true);
        });
        axum::serve(listener, service).await.expect("serves");
    });
    address
}

async fn serve_all() -> Served {
    let generous = Plan::new("pro")
        .rule(Rate::per_second(1_000_000_000))
        .rule(Quota::monthly(1 << 50));
    let gate = Tollgate::builder()
        .plans([generous])
        .usage(Filter::new(MemorySink::new(), |_: &UsageEvent| false))
        .build()
        .expect("a legal gate");
    let mut keys = Vec::new();
    for i in 0..KEYS {
        let new = NewKey::for_tenant(format!("tenant-{i}")).plan("pro");
        let issued = gate.keys().issue(new).await.expect("a memory store");
        keys.push(issued.key.expose().to_owned());
    }
    let router = || Router::new().route("/", get(|| async { HELLO }));
    let empty = ServiceBuilder::new().map_request(|request: axum::extract::Request| request);
    let addresses = [
        serve(router()).await,
        serve(router().layer(empty)).await,
        serve(router().layer(gate.layer())).await,
    ];
    Served {
        addresses,
        keys,
        processor_time: fs::canonicalize("/proc/thread-self/schedstat").unwrap_or_default(),
    }
}

/// Serves on a thread of its own until the process ends.
fn start() -> Served {
    let (sender, served) = mpsc::channel();
    thread::spawn(move || {
        let runtime = current_thread();
        runtime.block_on(async {
            let _ = sender.send(serve_all().await);
            std::future::pending::<()>().await;
        });
    });
    served.recv().expect("it serves")
}

fn current_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

async fn connect(address: SocketAddr, keys: &[String]) -> Vec<Connection> {
    let mut connections = Vec::new();
    for keys in keys.chunks(KEYS / CONNECTIONS) {
        let request = |key| {
            format!("GET / HTTP/1.1\r\nhost: bench\r\naccept: */*\r\nx-api-key: {key}\r\n\r\n")
                .into_bytes()
        };
        connections.push(Connection::open(address, keys.iter().map(request).collect()).await);
    }
    connections
}

/// What was answered within some time, and what the server needed for it.
#[derive(Clone, Copy, Default)]
struct Count {
    n_answers: u64,
    elapsed: Duration,
    processor: Duration,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.n_answers += other.n_answers;
        self.elapsed += other.elapsed;
        self.processor += other.processor;
    }

    fn per_second(&self) -> f64 {
        self.n_answers as f64 / self.elapsed.as_secs_f64()
    }

    fn micros_each(&self) -> f64 {
        self.processor.as_secs_f64() * 1e6 / self.n_answers as f64
    }
}

/// The time that the serving thread has run, where the system tells.
fn processor_time(served: &Served) -> Duration {
    let text = fs::read_to_string(&served.processor_time).unwrap_or_default();
    let nanos = text.split_whitespace().next().unwrap_or_default();
    Duration::from_nanos(nanos.parse().unwrap_or_default())
}

/// All connections to one server send for some time.
async fn drive(connections: &mut Vec<Connection>, served: &Served, time: Duration) -> Count {
    let (started, before) = (Instant::now(), processor_time(served));
    let until = tokio::time::Instant::now() + time;
    let mut tasks = JoinSet::new();
    for mut connection in connections.drain(..) {
        tasks.spawn(async move {
            let n_answers = connection.drive(until, HELLO.as_bytes()).await;
            (connection, n_answers)
        });
    }
    let mut count = Count::default();
    while let Some(driven) = tasks.join_next().await {
        let (connection, n_answers) = driven.expect("every answer is good");
        connections.push(connection);
        count.n_answers += n_answers;
    }
    count.elapsed = started.elapsed();
    count.processor = processor_time(served).saturating_sub(before);
    count
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn measure(served: &Served) -> Vec<[Count; 3]> {
    let mut connections = Vec::new();
    for address in served.addresses {
        connections.push(connect(address, &served.keys).await);
    }
    for connections in &mut connections {
        drive(connections, served, WARM_UP).await;
    }
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let mut round = [Count::default(); 3];
        for _ in 0..SLICES {
            for (connections, count) in connections.iter_mut().zip(&mut round) {
                count.add(drive(connections, served, SLICE).await);
            }
        }
        rounds.push(round);
    }
    rounds
}

fn main() {
    let served = start();
    let rounds = current_thread().block_on(measure(&served));
    let [bare, empty, gated] = NAMES;
    println!("| round | {bare} | {empty} | {gated} | {gated} / {bare} |");
    println!("| --- | --- | --- | --- | --- |");
    for (round, counts) in rounds.iter().enumerate() {
        let [bare, empty, gated] = counts.map(|count| count.per_second());
        let ratio = gated / bare;
        let round = round + 1;
        println!("| {round} | {bare:.0}/s | {empty:.0}/s | {gated:.0}/s | {ratio:.3} |");
    }
    let ratio = |value: fn(&Count) -> f64, place: usize| {
        median(
            rounds
                .iter()
                .map(move |it| value(&it[place]) / value(&it[0])),
        )
    };
    let each = |place: usize| median(rounds.iter().map(|it| it[place].micros_each()));
    println!("\n| median of the rounds | goal | {bare} | {empty} | {gated} |");
    println!("| --- | --- | --- | --- | --- |");
    println!(
        "| requests for each second, of {bare} | >= 0.95 | 1 | {:.3} | {:.3} |",
        ratio(Count::per_second, 1),
        ratio(Count::per_second, 2),
    );
    println!(
        "| the server's processor time for each request | - | {:.1} µs | {:.1} µs | {:.1} µs |",
        each(0),
        each(1),
        each(2),
    );
    println!(
        "| the same, of {bare} | - | 1 | {:.3} | {:.3} |",
        ratio(Count::micros_each, 1),
        ratio(Count::micros_each, 2),
    );
}
