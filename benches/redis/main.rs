//! Limits in Redis beside the field's ways to reach it, in one interleaved run: `cargo bench --bench redis`, or
//! `-- ROUNDS`, 9 unless said.
//!
//! It starts a `redis-server` of its own. A round gives every contestant a slice of a third of a second, so that a
//! machine that slows down slows all; a row shows the median of the rounds' ratios and the span of their middle half.
//! 64 tasks call at once, each for a tenant of its own, by one bucket that never runs out. CPU is that of this process
//! from `/proc`, and the server's own from `INFO`. The script is the crate's, with one call in it, also for
//! redis-benchmark (package redis-tools), which runs it with `-P 16`.

#[path = "../../tests/common/mod.rs"]
#[allow(dead_code, unused_imports, reason = "what the tests start")]
mod common;
mod contestants;
mod raw;

use std::env;

use common::redis::RedisServer;
use contestants::{Contestants, Measured};

const ROUNDS: usize = 9;

/// One row: what, against, goal, and the ratio of a round.
type Row = (&'static str, &'static str, &'static str, fn(&Round) -> f64);

/// A contestant's name, and what it did in a round.
type Way = (&'static str, fn(&Round) -> &Measured);

/// What the contestants did in one round.
struct Round {
    exact: Measured,
    exact_3: Measured,
    exact_5: Measured,
    leased_10: Measured,
    leased_100: Measured,
    multiplexed: Measured,
    pool: Measured,
    benchmark: f64,
    /// The server's CPU for a script run with one and three rules, and of a script of GCRA alone.
    rules: [f64; 2],
    gcra: f64,
}

const ROWS: [Row; 14] = [
    (
        "exact decisions/s, 64 tasks",
        "redis-benchmark EVALSHA -P 16, same script",
        ">= 1.5",
        |it| it.exact.per_second / it.benchmark,
    ),
    (
        "client CPU of an exact decision, 64 tasks",
        "the redis crate's multiplexed connection",
        "<= 0.4",
        |it| it.exact.own_cpu / it.multiplexed.own_cpu,
    ),
    (
        "exact decisions/s, 64 tasks",
        "the redis crate's multiplexed connection",
        "",
        |it| it.exact.per_second / it.multiplexed.per_second,
    ),
    (
        "exact decisions/s, 64 tasks",
        "one deadpool checkout for each decision",
        ">= 4.5",
        |it| it.exact.per_second / it.pool.per_second,
    ),
    (
        "Redis CPU of an exact decision, 64 tasks, one rule",
        "one rule of a GCRA-only script",
        "",
        |it| it.exact.server_cpu / it.gcra,
    ),
    (
        "Redis CPU of an exact decision, 64 tasks, three rules",
        "one rule of a GCRA-only script",
        "<= 1.7",
        |it| it.exact_3.server_cpu / it.gcra,
    ),
    (
        "Redis CPU of an exact decision, 64 tasks, five rules",
        "one rule of a GCRA-only script",
        "",
        |it| it.exact_5.server_cpu / it.gcra,
    ),
    (
        "Redis CPU of a lone decision, one rule",
        "one rule of a GCRA-only script",
        "",
        |it| it.rules[0] / it.gcra,
    ),
    (
        "Redis CPU of a lone decision, three rules",
        "the same with one rule",
        "",
        |it| it.rules[1] / it.rules[0],
    ),
    ("leased decisions/s, N = 10", "exact", ">= 6", |it| {
        it.leased_10.per_second / it.exact.per_second
    }),
    ("leased decisions/s, N = 100", "exact", ">= 30", |it| {
        it.leased_100.per_second / it.exact.per_second
    }),
    (
        "trips of a leased decision, N = 10",
        "1/N",
        "<= 1.0",
        |it| it.leased_10.trips * 10.0,
    ),
    (
        "trips of a leased decision, N = 100",
        "1/N",
        "<= 1.0",
        |it| it.leased_100.trips * 100.0,
    ),
    (
        "script runs of an exact decision, 64 tasks",
        "one for each",
        "",
        |it| it.exact.scripts,
    ),
];

fn main() {
    let rounds = env::args().find_map(|it| it.parse().ok());
    let server = RedisServer::start();
    let mut contestants = Contestants::of(&server);
    contestants.all_refuse();
    contestants.round();
    let measured: Vec<Round> = (0..rounds.unwrap_or(ROUNDS))
        .map(|_| contestants.round())
        .collect();
    println!("| what | against | goal | ratio | middle half |");
    println!("| --- | --- | --- | --- | --- |");
    for (what, against, goal, ratio) in ROWS {
        let ratios = sorted(measured.iter().map(ratio));
        println!(
            "| {what} | {against} | {goal} | {:.2} | {:.2} to {:.2} |",
            median(&ratios),
            ratios[ratios.len() / 4],
            ratios[ratios.len() * 3 / 4]
        );
    }
    println!("\n| 64 tasks | decisions/s | own CPU of each | Redis CPU of each |");
    println!("| --- | --- | --- | --- |");
    let ways: [Way; 7] = [
        ("exact", |round| &round.exact),
        ("exact, three rules", |round| &round.exact_3),
        ("exact, five rules", |round| &round.exact_5),
        ("leased, N = 10", |round| &round.leased_10),
        ("leased, N = 100", |round| &round.leased_100),
        ("multiplexed connection, same script", |round| {
            &round.multiplexed
        }),
        ("deadpool checkout, same script", |round| &round.pool),
    ];
    for (name, of) in ways {
        let median_of = |what: fn(&Measured) -> f64| {
            median(&sorted(measured.iter().map(|round| what(of(round)))))
        };
        println!(
            "| {name} | {:.0} | {:.2} us | {:.2} us |",
            median_of(|it| it.per_second),
            median_of(|it| it.own_cpu),
            median_of(|it| it.server_cpu)
        );
    }
    let benchmark = median(&sorted(measured.iter().map(|round| round.benchmark)));
    println!("| redis-benchmark -P 16, same script | {benchmark:.0} | | |");
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}
