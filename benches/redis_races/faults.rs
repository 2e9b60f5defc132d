//! What is admitted wrongly when a master fails, clocks are stepped or data is lost.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tollgate::{
    limit::{LimitSet, LostQuota, QuotaTotals, RedisLimits, ScopeValues},
    redis_support::RedisConnector,
};

use super::{
    LIMIT,
    common::{redis::RedisServer, redis_cluster::RedisCluster, temp::TempDir},
    workers::{Mode, Rule, Workers, admits, connect, set},
};

const TASKS: usize = 16;
const FAILOVER_LIMIT: u64 = 60_000;
const UNTIL_FAILURE: u64 = 20_000;
/// As in production, nearly: a busy machine needs a little longer.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(200);

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all();
    builder.build().expect("a runtime")
}

/// The master that counts a tenant is killed while 16 tasks call, until the whole limit is used up.
pub(crate) fn failover() {
    for mode in [Mode::Exact, Mode::Leased] {
        let mut cluster = RedisCluster::start();
        let runtime = runtime();
        runtime.block_on(async {
            let limits = connect(mode.name(), &cluster.urls(), RESPONSE_TIMEOUT).await;
            let set = set("failing", "quota", FAILOVER_LIMIT);
            let counts = Arc::new(Counts::default());
            let tasks: Vec<_> = (0..TASKS)
                .map(|_| {
                    let parts = (limits.clone(), Arc::clone(&set), Arc::clone(&counts));
                    tokio::spawn(async move { parts.2.run(&parts.0, &parts.1).await })
                })
                .collect();
            while counts.admitted.load(Ordering::SeqCst) < UNTIL_FAILURE {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let place = cluster.master_of("tg:1:{l.failing}:t");
            cluster.nodes[place].kill();
            let acknowledged = counts.admitted.load(Ordering::SeqCst);
            let (failed_at, mut known) = (Instant::now(), None);
            // What the promoted replica had received, looked at before it decides much.
            while known.is_none() {
                if let Ok(states) = limits.peek(&set, &ScopeValues::default()).await {
                    known = Some(FAILOVER_LIMIT - states[0].remaining);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let recovered = failed_at.elapsed();
            for task in tasks {
                task.await.expect("no panic");
            }
            let admitted = counts.admitted.load(Ordering::SeqCst);
            println!(
                "| Cluster master killed at {acknowledged} admitted of {FAILOVER_LIMIT}, {TASKS} tasks, {} | calls failed; wrongly admitted; until the next answer, node timeout 1 s | {}; {}; {:.1} s |",
                mode.name(),
                counts.failed.load(Ordering::SeqCst),
                admitted.saturating_sub(FAILOVER_LIMIT),
                recovered.as_secs_f64(),
            );
            println!(
                "| | admitted in all; used as the new master first said | {admitted}; {} |",
                known.unwrap_or_default()
            );
        });
    }
}

#[derive(Default)]
struct Counts {
    admitted: AtomicU64,
    failed: AtomicU64,
    is_over: AtomicBool,
}

impl Counts {
    /// Calls until the limit is used up.
    async fn run(&self, limits: &RedisLimits, set: &Arc<LimitSet>) {
        while !self.is_over.load(Ordering::SeqCst) {
            match admits(limits, set).await {
                Some(true) => {
                    self.admitted.fetch_add(1, Ordering::SeqCst);
                }
                Some(false) => self.is_over.store(true, Ordering::SeqCst),
                None => {
                    self.failed.fetch_add(1, Ordering::SeqCst);
                    // A client comes again later, too.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }
}

fn libfaketime() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    folders
        .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists())
        .expect("libfaketime: apt-get install faketime")
}

/// The clocks of the processes' host go ahead and back by an hour after the limit is used up.
pub(crate) fn stepped_clocks() {
    let (server, dir) = (RedisServer::start(), TempDir::new());
    let file = dir.path().join("time");
    let library = libfaketime();
    let (library, path) = (
        library.to_str().expect("a path"),
        file.to_str().expect("a path"),
    );
    for mode in [Mode::Exact, Mode::Leased] {
        for rule in [Rule::Rate, Rule::Quota] {
            fs::write(&file, "+0").expect("written");
            let variables = [
                ("LD_PRELOAD", library),
                ("FAKETIME_TIMESTAMP_FILE", path),
                ("FAKETIME_NO_CACHE", "1"),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ];
            let mut workers = Workers::with(4, mode, &[server.url()], &variables);
            let tenant = format!("stepped-{}-{}", mode.name(), rule as u8);
            let mut admitted = Vec::new();
            for step in ["+0", "+3600", "-3600", "+0"] {
                fs::write(&file, step).expect("written");
                // The wall clock is read once a second.
                std::thread::sleep(Duration::from_millis(1_100));
                admitted.push(workers.call(&tenant, rule, 100).iter().sum::<u64>());
            }
            let minted = admitted.iter().sum::<u64>().saturating_sub(LIMIT);
            println!(
                "| the processes' clocks at +0, +1 h, -1 h, +0; {} of {LIMIT}, {} | admitted at each; minted | {admitted:?}; {minted} |",
                if matches!(rule, Rule::Rate) {
                    "bucket"
                } else {
                    "quota"
                },
                mode.name(),
            );
        }
    }
}

/// Knows what was admitted.
#[derive(Clone, Debug, Default)]
struct Totals(Arc<AtomicU64>);

#[async_trait]
impl QuotaTotals for Totals {
    async fn used(&self, _: &LostQuota) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.load(Ordering::SeqCst))
    }
}

/// A server that keeps nothing is started anew, twice, after the limit is used up.
pub(crate) fn lost_data() {
    for rule in ["rate", "quota"] {
        let mut server = RedisServer::start();
        let totals = Totals::default();
        runtime().block_on(async {
            let connector = RedisConnector::single(server.url()).expect("a URL");
            let connector = connector.response_timeout(Duration::from_secs(5));
            let builder = RedisLimits::builder(connector).totals(totals.clone());
            let limits = builder.connect().await.expect("a server");
            let set = set("loser", rule, LIMIT);
            let mut admitted = Vec::new();
            for restart in 0..3 {
                if restart > 0 {
                    server.restart();
                    while limits.peek(&set, &ScopeValues::default()).await.is_err() {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
                let mut n_admitted = 0;
                for _ in 0..3 * LIMIT {
                    if admits(&limits, &set).await == Some(true) {
                        n_admitted += 1;
                        totals.0.fetch_add(1, Ordering::SeqCst);
                    }
                }
                admitted.push(n_admitted);
            }
            println!("| Redis restarted twice with its data lost, {rule} of {LIMIT}, totals known | admitted before, after, after | {admitted:?} |");
        });
    }
}
