//! Usage events per second into Redis and PostgreSQL, beside the servers' own tools for much data.
//!
//! `cargo bench --bench pipeline -- --events 100000` starts both servers and takes turns in one run: batches through
//! `RedisStreamSink` and `redis-benchmark -P` with the same payload; batches through `PostgresSink`, which writes
//! events and adds up minutes and hours, and `COPY` by psql of the same events into a table of the same form; and a
//! `Rollup` from the filled stream. Each line ends with the ratio to the tool. What happens when parts are killed, the
//! example `usage_pipeline` shows.

#[allow(dead_code, reason = "shared with examples")]
#[path = "../examples/common/servers.rs"]
mod servers;

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use servers::{Outcome, Server, connect};
use tollgate::{
    clock::{Clock, SystemClock},
    id::{PlanName, TenantId},
    meter::{EventId, UsageEvent},
    redis_support::RedisConnector,
    sink::{PostgresSink, RedisStreamSink, UsageSink},
    usage::Rollup,
};

const ROUNDS: u64 = 5;
const BATCH: usize = 1_000;

/// Events of a hundred tenants and five routes, all of the last ten minutes.
fn events(boot: u64, n: u64) -> Outcome<Vec<UsageEvent>> {
    let now = SystemClock::new().now().wall();
    let tenants = (0..100).map(|n| TenantId::new(format!("tenant-{n}")));
    let tenants = tenants.collect::<Result<Vec<_>, _>>()?;
    let plan = PlanName::new("pro")?;
    let event = |n: u64| {
        let age = Duration::from_millis(n * 7 % 600_000);
        let tenant = tenants[usize::try_from(n % 100).unwrap_or(0)].clone();
        let id = EventId::new(boot, n);
        let mut event = UsageEvent::new(id, now.saturating_sub(age), tenant, plan.clone());
        event.route = format!("/v1/{}", n % 5).into();
        event.latency_micros = 1_000 + n * 31 % 100_000;
        event.response_bytes = 512;
        event.quantities.insert("tokens".into(), n % 900);
        event.request_id = Some(format!("req_{n:026}").into());
        event
    };
    Ok((0..n).map(event).collect())
}

async fn through(sink: &dyn UsageSink, events: &[UsageEvent]) -> Outcome<f64> {
    let started = Instant::now();
    for batch in events.chunks(BATCH) {
        sink.write(batch).await?;
    }
    Ok(rate(events.len(), started))
}

fn rate(n: usize, started: Instant) -> f64 {
    n as f64 / started.elapsed().as_secs_f64()
}

/// XADD of the same payload, on one connection with a hundred commands on their way.
fn redis_benchmark(port: u16, n: usize, payload: &str) -> Outcome<f64> {
    let started = Instant::now();
    let status = Command::new("redis-benchmark")
        .args(["-p", &port.to_string(), "-c", "1", "-P", "100", "-q"])
        .args(["-n", &n.to_string(), "XADD", "bench", "*", "event", payload])
        .stdout(Stdio::null())
        .status()?;
    if !status.success() {
        return Err("redis-benchmark failed".into());
    }
    Ok(rate(n, started))
}

/// COPY of the same events into a table with the same columns and indexes.
fn copy(url: &str, dir: &Path, events: &[UsageEvent]) -> Outcome<f64> {
    let path = dir.join("events");
    let mut file = std::io::BufWriter::new(fs::File::create(&path)?);
    for event in events {
        let day = event.time.to_string();
        let json = serde_json::to_string(event)?.replace('\\', "\\\\");
        writeln!(
            file,
            "{}\t{}\t{}\t{}\t{json}",
            &day[..10],
            event.id,
            event.tenant,
            event.time
        )?;
    }
    file.flush()?;
    let started = Instant::now();
    let copy = format!("\\copy copied FROM '{}'", path.display());
    let status = Command::new("psql")
        .args([url, "-q", "-v", "ON_ERROR_STOP=1", "-c", &copy])
        .status()?;
    if !status.success() {
        return Err("psql failed".into());
    }
    Ok(rate(events.len(), started))
}

/// The middle one of an odd number of rates.
fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn line(name: &str, own: &mut [f64], tool: &str, theirs: &mut [f64]) {
    let (own, theirs) = (median(own), median(theirs));
    println!(
        "{name}: {own:.0}/s; {tool}: {theirs:.0}/s; ratio {:.2}",
        own / theirs
    );
}

async fn run(n: u64) -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let (redis, server) = (
        Server::redis_in_memory(dir.path())?,
        Server::postgres(dir.path())?,
    );
    let url = format!("postgres://tollgate@127.0.0.1:{}/postgres", server.port);
    let postgres = connect(&url).await?;
    postgres.migrate().await?;
    sqlx::query("CREATE TABLE copied (LIKE tollgate.usage_events INCLUDING ALL)")
        .execute(postgres.pool())
        .await?;
    let redis_url = format!("redis://127.0.0.1:{}", redis.port);
    let stream = RedisStreamSink::builder(RedisConnector::single(&redis_url)?);
    let stream = stream.max_entries(100_000_000).connect().await?;
    let tables = PostgresSink::connect(&postgres).await?;
    let totals = PostgresSink::builder(&postgres)
        .totals_only()
        .connect()
        .await?;

    let (mut appended, mut benchmark) = (Vec::new(), Vec::new());
    let (mut written, mut counted, mut copied) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let streamed = events(round, n / ROUNDS)?;
        let payload = serde_json::to_string(&streamed[0])?;
        appended.push(through(&stream, &streamed).await?);
        benchmark.push(redis_benchmark(redis.port, streamed.len(), &payload)?);
        let kept = events(100 + round, n / ROUNDS)?;
        written.push(through(&tables, &kept).await?);
        copied.push(copy(&url, dir.path(), &kept)?);
        counted.push(through(&totals, &events(200 + round, n / ROUNDS)?).await?);
    }
    println!(
        "{n} events of {} bytes, batches of {BATCH}",
        serde_json::to_string(&events(1, 1)?[0])?.len()
    );
    line(
        "RedisStreamSink",
        &mut appended,
        "redis-benchmark -c 1 -P 100 XADD",
        &mut benchmark,
    );
    line(
        "PostgresSink, events and totals",
        &mut written,
        "psql COPY of the events",
        &mut copied,
    );
    line(
        "PostgresSink, totals only",
        &mut counted,
        "psql COPY of the events",
        &mut copied,
    );

    let started = Instant::now();
    let rollup = Rollup::builder(RedisConnector::single(&redis_url)?, tables)
        .connect()
        .await?;
    let all_counted = async {
        loop {
            let read: Result<(i64,), _> =
                sqlx::query_as("SELECT events FROM tollgate.usage_positions")
                    .fetch_one(postgres.pool())
                    .await;
            if matches!(read, Ok((events,)) if u64::try_from(events).is_ok_and(|events| events >= n))
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!(
            "Rollup, one process: {:.0}/s",
            n as f64 / started.elapsed().as_secs_f64()
        );
    };
    rollup.run_until(all_counted).await;
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let named = arguments.windows(2).find(|pair| pair[0] == "--events");
    // Without a number, as by `cargo bench`, only whether it runs.
    run(named.map_or(Ok(10_000), |pair| pair[1].parse())?).await
}
