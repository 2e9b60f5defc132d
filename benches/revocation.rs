//! How long a revocation takes to be seen by another process, over Redis.
//!
//! `cargo bench --bench revocation -- [REVOCATIONS]` starts a `redis-server` and a second process, which has each key in its
//! cache for a day; revokes 1,000 keys unless said, one after the other; and prints how long after the start and after
//! the end of each revocation the other process first refused the key. It asks without a pause, from memory.

use std::{
    env,
    error::Error,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use hdrhistogram::Histogram;
use http::Request;
use tollgate::{
    auth::{Extractor, KeyStore, RedisKeyStore},
    clock::{Clock as _, SystemClock},
    head::RequestHead,
    identity::{Attempt, Authenticate as _, CacheSettings, KeyAuthenticator, Keys, NewKey},
    plan::{Plan, PlanCatalog},
    redis_support::{Redis, RedisConnector},
    tenant::{RedisTenantStore, TenantStore},
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const PATIENCE: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

struct Process {
    admin: Keys,
    auth: KeyAuthenticator,
}

async fn process(url: &str) -> Outcome<Process> {
    let connector = RedisConnector::single(url)?
        .connect_timeout(PATIENCE)
        .response_timeout(PATIENCE);
    let redis = Redis::builder(connector).connect().await?;
    let keys: Arc<dyn KeyStore> = Arc::new(RedisKeyStore::new(&redis));
    let tenants: Arc<dyn TenantStore> = Arc::new(RedisTenantStore::new(&redis));
    let catalog = PlanCatalog::new([Plan::new("free")])?;
    let (of_keys, of_tenants) = (Arc::clone(&keys), Arc::clone(&tenants));
    let admin = Keys::new(of_keys, of_tenants, catalog.clone(), SystemClock::shared());
    let auth = KeyAuthenticator::builder(keys, tenants, catalog)
        .cache(CacheSettings::new().ttl(DAY))
        .build()?;
    Ok(Process { admin, auth })
}

async fn works(auth: &KeyAuthenticator, clock: &SystemClock, key: &str) -> Outcome<bool> {
    let request = Request::get("/").header("x-api-key", key).body(())?;
    let head = RequestHead::from(&request);
    let extractor = Extractor::default();
    let credential = extractor
        .extract(&head)
        .map_err(|refusal| format!("{refusal:?}"))?;
    let attempt = auth.authenticate(credential.as_ref(), &head, clock.now());
    Ok(match attempt {
        Attempt::Done(result) => result.is_ok(),
        Attempt::Lookup(trip) | Attempt::Refresh(trip) => trip.await.is_ok(),
        _ => return Err("not a key".into()),
    })
}

fn micros_now() -> Outcome<u64> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(u64::try_from(since.as_micros())?)
}

/// The other process: takes a key into its cache, says so, and says when it refused it first.
#[tokio::main]
async fn work(url: &str) -> Outcome<()> {
    let Process { auth, .. } = process(url).await?;
    let clock = SystemClock::new();
    for key in std::io::stdin().lock().lines() {
        let key = key?;
        if !works(&auth, &clock, &key).await? {
            return Err("a new key does not work".into());
        }
        println!("works");
        while works(&auth, &clock, &key).await? {
            tokio::task::yield_now().await;
        }
        println!("{}", micros_now()?);
    }
    Ok(())
}

fn start_server() -> Outcome<(Child, String)> {
    let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    let server = Command::new("redis-server")
        .args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
        ])
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| format!("redis-server: {error}; apt-get install -y redis-server"))?;
    let deadline = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > deadline {
            return Err("redis-server does not answer".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok((server, format!("redis://127.0.0.1:{port}")))
}

struct Other {
    child: Child,
    requests: ChildStdin,
    answers: std::io::Lines<BufReader<ChildStdout>>,
}

impl Other {
    fn start(url: &str) -> Outcome<Self> {
        let mut child = Command::new(env::current_exe()?)
            .args(["worker", url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let requests = child.stdin.take().ok_or("no input")?;
        let answers = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        Ok(Self {
            child,
            requests,
            answers,
        })
    }

    fn answer(&mut self) -> Outcome<String> {
        Ok(self.answers.next().ok_or("the other process has ended")??)
    }
}

fn print(what: &str, times: &Histogram<u64>) {
    let at = |quantile| Duration::from_micros(times.value_at_quantile(quantile));
    println!(
        "{what}: p50={:?} p99={:?} max={:?}",
        at(0.5),
        at(0.99),
        Duration::from_micros(times.max())
    );
}

#[tokio::main]
async fn revoke(url: &str, n_revocations: u64) -> Outcome<()> {
    let Process { admin, .. } = process(url).await?;
    let mut other = Other::start(url)?;
    let mut from_start = Histogram::<u64>::new(3)?;
    let mut from_end = Histogram::<u64>::new(3)?;
    for _ in 0..n_revocations {
        let issued = admin.issue(NewKey::for_tenant("acme").plan("free")).await?;
        writeln!(other.requests, "{}", issued.key.expose())?;
        if other.answer()? != "works" {
            return Err("a new key does not work".into());
        }
        let start = micros_now()?;
        admin.revoke(&issued.record.id).await?;
        let end = micros_now()?;
        let seen: u64 = other.answer()?.parse()?;
        from_start.record(seen.saturating_sub(start).max(1))?;
        from_end.record(seen.saturating_sub(end).max(1))?;
    }
    drop(other.requests);
    other.child.wait()?;
    println!("{n_revocations} revocations seen by another process");
    print("after the call began", &from_start);
    print("after the call ended", &from_end);
    Ok(())
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = env::args().collect();
    if let [_, worker, url] = arguments.as_slice()
        && worker == "worker"
    {
        return work(url);
    }
    // Cargo adds `--bench`.
    let n_revocations = arguments
        .iter()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(1_000);
    let (mut server, url) = start_server()?;
    let revoked = revoke(&url, n_revocations);
    server.kill()?;
    server.wait()?;
    revoked
}
