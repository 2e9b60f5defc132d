//! Who is measured, and how a slice of each is run.

use std::{
    fs,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use deadpool_redis::{Config, Pool, Runtime as PoolRuntime};
use redis::{Value, aio::MultiplexedConnection};
use tokio::runtime::Runtime;
use tollgate::{
    clock::{Clock, SystemClock},
    id::TenantId,
    limit::{
        Cost, Lease, LimitCall, LimitSet, LimitStore, Owner, Quota, Rate, RedisLimits, Rule,
        RuleSet, ScopeValues,
    },
    redis_support::RedisConnector,
};

use super::{Round, common::redis::RedisServer, raw};

const TASKS: usize = 64;
const SLICE: Duration = Duration::from_millis(333);
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a task looks at the time.
const CALLS_BETWEEN: u64 = 16;
const RUNS_OF_A_BENCHMARK: u64 = 30_000;
const POOLED: usize = 64;

/// What one slice of a contestant has come to. CPU is in microseconds for each decision.
pub(crate) struct Measured {
    pub(crate) per_second: f64,
    pub(crate) own_cpu: f64,
    pub(crate) server_cpu: f64,
    /// Script runs, and calls in them, for each decision.
    pub(crate) scripts: f64,
    pub(crate) trips: f64,
}

pub(crate) struct Contestants<'a> {
    server: &'a RedisServer,
    runtime: Runtime,
    exact: RedisLimits,
    leased_10: RedisLimits,
    leased_100: RedisLimits,
    multiplexed: MultiplexedConnection,
    pool: Pool,
    digests: (String, String),
}

fn set<R: Into<Rule>>(tenant: &str, rules: impl IntoIterator<Item = R>) -> Arc<LimitSet> {
    let owner = Owner::tenant(TenantId::new(tenant).expect("a name"));
    let rules = RuleSet::compile(rules).expect("legal rules");
    Arc::new(LimitSet::new(owner, rules))
}

/// Buckets that never run out, with bursts of which an eighth is more than any slice.
fn rates(n: usize) -> impl Iterator<Item = Rule> {
    (0..n).map(|number| {
        Rate::per_second(1_000_000)
            .burst(1_000_000)
            .named(format!("rate-{number}"))
    })
}

async fn connect(server: &RedisServer, lease: Option<u64>) -> RedisLimits {
    let connector = RedisConnector::single(server.url()).expect("a URL");
    let mut builder = RedisLimits::builder(
        connector
            .connect_timeout(PATIENCE)
            .response_timeout(PATIENCE),
    );
    if let Some(units) = lease {
        builder = builder.leased(Lease::of(units));
    }
    builder.connect().await.expect("a server")
}

/// The decisions that a store was asked for by script.
fn trips(server: &RedisServer) -> f64 {
    // Each decision and each settlement reads its hash once.
    let stats: String = server.query(&["INFO", "commandstats"]);
    let line = stats
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_hmget:calls="));
    let calls = line.and_then(|line| line.split(',').next()?.parse().ok());
    calls.unwrap_or_default()
}

/// The CPU of this process so far, in microseconds.
fn own_cpu() -> f64 {
    let tasks = fs::read_dir("/proc/self/task").expect("Linux");
    let nanoseconds = tasks.flatten().filter_map(|task| {
        let times = fs::read_to_string(task.path().join("schedstat")).ok()?;
        times.split(' ').next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() / 1e3
}

async fn decide(limits: &Arc<RedisLimits>, set: &Arc<LimitSet>, clock: &SystemClock) -> bool {
    let (scopes, cost) = (ScopeValues::default(), Cost::default());
    let call = LimitCall::new(set, &scopes, &cost, clock.now());
    let answer = match limits.try_decide(&call) {
        Some(answer) => answer,
        None => Arc::clone(limits).decide(call.to_owned()).await,
    };
    answer.expect("a decision").is_admitted()
}

fn command(digest: &str, argument: &[u8], task: usize) -> redis::Cmd {
    let mut command = redis::cmd("EVALSHA");
    let key = format!("tg:1:{{l.raw-{task}}}:t");
    command.arg(digest).arg(1).arg(key).arg(argument);
    command
}

impl<'a> Contestants<'a> {
    pub(crate) fn of(server: &'a RedisServer) -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let config = Config {
            pool: Some(deadpool_redis::PoolConfig::new(POOLED)),
            ..Config::from_url(server.url())
        };
        let (exact, leased_10, leased_100, multiplexed, pool) = runtime.block_on(async {
            let client = redis::Client::open(server.url()).expect("a URL");
            let multiplexed = client.get_multiplexed_async_connection().await;
            (
                connect(server, None).await,
                connect(server, Some(10)).await,
                connect(server, Some(100)).await,
                multiplexed.expect("a connection"),
                config
                    .create_pool(Some(PoolRuntime::Tokio1))
                    .expect("a pool"),
            )
        });
        Self {
            server,
            runtime,
            exact,
            leased_10,
            leased_100,
            multiplexed,
            pool,
            digests: raw::load(server),
        }
    }

    /// A limit of two admits two calls and refuses the third, so that nobody is measured doing nothing.
    pub(crate) fn all_refuse(&self) {
        let clock = SystemClock::new();
        for (name, limits) in [
            ("exact", &self.exact),
            ("leased-10", &self.leased_10),
            ("leased-100", &self.leased_100),
        ] {
            let (limits, set) = (Arc::new(limits.clone()), set(name, [Quota::monthly(2)]));
            let admitted: Vec<bool> = self.runtime.block_on(async {
                let mut admitted = Vec::new();
                for _ in 0..3 {
                    admitted.push(decide(&limits, &set, &clock).await);
                }
                admitted
            });
            assert_eq!(admitted, [true, true, false], "{name}");
        }
        let (argument, digest) = (raw::argument(1), &self.digests.0);
        let mut connection = self.multiplexed.clone();
        let answer: Value = self
            .runtime
            .block_on(command(digest, &argument, 0).query_async(&mut connection))
            .expect("an answer");
        // The time, seven values of which the first says that the call was admitted and the second that it passed.
        let Value::Array(values) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(values[1..4], [Value::Int(6), Value::Int(0), Value::Int(1)]);
    }

    /// Runs 64 tasks until the slice is over, after a shorter one in which slices of limits grow to their size.
    fn slice<F, T>(&self, task: F) -> Measured
    where
        F: Fn(usize, Instant, Arc<AtomicU64>) -> T,
        T: Future<Output = ()> + Send + 'static,
    {
        self.run(&task, SLICE / 3);
        self.run(&task, SLICE)
    }

    fn run<F, T>(&self, task: &F, time: Duration) -> Measured
    where
        F: Fn(usize, Instant, Arc<AtomicU64>) -> T,
        T: Future<Output = ()> + Send + 'static,
    {
        let n_decided = Arc::new(AtomicU64::new(0));
        let (scripts, n_trips) = (raw::n_scripts(self.server), trips(self.server));
        let (cpu, server_cpu) = (own_cpu(), raw::server_cpu(self.server));
        let started = Instant::now();
        self.runtime.block_on(async {
            let tasks: Vec<_> = (0..TASKS)
                .map(|number| tokio::spawn(task(number, started + time, Arc::clone(&n_decided))))
                .collect();
            for task in tasks {
                task.await.expect("no panic");
            }
        });
        let seconds = started.elapsed().as_secs_f64();
        let n = n_decided.load(Ordering::Relaxed) as f64;
        Measured {
            per_second: n / seconds,
            own_cpu: (own_cpu() - cpu) / n,
            server_cpu: (raw::server_cpu(self.server) - server_cpu) / n,
            scripts: (raw::n_scripts(self.server) - scripts) / n,
            trips: (trips(self.server) - n_trips) / n,
        }
    }

    fn limits(&self, limits: &RedisLimits, name: &str, n_rules: usize) -> Measured {
        let limits = Arc::new(limits.clone());
        let clock = Arc::new(SystemClock::new());
        self.slice(|number, until, n_decided| {
            let set = set(&format!("{name}-{n_rules}-{number}"), rates(n_rules));
            let (limits, clock) = (Arc::clone(&limits), Arc::clone(&clock));
            async move {
                let mut n = 0;
                while n % CALLS_BETWEEN != 0 || Instant::now() < until {
                    assert!(decide(&limits, &set, &clock).await);
                    n += 1;
                }
                n_decided.fetch_add(n, Ordering::Relaxed);
            }
        })
    }

    fn multiplexed(&self) -> Measured {
        let argument = raw::argument(1);
        self.slice(|number, until, n_decided| {
            let mut connection = self.multiplexed.clone();
            let command = command(&self.digests.0, &argument, number);
            async move {
                let mut n = 0;
                while n % CALLS_BETWEEN != 0 || Instant::now() < until {
                    let answer: Value = command
                        .query_async(&mut connection)
                        .await
                        .expect("an answer");
                    std::hint::black_box(answer);
                    n += 1;
                }
                n_decided.fetch_add(n, Ordering::Relaxed);
            }
        })
    }

    fn pool(&self) -> Measured {
        let argument = raw::argument(1);
        self.slice(|number, until, n_decided| {
            let pool = self.pool.clone();
            let command = command(&self.digests.0, &argument, number);
            async move {
                let mut n = 0;
                while n % CALLS_BETWEEN != 0 || Instant::now() < until {
                    let mut connection = pool.get().await.expect("a connection");
                    let answer: Value = command
                        .query_async(&mut connection)
                        .await
                        .expect("an answer");
                    std::hint::black_box(answer);
                    n += 1;
                }
                n_decided.fetch_add(n, Ordering::Relaxed);
            }
        })
    }

    pub(crate) fn round(&mut self) -> Round {
        let (ours, gcra) = &self.digests;
        let scripts = |rules| raw::ours(self.server, ours, RUNS_OF_A_BENCHMARK, rules);
        let one = scripts(1);
        Round {
            exact: self.limits(&self.exact, "exact", 1),
            exact_3: self.limits(&self.exact, "exact", 3),
            exact_5: self.limits(&self.exact, "exact", 5),
            leased_10: self.limits(&self.leased_10, "leased-10", 1),
            leased_100: self.limits(&self.leased_100, "leased-100", 1),
            multiplexed: self.multiplexed(),
            pool: self.pool(),
            benchmark: one.0,
            rules: [one.1, scripts(3).1],
            gcra: raw::gcra(self.server, gcra, RUNS_OF_A_BENCHMARK).1,
        }
    }
}
