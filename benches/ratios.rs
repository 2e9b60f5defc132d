//! The cost of a check beside governor's, in one interleaved run: `cargo bench --bench ratios`.
//!
//! Each row alternates the two sides round by round, so that a machine that slows down slows both, and prints
//! the median of the rounds' ratios. Rows named "added" are a service behind the layers less the same service
//! without them, request and answer being made in both.

mod common;

use std::{convert::Infallible, hint::black_box, thread, time::Instant};

use common::{Governor, Guarded, Limits};
use http::Request;
use tollgate::{
    clock::{Clock, SystemClock},
    limit::HeaderStyle,
};
use tower::Service;

const ROUNDS: usize = 31;
const CHECKS: u64 = 100_000;
const CALLS: u64 = 20_000;
/// So many calls wait for the recorder's task at most, as they do at some ten thousand calls a second.
const BATCH: u64 = 2_000;

/// Nanoseconds for each of `n` calls.
fn time(n: u64, mut call: impl FnMut(u64)) -> f64 {
    let started = Instant::now();
    (0..n).for_each(&mut call);
    started.elapsed().as_nanos() as f64 / n as f64
}

/// The same on two threads at once, for each call of one thread.
fn time_on_two(n: u64, call: impl Fn(u64) + Sync) -> f64 {
    thread::scope(|scope| {
        let other = scope.spawn(|| time(n, &call));
        let own = time(n, &call);
        other.join().expect("no panic").max(own)
    })
}

/// A stride that visits every one of `n`, in an order that caches do not foresee.
fn scattered(i: u64, n: usize) -> usize {
    (i.wrapping_mul(7_919) % n as u64) as usize
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(name: &str, mut ours: impl FnMut() -> f64, mut theirs: impl FnMut() -> f64) {
    ours();
    theirs();
    let rounds: Vec<(f64, f64)> = (0..ROUNDS).map(|_| (ours(), theirs())).collect();
    let ratio = median(rounds.iter().map(|(a, b)| a / b).collect());
    let (a, b) = rounds.into_iter().unzip();
    println!(
        "| {name} | {:.1} ns | {:.1} ns | {ratio:.2} |",
        median(a),
        median(b)
    );
}

fn governor_check(governor: &Governor, name: &String) {
    assert!(black_box(governor.check_key(name)).is_ok());
}

fn added_row<S>(name: &str, make: impl FnOnce() -> Guarded<S>)
where
    S: Service<Request<String>, Error = Infallible>,
{
    let runtime = common::runtime();
    let _inside = runtime.enter();
    let (mut guarded, mut bare) = (make(), common::bare());
    let (names, governor) = (common::names(1), common::governor_limiter());
    let keys = guarded.keys.clone();
    row(
        name,
        || {
            let mut added = 0.0;
            for _ in 0..CALLS / BATCH {
                added += time(BATCH, |i| guarded.call(i));
                added -= time(BATCH, |i| {
                    common::call(&mut bare, &keys[i as usize % keys.len()]);
                });
                runtime.block_on(guarded.recorder.flush());
            }
            added / (CALLS / BATCH) as f64
        },
        || time(CHECKS, |_| governor_check(&governor, &names[0])),
    );
}

fn main() {
    println!("| row | tollgate | governor 0.10 keyed check | ratio |\n|---|---|---|---|");
    for (title, n) in [
        ("limiter check, hot key", 1),
        ("limiter check, 100 k keys", 100_000),
    ] {
        let (names, governor) = (common::names(n), common::governor_limiter());
        let limits = Limits::new(&names, [common::rate()]);
        row(
            title,
            || time(CHECKS, |i| limits.check(scattered(i, n))),
            || {
                time(CHECKS, |i| {
                    governor_check(&governor, &names[scattered(i, n)])
                })
            },
        );
    }
    let (names, governor) = (common::names(1), common::governor_limiter());
    let limits = Limits::new(&names, [common::rate()]);
    let now = SystemClock::new().now();
    row(
        "limiter check, hot key, the time being read already",
        || time(CHECKS, |_| limits.check_at(0, now)),
        || time(CHECKS, |_| governor_check(&governor, &names[0])),
    );
    row(
        "limiter check, hot key, 2 threads",
        || time_on_two(CHECKS, |_| limits.check(0)),
        || time_on_two(CHECKS, |_| governor_check(&governor, &names[0])),
    );
    let parts = common::Parts::new();
    row(
        "digest, cached identity and two rules, called directly; 1 k keys",
        || time(CHECKS, |i| parts.call(i)),
        || time(CHECKS, |_| governor_check(&governor, &names[0])),
    );
    added_row(
        "added by identify, two rules and meter as three layers over http, no header fields; 1 k keys",
        common::three_layers,
    );
    added_row(
        "added by the whole gate without header fields of limits; 1 k keys",
        || common::gate(HeaderStyle::Off, true),
    );
    added_row("added by the whole gate; 1 k keys", || {
        common::gate(HeaderStyle::Draft11, true)
    });
}
