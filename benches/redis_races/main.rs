//! Limits in Redis under races, faults and stepped clocks, counted.
//!
//! `cargo bench --bench redis_races -- [ROUNDS] [WORD..]` starts servers of its own and prints a table. A round is one
//! limit of 100, eight processes and 1,000 calls at once; 1,000 rounds of each kind unless said. Words choose among
//! `single`, `flush`, `cluster`, `failover`, `clock` and `restart`; all unless some are named. `clock` needs libfaketime
//! (apt-get install faketime).

#[path = "../../tests/common/mod.rs"]
#[allow(dead_code, unused_imports, reason = "what the tests start")]
mod common;
mod faults;
mod workers;

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use common::{redis::RedisServer, redis_cluster::RedisCluster};
use workers::{Mode, Rule, Workers};

const PROCESSES: usize = 8;
const CALLS: usize = 1_000;
const LIMIT: u64 = 100;
const ROUNDS: usize = 1_000;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).filter(|it| it != "--bench").collect();
    if arguments.first().is_some_and(|first| first == "worker") {
        return workers::work(&arguments[1], &arguments[2]);
    }
    let rounds = arguments.iter().find_map(|it| it.parse().ok());
    let rounds: usize = rounds.unwrap_or(ROUNDS);
    let words: Vec<&String> = arguments
        .iter()
        .filter(|it| it.parse::<usize>().is_err())
        .collect();
    let wanted = |word: &str| words.is_empty() || words.iter().any(|it| *it == word);

    println!(
        "| {PROCESSES} processes, {CALLS} calls at once, limit {LIMIT} | rounds | not exactly {LIMIT} | above {LIMIT} | least | mean |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    if wanted("single") {
        let server = RedisServer::start();
        races("one server", &[server.url()], rounds);
    }
    if wanted("flush") {
        let server = RedisServer::start();
        while_scripts_are_flushed(&server, || {
            races(
                "one server, SCRIPT FLUSH in a loop",
                &[server.url()],
                rounds,
            );
        });
    }
    if wanted("cluster") {
        let cluster = RedisCluster::start();
        races("Cluster of 3 + 3", &cluster.urls(), rounds);
    }
    println!("\n| fault | what | counted |\n| --- | --- | --- |");
    if wanted("failover") {
        faults::failover();
    }
    if wanted("clock") {
        faults::stepped_clocks();
    }
    if wanted("restart") {
        faults::lost_data();
    }
}

fn races(what: &str, urls: &[String], rounds: usize) {
    for mode in [Mode::Exact, Mode::Leased] {
        let mut workers = Workers::start(PROCESSES, mode, urls);
        let mut admitted = Vec::new();
        for round in 0..rounds {
            let tenant = format!("{}-{}", mode.name(), round);
            let each = workers.call(&tenant, Rule::Quota, CALLS / PROCESSES);
            admitted.push(each.iter().sum::<u64>());
        }
        let n_other = admitted.iter().filter(|it| **it != LIMIT).count();
        let n_above = admitted.iter().filter(|it| **it > LIMIT).count();
        let least = admitted.iter().min().copied().unwrap_or_default();
        let mean = admitted.iter().sum::<u64>() as f64 / rounds.max(1) as f64;
        println!(
            "| {what}, {} | {rounds} | {n_other} | {n_above} | {least} | {mean:.1} |",
            mode.name()
        );
    }
}

fn while_scripts_are_flushed(server: &RedisServer, run: impl FnOnce()) {
    let is_done = Arc::new(AtomicBool::new(false));
    let flushing = std::thread::spawn({
        let (mut client, is_done) = (server.client(), Arc::clone(&is_done));
        move || {
            while !is_done.load(Ordering::Relaxed) {
                let flushed = redis::cmd("SCRIPT").arg("FLUSH").query(&mut client);
                let () = flushed.expect("flushed");
            }
        }
    });
    run();
    is_done.store(true, Ordering::Relaxed);
    flushing.join().expect("no panic");
}
