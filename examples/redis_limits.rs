// cargo run --example redis_limits
//! Eight processes share one limit of 100 in Redis: exactly 100 of 1,000 calls at once pass.
//!
//! It starts a `redis-server` of its own; `REDIS_URL=redis://host:6379` names another. Every process makes 125 calls at
//! the same moment; the last line is `admitted=100 limit=100 processes=8`.

use std::{
    convert::Infallible,
    error::Error,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use http::{Request, Response};
use tollgate::{
    limit::{LimitLayer, OnStoreFailure, RedisLimits, Window},
    redis_support::RedisConnector,
};
use tower::{Layer, ServiceExt, service_fn};

const PROCESSES: usize = 8;
const CALLS: usize = 1_000;
const LIMIT: u64 = 100;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const PATIENCE: Duration = Duration::from_secs(10);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// One of the eight: connects, waits for the word, makes its calls and prints how many passed.
#[tokio::main]
async fn work(url: &str, name: &str) -> Outcome<()> {
    let connector = RedisConnector::single(url)?.response_timeout(PATIENCE);
    let limits = RedisLimits::builder(connector.connect_timeout(PATIENCE));
    // Nothing comes back within a day, and a call that Redis does not decide is refused: what passes, Redis counted.
    let rule = Window::new(LIMIT, DAY).on_store_failure(OnStoreFailure::Deny);
    let layer = LimitLayer::new(limits.connect().await?, [rule])?.named(name);
    let answer =
        service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(String::new())));
    let service = layer.deadline(PATIENCE).layer(answer);

    println!("ready");
    std::io::stdin().lock().read_line(&mut String::new())?;
    let calls: Vec<_> = (0..CALLS / PROCESSES)
        .map(|_| tokio::spawn(service.clone().oneshot(Request::new(()))))
        .collect();
    let mut admitted = 0;
    for call in calls {
        admitted += u64::from(call.await??.status().is_success());
    }
    println!("{admitted}");
    Ok(())
}

/// A server of the example's own, on a socket.
fn start_server(socket: &Path) -> Outcome<Child> {
    let mut server = Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--unixsocket"])
        .arg(socket)
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| format!("redis-server: {error}; apt-get install -y redis-server"))?;
    while UnixStream::connect(socket).is_err() && server.try_wait()?.is_none() {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(server)
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, worker, url, name] = arguments.as_slice()
        && worker == "worker"
    {
        return work(url, name);
    }
    // Another count for each run.
    let name = format!("tollgate-example-{}", std::process::id());
    if let Ok(url) = std::env::var("REDIS_URL") {
        return share(&url, &name);
    }
    let socket = std::env::temp_dir().join(&name);
    let mut server = start_server(&socket)?;
    let shared = share(&format!("unix://{}", socket.display()), &name);
    server.kill()?;
    server.wait()?;
    std::fs::remove_file(socket)?;
    shared
}

/// Starts the eight, gives them the word, and adds up what they say.
fn share(url: &str, name: &str) -> Outcome<()> {
    let mut workers = Vec::new();
    for _ in 0..PROCESSES {
        let mut worker = Command::new(std::env::current_exe()?)
            .args(["worker", url, name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let said = BufReader::new(worker.stdout.take().ok_or("no output")?).lines();
        workers.push((worker, said));
    }
    for (_, said) in &mut workers {
        said.next().ok_or("a process ended before it was ready")??;
    }
    for (worker, _) in &mut workers {
        worker.stdin.take().ok_or("no input")?.write_all(b"go\n")?;
    }
    let mut admitted = 0;
    for (number, (mut worker, mut said)) in workers.into_iter().enumerate() {
        let own = said.next().ok_or("a process ended without a word")??;
        worker.wait()?;
        println!("process {number} admitted {own}");
        admitted += own.parse::<u64>()?;
    }
    println!("admitted={admitted} limit={LIMIT} processes={PROCESSES}");
    Ok(())
}
