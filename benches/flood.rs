//! Memory and good callers under a flood of invented keys.
//!
//! `cargo bench --bench flood -- [KEYS]` sends well-formed keys that nobody issued through a whole gate in this
//! process, 1,000,000 in each of three ways unless said, and prints how much its process has grown and how long
//! good keys took before, amid and after the flood. Usage is drained while it runs. The ways:
//!
//! 1. Stores that answer at once, without the limit of failed attempts: every key is looked up.
//! 2. Stores behind a trip, without that limit: every key is fetched and remembered as one that does not work.
//! 3. As a gate is by default, each key from an address of its own: every failure is counted for a network.

use std::{
    convert::Infallible,
    env, fs,
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tollgate::{
    Tollgate, TollgateBuilder,
    auth::{KeyDigest, KeyFormat, KeyListener, KeyRecord, KeyStore, KeyStoreError, MemoryKeyStore},
    clock::Timestamp,
    head::PeerAddress,
    id::{Environment, KeyId, TenantId},
    identity::NewKey,
    limit::{Quota, Rate},
    meter::{Recorder, UsageEvent},
    plan::Plan,
    sink::{Filter, MemorySink},
};
use tower::{Layer, Service, service_fn};

const GOOD_KEYS: usize = 1_000;
const GOOD_CALLS: usize = 20_000;
/// Between two of these the good keys call once each, so that they are in use as keys are.
const KEYS_BETWEEN: u64 = 10_000;

type Body = Full<bytes::Bytes>;

/// Keys in memory, behind a trip.
#[derive(Debug)]
struct FarKeys(MemoryKeyStore);

#[async_trait]
impl KeyStore for FarKeys {
    async fn find(&self, digest: &KeyDigest) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
        tokio::task::yield_now().await;
        self.0.find(digest).await
    }

    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, KeyStoreError> {
        self.0.find_by_id(id).await
    }

    async fn list(&self, tenant: &TenantId) -> Result<Vec<Arc<KeyRecord>>, KeyStoreError> {
        self.0.list(tenant).await
    }

    async fn create(
        &self,
        digest: KeyDigest,
        record: KeyRecord,
    ) -> Result<Arc<KeyRecord>, KeyStoreError> {
        self.0.create(digest, record).await
    }

    async fn rotate(
        &self,
        old: &KeyId,
        old_expires_at: Timestamp,
        digest: KeyDigest,
        record: KeyRecord,
        now: Timestamp,
    ) -> Result<Arc<KeyRecord>, KeyStoreError> {
        self.0
            .rotate(old, old_expires_at, digest, record, now)
            .await
    }

    async fn revoke(&self, id: &KeyId, at: Timestamp) -> Result<Arc<KeyRecord>, KeyStoreError> {
        self.0.revoke(id, at).await
    }

    fn subscribe(&self, listener: Weak<dyn KeyListener>) {
        self.0.subscribe(listener);
    }
}

async fn hello(_: Request<Body>) -> Result<Response<Body>, Infallible> {
    Ok(Response::new(Full::from("hello")))
}

/// Memory of the process that is in use, where the system tells.
fn resident_bytes() -> i64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<i64>().ok());
    kib.unwrap_or_default() * 1024
}

fn mebibytes(bytes: i64) -> String {
    format!("{:+.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn generous() -> Plan {
    Plan::new("pro")
        .rule(Rate::per_second(1_000_000_000))
        .rule(Quota::monthly(1 << 50))
}

/// The 99th hundredth of the good calls' times.
fn p99(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() * 99 / 100]
}

/// Sends one request and reads the answer to its end.
async fn call<S, B>(service: &mut S, key: &str, peer: SocketAddr) -> StatusCode
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body<Data = bytes::Bytes, Error: std::fmt::Debug>,
{
    let request = Request::get("/").header("x-api-key", key);
    let request = request.extension(PeerAddress(peer)).body(Full::default());
    let Ok(response) = service.call(request.expect("a legal request")).await;
    let status = response.status();
    response.into_body().collect().await.expect("a whole body");
    status
}

/// Where good callers call from.
fn home() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(192, 0, 2, 7), 4711))
}

/// `n` calls with good keys, and how long each took. Their usage is written every [`GOOD_KEYS`] calls, so that its
/// queue leaves no memory for the flood to hide in.
async fn good_calls<S, B>(
    service: &mut S,
    usage: &Recorder,
    keys: &[String],
    n: usize,
) -> Vec<Duration>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body<Data = bytes::Bytes, Error: std::fmt::Debug>,
{
    let mut times = Vec::with_capacity(n);
    for (i, key) in keys.iter().cycle().take(n).enumerate() {
        if i % GOOD_KEYS == 0 {
            usage.flush().await;
        }
        let started = Instant::now();
        assert_eq!(call(service, key, home()).await, StatusCode::OK);
        times.push(started.elapsed());
    }
    times
}

async fn flood(way: &str, n: u64, setup: impl FnOnce(TollgateBuilder) -> TollgateBuilder) {
    let builder = Tollgate::builder()
        .plans([generous()])
        .usage(Filter::new(MemorySink::new(), |_: &UsageEvent| false));
    let gate = setup(builder).build().expect("a legal gate");
    let mut keys = Vec::new();
    for i in 0..GOOD_KEYS {
        let new = NewKey::for_tenant(format!("tenant-{i}")).plan("pro");
        let issued = gate.keys().issue(new).await.expect("a memory store");
        keys.push(issued.key.expose().to_owned());
    }
    let mut service = gate.layer().layer(service_fn(hello));
    // What is made once is made by the first calls.
    good_calls(&mut service, gate.usage(), &keys, GOOD_CALLS).await;
    let mut before = good_calls(&mut service, gate.usage(), &keys, GOOD_CALLS).await;
    gate.usage().flush().await;
    let format = KeyFormat::default();
    let resident = resident_bytes();
    let (mut amid, mut spent) = (Vec::new(), Duration::ZERO);
    for first in (0..n).step_by(KEYS_BETWEEN as usize) {
        let started = Instant::now();
        for i in first..n.min(first + KEYS_BETWEEN) {
            let key = format.generate(Environment::Live).expect("random bytes");
            // An odd factor visits every address once before it comes back to the first.
            let address = Ipv4Addr::from((i as u32).wrapping_mul(2_654_435_761));
            let peer = SocketAddr::from((address, 4711));
            let status = call(&mut service, key.expose(), peer).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED);
        }
        spent += started.elapsed();
        amid.append(&mut good_calls(&mut service, gate.usage(), &keys, GOOD_KEYS).await);
        amid.truncate(GOOD_CALLS);
        gate.usage().flush().await;
    }
    let each = spent / u32::try_from(n).unwrap_or(u32::MAX);
    let grown = resident_bytes() - resident;
    let mut after = good_calls(&mut service, gate.usage(), &keys, GOOD_CALLS).await;
    let counters = gate.usage().counters();
    assert!(counters.is_balanced() && counters.dropped() == 0);
    assert_eq!(counters.unidentified(401), n);
    println!(
        "| {way} | {n} | {} | {:.1?} | {:.1?} | {:.1?} | {each:.1?} |",
        mebibytes(grown),
        p99(&mut before),
        p99(&mut amid),
        p99(&mut after),
    );
}

/// One way of the flood, in a process of its own: memory that one way has given back would hide what the next takes.
async fn run(way: &str, n: u64) {
    let unlimited = |builder: TollgateBuilder| builder.failure_limit(None);
    let far = |builder: TollgateBuilder| builder.keys(FarKeys(MemoryKeyStore::new()));
    match way {
        AT_HAND => flood(way, n, unlimited).await,
        BEHIND_A_TRIP => flood(way, n, |builder| unlimited(far(builder))).await,
        _ => flood(way, n, far).await,
    }
}

const AT_HAND: &str = "stores at hand, no limit of failures";
const BEHIND_A_TRIP: &str = "stores behind a trip, no limit of failures";
const LIMITED: &str = "stores behind a trip, each key from an address of its own";

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = env::args().skip(1).filter(|it| it != "--bench").collect();
    let n = arguments.first().and_then(|it| it.parse().ok());
    let n = n.unwrap_or(1_000_000);
    if let Some(way) = arguments.get(1) {
        return run(way, n).await;
    }
    println!(
        "| invented keys | how many | memory grown by | p99 of good keys before | amid | after | each invented key |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for way in [AT_HAND, BEHIND_A_TRIP, LIMITED] {
        let this = env::current_exe().expect("a program");
        let status = Command::new(this).args([&n.to_string(), way]).status();
        assert!(status.expect("it starts").success(), "{way}");
    }
}
