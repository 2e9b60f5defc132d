// cargo run --example usage_pipeline -- --seed 1 --events 6000 --kills 10
//! From a gate through a Redis Stream and a rollup to PostgreSQL, while all of its parts are killed on the way.
//!
//! It starts both servers, a process that meters and two that count, and then takes turns at random: kill -9 of one of
//! the processes, a crash of one of the servers, a reset of all connections. Batches are delivered twice now and then.
//! At the end it compares the tables with the ledger of what was promised; the last line is
//! `metering seed=1 events=6000 kills=10 lost=0 doubled=0`.

mod gate;
mod proxy;
#[path = "../common/servers.rs"]
mod servers;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use proxy::Proxy;
use servers::{Outcome, Server};
use tollgate::{
    postgres_support::Postgres, redis_support::RedisConnector, sink::PostgresSink,
    usage::LatencySketch, usage::Rollup,
};

/// What is killed, and by which processes it is used.
struct Parts {
    dir: PathBuf,
    n_events: usize,
    redis: Server,
    postgres: Server,
    proxies: [Proxy; 2],
    gate: Child,
    rollups: [Child; 2],
}

fn role(arguments: &[&str]) -> std::io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
}

impl Parts {
    fn start(
        dir: &Path,
        n_events: usize,
        redis: Server,
        postgres: Server,
        proxies: [Proxy; 2],
    ) -> Outcome<Self> {
        let [gate, first, second] =
            ["gate", "rollup-1", "rollup-2"].map(|name| process(name, dir, n_events, &proxies));
        Ok(Self {
            dir: dir.to_owned(),
            n_events,
            redis,
            postgres,
            gate: gate?,
            rollups: [first?, second?],
            proxies,
        })
    }

    /// Kills one part, and starts it again.
    fn kill(&mut self, turn: u64) -> Outcome<&'static str> {
        let again = |name: &str| process(name, &self.dir, self.n_events, &self.proxies);
        Ok(match turn % 10 {
            0..3 => {
                self.gate.kill()?;
                self.gate.wait()?;
                self.gate = again("gate")?;
                "kill -9 gate"
            }
            turn @ 3..7 => {
                let one = usize::from(turn % 2 == 0);
                self.rollups[one].kill()?;
                self.rollups[one].wait()?;
                self.rollups[one] = again(["rollup-1", "rollup-2"][one])?;
                "kill -9 rollup"
            }
            7 => {
                self.redis.crash()?;
                self.redis.start_again()?;
                "kill -9 redis"
            }
            8 => {
                self.postgres.crash()?;
                self.postgres.start_again()?;
                "crash postgres"
            }
            _ => {
                self.proxies.iter().for_each(Proxy::reset);
                "reset connections"
            }
        })
    }

    /// Whether the process that meters has ended, as it does when all is promised.
    fn is_metered(&mut self) -> Outcome<bool> {
        match self.gate.try_wait()? {
            Some(status) if !status.success() => Err("the process that meters failed".into()),
            status => Ok(status.is_some()),
        }
    }

    fn n_promised(&self) -> u64 {
        fs::metadata(gate::ledger(&self.dir)).map_or(0, |ledger| ledger.len() / gate::LINE)
    }
}

/// One of the three processes: this program in another role.
fn process(
    name: &str,
    dir: &Path,
    n_events: usize,
    proxies: &[Proxy; 2],
) -> std::io::Result<Child> {
    let [redis, postgres] = proxies;
    let redis = format!("redis://127.0.0.1:{}", redis.port);
    let postgres = format!("postgres://tollgate@127.0.0.1:{}/postgres", postgres.port);
    match name {
        "gate" => role(&[
            "gate",
            &redis,
            &dir.display().to_string(),
            &n_events.to_string(),
        ]),
        name => role(&["rollup", &redis, &postgres, name]),
    }
}

/// Counts until its input ends.
async fn roll_up(redis: &str, postgres: &str, name: &str) -> Outcome<()> {
    let sink = PostgresSink::connect(&connect(postgres).await?).await?;
    let connector = RedisConnector::single(redis)?.connect_timeout(Duration::from_secs(5));
    let builder = Rollup::builder(connector, sink)
        .consumer(name)
        .claim_after(Duration::from_secs(5));
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    builder
        .connect()
        .await?
        .run_until(async { drop(ended.await) })
        .await;
    Ok(())
}

/// A server that was just started may not take connections yet.
async fn connect(url: &str) -> Outcome<Postgres> {
    for _ in 0..100 {
        if let Ok(postgres) = Postgres::connect(url).await {
            return Ok(postgres);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(Postgres::connect(url).await?)
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["gate", redis, dir, n] => {
            retry(async || gate::run(redis, Path::new(dir), n.parse()?).await).await
        }
        ["rollup", redis, postgres, name] => {
            retry(async || roll_up(redis, postgres, name).await).await
        }
        options => {
            let named = |name: &str, default: u64| -> Outcome<u64> {
                let value = options.windows(2).find(|pair| pair[0] == name);
                Ok(value.map_or(Ok(default), |pair| pair[1].parse())?)
            };
            fault(
                named("--seed", 1)?,
                named("--events", 6_000)?,
                named("--kills", 10)?,
            )
            .await
        }
    }
}

/// A process that starts while a server is down tries again.
async fn retry(run: impl AsyncFn() -> Outcome<()>) -> Outcome<()> {
    while let Err(error) = run().await {
        if !error.to_string().contains("reached") {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn fault(seed: u64, n_events: u64, n_kills: u64) -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let (redis, postgres) = (Server::redis(dir.path())?, Server::postgres(dir.path())?);
    let url = format!("postgres://tollgate@127.0.0.1:{}/postgres", postgres.port);
    connect(&url).await?.migrate().await?;
    let proxies = [
        Proxy::before(redis.port).await?,
        Proxy::before(postgres.port).await?,
    ];
    let mut parts = Parts::start(
        dir.path(),
        usize::try_from(n_events)?,
        redis,
        postgres,
        proxies,
    )?;

    let (mut random, mut kills) = (seed, BTreeMap::new());
    for turn in 1..=n_kills {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // At any moment of the turn.
        let slot = n_events / (n_kills + 1);
        let moment = slot * turn - (random >> 33) % slot.max(1);
        while parts.n_promised() < moment {
            parts.is_metered()?;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // Ten turns kill each part.
        *kills.entry(parts.kill(seed + 7 * turn)?).or_insert(0) += 1;
    }
    let metered = Instant::now();
    while !parts.is_metered()? {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (promised, drained) = (parts.n_promised(), Instant::now());
    let database = connect(&url).await?;
    let deadline = Instant::now() + Duration::from_secs(600);
    while count(&database, "SELECT count(*) FROM tollgate.usage_events").await? < promised
        && Instant::now() < deadline
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!(
        "{kills:?}, the last {:?} before all was metered",
        drained - metered
    );
    println!("the backlog took {:?} to drain", drained.elapsed());
    for mut rollup in parts.rollups {
        drop(rollup.stdin.take());
        rollup.wait()?;
    }
    report(&database).await?;
    let (lost, doubled) = compare(&database, &gate::ledger(dir.path())).await?;
    println!(
        "metering seed={seed} events={promised} kills={n_kills} lost={lost} doubled={doubled}"
    );
    Ok(())
}

async fn count(database: &Postgres, question: &str) -> Outcome<u64> {
    let (n,): (i64,) = sqlx::query_as(question).fetch_one(database.pool()).await?;
    Ok(u64::try_from(n)?)
}

/// What the tables say of each tenant.
async fn report(database: &Postgres) -> Outcome<()> {
    let hours: Vec<(String, i64, i64, Vec<u8>)> = sqlx::query_as(
        "SELECT s.tenant, h.calls, q.amount::bigint, h.latency FROM tollgate.usage_hours h
         JOIN tollgate.usage_series s ON s.id = h.series
         JOIN tollgate.usage_hour_quantities q ON (q.series, q.start) = (h.series, h.start) ORDER BY 1, h.start",
    )
    .fetch_all(database.pool())
    .await?;
    for (tenant, calls, tokens, latency) in hours {
        let p99 = LatencySketch::from_bytes(&latency)?
            .quantile(9_900)
            .unwrap_or(0);
        println!("{tenant}: {calls} calls, {tokens} tokens, 99 % of the calls within {p99} us");
    }
    Ok(())
}

/// Promised events that are not there, and what the totals have too much.
async fn compare(database: &Postgres, ledger: &Path) -> Outcome<(u64, u64)> {
    let ids: Vec<(String,)> =
        sqlx::query_as("SELECT replace(id::text, '-', '') FROM tollgate.usage_events")
            .fetch_all(database.pool())
            .await?;
    let mut stored = BTreeMap::new();
    for (id,) in ids {
        *stored.entry(id).or_insert(0_u64) += 1;
    }
    let ledger = fs::read_to_string(ledger)?;
    let lost = ledger
        .lines()
        .filter(|id| !stored.contains_key(*id))
        .count() as u64;
    let mut doubled: u64 = stored.values().map(|n| n - 1).sum();
    for table in ["minute", "hour"] {
        let calls = count(
            database,
            &format!("SELECT sum(calls)::bigint FROM tollgate.usage_{table}s"),
        )
        .await?;
        let tokens = format!("SELECT sum(amount)::bigint FROM tollgate.usage_{table}_quantities");
        let tokens = count(database, &tokens).await?;
        // Too few would be as wrong as too many.
        doubled += calls.abs_diff(stored.len() as u64) + tokens.abs_diff(12 * stored.len() as u64);
    }
    Ok((lost, doubled))
}
