//! Processes that share a limit: children of this one, which wait for the word on their input.

use std::{
    env,
    io::{BufRead, BufReader, Lines, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use tollgate::{
    clock::{Clock, SystemClock},
    id::TenantId,
    limit::{
        Cost, Lease, LimitCall, LimitSet, LimitStore, Owner, Quota, Rate, RedisLimits, RuleSet,
        ScopeValues,
    },
    redis_support::RedisConnector,
};

use super::LIMIT;

const PATIENCE: Duration = Duration::from_secs(10);
const SLICE: u64 = 10;

#[derive(Clone, Copy)]
pub(crate) enum Mode {
    Exact,
    Leased,
}

impl Mode {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Leased => "leased",
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Rule {
    Quota,
    Rate,
}

impl Rule {
    const fn name(self) -> &'static str {
        match self {
            Self::Quota => "quota",
            Self::Rate => "rate",
        }
    }
}

pub(crate) fn set(tenant: &str, rule: &str, limit: u64) -> Arc<LimitSet> {
    let rule: tollgate::limit::Rule = match rule {
        "rate" => Rate::per_day(limit).into(),
        _ => Quota::monthly(limit).into(),
    };
    let owner = Owner::tenant(TenantId::new(tenant).expect("a name"));
    let rules = RuleSet::compile([rule]).expect("legal rules");
    Arc::new(LimitSet::new(owner, rules))
}

pub(crate) async fn connect(mode: &str, urls: &[String], patience: Duration) -> RedisLimits {
    let connector = match urls {
        [url] => RedisConnector::single(url),
        urls => RedisConnector::cluster(urls),
    };
    let connector = connector
        .expect("URLs")
        .connect_timeout(PATIENCE)
        .response_timeout(patience);
    let mut builder = RedisLimits::builder(connector);
    if mode == Mode::Leased.name() {
        builder = builder.leased(Lease::of(SLICE));
    }
    builder.connect().await.expect("a server")
}

/// Whether a call passes; `None` when nothing was decided.
pub(crate) async fn admits(limits: &RedisLimits, set: &Arc<LimitSet>) -> Option<bool> {
    let (scopes, cost) = (ScopeValues::default(), Cost::default());
    let call = LimitCall::new(set, &scopes, &cost, SystemClock::new().now());
    let answer = match limits.try_decide(&call) {
        Some(answer) => answer,
        None => Arc::new(limits.clone()).decide(call.to_owned()).await,
    };
    answer.ok().map(|decision| decision.is_admitted())
}

/// A worker's whole life: for each line `TENANT RULE CALLS` it makes so many calls at once and says how many passed.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn work(mode: &str, urls: &str) {
    let urls: Vec<String> = urls.split(',').map(str::to_owned).collect();
    let limits = connect(mode, &urls, PATIENCE).await;
    println!("ready");
    for line in std::io::stdin().lines() {
        let line = line.expect("a line");
        let words: Vec<&str> = line.split(' ').collect();
        let set = set(words[0], words[1], LIMIT);
        let n_calls: usize = words[2].parse().expect("a number");
        let calls: Vec<_> = (0..n_calls)
            .map(|_| {
                let (limits, set) = (limits.clone(), Arc::clone(&set));
                tokio::spawn(async move { admits(&limits, &set).await.expect("a decision") })
            })
            .collect();
        let mut n_admitted = 0;
        for call in calls {
            n_admitted += u64::from(call.await.expect("no panic"));
        }
        println!("{n_admitted}");
    }
}

struct Worker {
    process: Child,
    orders: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
}

/// Some processes.
pub(crate) struct Workers(Vec<Worker>);

impl Workers {
    pub(crate) fn start(n: usize, mode: Mode, urls: &[String]) -> Self {
        Self::with(n, mode, urls, &[])
    }

    pub(crate) fn with(n: usize, mode: Mode, urls: &[String], variables: &[(&str, &str)]) -> Self {
        let mut workers: Vec<_> = (0..n)
            .map(|_| {
                let mut process = Command::new(env::current_exe().expect("this program"))
                    .args(["worker", mode.name(), &urls.join(",")])
                    .envs(variables.iter().copied())
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .expect("a process");
                Worker {
                    orders: process.stdin.take().expect("an input"),
                    said: BufReader::new(process.stdout.take().expect("an output")).lines(),
                    process,
                }
            })
            .collect();
        for worker in &mut workers {
            worker.said.next().expect("a word").expect("a line");
        }
        Self(workers)
    }

    /// Lets all call at once, and says how many calls of each have passed.
    pub(crate) fn call(&mut self, tenant: &str, rule: Rule, calls_each: usize) -> Vec<u64> {
        for worker in &mut self.0 {
            let order = format!("{tenant} {} {calls_each}\n", rule.name());
            worker.orders.write_all(order.as_bytes()).expect("written");
        }
        let said = self.0.iter_mut().map(|worker| {
            let line = worker.said.next().expect("a word").expect("a line");
            line.parse().expect("a number")
        });
        said.collect()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for worker in &mut self.0 {
            let _ = worker.process.kill();
            let _ = worker.process.wait();
        }
    }
}
