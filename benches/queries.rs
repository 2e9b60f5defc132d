//! How long questions to a month of usage take.
//!
//! `cargo bench --bench queries -- [DAYS] [TENANTS] [ROUTES] [MINUTES]` fills a PostgreSQL of its own with 30 days of 100
//! tenants with 50 routes each unless said. The tenant that is asked for has called each route in each minute, the others
//! in so many minutes of each day, 24 unless said, and in each hour: a question reads the rows of its own tenant, the
//! others make the tables and indexes large. It prints the median and the longest of 20 answers to each question.

#[path = "../tests/common/postgres.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod postgres;
#[path = "../tests/common/temp.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod temp;

use std::{
    env,
    time::{Duration, Instant},
};

use tollgate::{
    clock::Timestamp,
    id::TenantId,
    postgres_support::Postgres,
    usage::{LatencySketch, PostgresUsage, Step, UsageFilter},
};

use self::postgres::PostgresServer;

/// 2026-01-01T00:00:00Z.
const START: u64 = 1_767_225_600;
const DAY: u64 = 86_400;
const ROUNDS: usize = 20;
const N_SKETCHES: u64 = 64;

async fn run(postgres: &Postgres, sql: &str) -> u64 {
    let started = Instant::now();
    let done = sqlx::query(sql).execute(postgres.pool()).await;
    let rows = done
        .unwrap_or_else(|error| panic!("{sql}: {error}"))
        .rows_affected();
    let what = sql.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
    println!("  {what}: {rows} rows, {:.1?}", started.elapsed());
    rows
}

/// Latencies of some calls, around twenty milliseconds with a tail of seconds.
fn sketch(seed: u64) -> LatencySketch {
    let mut sketch = LatencySketch::new();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for _ in 0..20 + seed {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let tail = (state % 100) / 97 * 100 + 1;
        sketch.record((5_000 + state % 30_000) * tail);
    }
    sketch
}

async fn fill(postgres: &Postgres, days: u64, tenants: u64, routes: u64, minutes: u64) {
    run(
        postgres,
        &format!(
            "INSERT INTO tollgate.usage_series (digest, tenant, environment, plan, api, method, route, country)
             SELECT sha256(convert_to(t || '/' || r, 'UTF8')), 'tenant-' || t, 'live', 'pro', 'default', 'GET',
                 '/v1/route-' || r, (ARRAY['DE', 'FR', 'US', 'JP', NULL])[1 + r % 5]
             FROM generate_series(0, {tenants} - 1) AS t, generate_series(0, {routes} - 1) AS r"
        ),
    )
    .await;
    run(
        postgres,
        "CREATE TABLE sketches (n int PRIMARY KEY, latency bytea)",
    )
    .await;
    for n in 0..N_SKETCHES {
        sqlx::query("INSERT INTO sketches VALUES ($1, $2)")
            .bind(i32::try_from(n).expect("a small number"))
            .bind(sketch(n).to_bytes())
            .execute(postgres.pool())
            .await
            .expect("a sketch");
    }
    let rows = |table: &str, calls: u64, step: &str, every: u64, of: &str| {
        format!(
            "INSERT INTO tollgate.{table}
             SELECT s.id, start, {calls}, 1, 1, 0, 0, 0, s.id % 7, 0, {calls} - 2, 0, 1, 1, 1000, 100000, 5000000,
                 k.latency
             FROM generate_series(to_timestamp({START}), to_timestamp({START} + {days} * {DAY} - 1),
                 interval '1 {step}' * {every}) AS start,
                 tollgate.usage_series AS s
             JOIN sketches AS k ON true
             WHERE k.n = (s.id + extract(epoch FROM start)::bigint / 60) % {N_SKETCHES} AND s.tenant {of} 'tenant-0'"
        )
    };
    run(postgres, &rows("usage_minutes", 30, "minute", 1, "=")).await;
    run(
        postgres,
        &rows("usage_minutes", 30, "minute", 1_440 / minutes, "<>"),
    )
    .await;
    run(postgres, &rows("usage_hours", 1_800, "hour", 1, "=")).await;
    run(postgres, &rows("usage_hours", 720, "hour", 1, "<>")).await;
    for table in ["usage_minutes", "usage_hours", "usage_series"] {
        run(postgres, &format!("VACUUM ANALYZE tollgate.{table}")).await;
    }
}

async fn measure<T>(name: &str, mut ask: impl AsyncFnMut() -> T) {
    ask().await;
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let started = Instant::now();
        std::hint::black_box(ask().await);
        times.push(started.elapsed());
    }
    times.sort_unstable();
    let (median, longest) = (times[ROUNDS / 2], times[ROUNDS - 1]);
    println!("{name}: median {median:.1?}, longest {longest:.1?}");
}

#[tokio::main]
async fn main() {
    // Cargo adds `--bench`.
    let numbers: Vec<u64> = env::args()
        .skip(1)
        .filter_map(|it| it.parse().ok())
        .collect();
    let number = |place: usize, default| numbers.get(place).copied().unwrap_or(default);
    let (days, tenants) = (number(0, 30), number(1, 100));
    let (routes, minutes) = (number(2, 50), number(3, 24));
    let server = PostgresServer::with(&["shared_buffers=1GB", "max_wal_size=8GB", "jit=off"]);
    let postgres = server.migrated("api").await;
    println!("{days} days, {tenants} tenants, {routes} routes");
    fill(&postgres, days, tenants, routes, minutes).await;

    let at = |seconds: u64| Timestamp::from_unix_seconds(START + seconds);
    let end = days * DAY;
    let usage = PostgresUsage::new(&postgres)
        .deadline(Duration::from_secs(60))
        .expect("a deadline");
    let tenant = TenantId::new("tenant-0").expect("an id");
    let of = |from: u64, until: u64| {
        UsageFilter::new(at(from), at(until))
            .tenant(tenant.clone())
            .api("default")
    };
    let whole = of(0, end);
    let ragged = of(13 * 3_600 + 17 * 60, end - 7 * 3_600 - 11 * 60);
    let totals = async |filter: &UsageFilter| usage.totals(filter).await.expect("totals");
    measure("totals of a tenant, days not made", async || {
        totals(&whole).await
    })
    .await;
    let started = Instant::now();
    let made = usage.make_days(at(end), u32::MAX).await.expect("made").made;
    println!("{made} days made in {:.1?}", started.elapsed());
    run(&postgres, "VACUUM ANALYZE tollgate.usage_days").await;

    measure("totals of a tenant, error rate, p50 and p99", async || {
        totals(&whole).await
    })
    .await;
    measure("the same between two odd minutes", async || {
        totals(&ragged).await
    })
    .await;
    let hour = of(end - 3_600, end);
    measure("totals of its last hour", async || totals(&hour).await).await;
    measure("its ten top routes, odd minutes", async || {
        usage.top_routes(&ragged, 10).await.expect("routes")
    })
    .await;
    measure("its countries, odd minutes", async || {
        usage.countries(&ragged).await.expect("countries")
    })
    .await;
    measure("its days as a curve", async || {
        usage.curve(&whole, Step::Day).await.expect("a curve")
    })
    .await;
    let day = of(end - DAY, end);
    measure("requests per minute of its last hour", async || {
        usage.curve(&hour, Step::Minute).await.expect("a curve")
    })
    .await;
    measure("requests per hour of its last day", async || {
        usage.curve(&day, Step::Hour).await.expect("a curve")
    })
    .await;
    measure("requests per hour of its whole time", async || {
        usage.curve(&whole, Step::Hour).await.expect("a curve")
    })
    .await;
    let last_half = UsageFilter::new(at(end / 2), at(end));
    measure("trends of all tenants", async || {
        usage.trends(&last_half).await.expect("trends")
    })
    .await;
    let all = UsageFilter::new(at(0), at(end));
    measure("deprecated use of all tenants", async || {
        usage.deprecated(&all).await.expect("a report")
    })
    .await;
}
