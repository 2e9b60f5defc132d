use super::*;

use std::{
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    thread,
};

use tollgate::limit::{Concurrency, Scope, Window};

const DAY: Duration = Duration::from_secs(86_400);
const N_THREADS: usize = 8;

fn every_algorithm(limit: u64) -> [Rule; 6] {
    [
        Rate::per_day(limit).into(),
        Window::new(limit, DAY).named("strict"),
        Window::new(limit, DAY).smooth().named("smooth"),
        Window::new(limit, DAY).exact_log().named("log"),
        Quota::monthly(limit).into(),
        Concurrency::new(limit).into(),
    ]
}

/// Runs `work` on eight threads at once and sums what they return.
fn at_once(work: impl Fn(usize) -> usize + Sync) -> usize {
    let barrier = std::sync::Barrier::new(N_THREADS);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..N_THREADS)
            .map(|number| {
                let (barrier, work) = (&barrier, &work);
                scope.spawn(move || {
                    barrier.wait();
                    work(number)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    })
}

#[test]
fn a_thousand_racing_calls_on_a_limit_of_100_admit_exactly_100() {
    for rule in every_algorithm(100) {
        for scope in [Scope::Tenant, Scope::Route] {
            let rule = rule.clone().scope(scope);
            for _ in 0..10 {
                let bench = Bench::new([rule.clone()]);
                assert_eq!(at_once(|_| bench.admits(125)), 100, "{rule:?}");
            }
        }
    }
}

#[test]
fn racing_calls_under_many_rules_admit_exactly_the_tightest() {
    for tightest in 0..6 {
        let mut rules = every_algorithm(1_000).to_vec();
        rules[tightest] = every_algorithm(100)[tightest].clone();
        for _ in 0..5 {
            let bench = Bench::new(rules.clone());
            assert_eq!(at_once(|_| bench.admits(125)), 100);
            let left: Vec<_> = bench
                .decide(0)
                .states
                .iter()
                .map(|state| state.remaining)
                .collect();
            let mut expected = [900; 6];
            expected[tightest] = 0;
            assert_eq!(
                left, expected,
                "every rule was charged for the admitted calls alone"
            );
        }
    }
}

#[test]
fn a_race_that_two_rules_lose_at_once_gives_everything_back() {
    // Calls of different cost, so that one can find the second rule spent after taking from the first.
    for _ in 0..50 {
        let bench = Bench::new([
            Rule::from(Quota::daily(1_000)),
            Window::new(1_000, DAY).into(),
            Rate::per_day(50).into(),
        ]);
        let units = at_once(|number| {
            let cost = 1 + number as u64 % 4;
            (0..40).filter(|_| bench.passes(cost)).count() * cost as usize
        });
        let left: Vec<_> = bench
            .decide(0)
            .states
            .iter()
            .map(|state| state.remaining)
            .collect();
        assert!(units <= 50);
        let units = units as u64;
        assert_eq!(left, [1_000 - units, 1_000 - units, 50 - units]);
    }
}

#[test]
fn slots_are_never_more_than_the_limit_and_all_come_back() {
    let bench = Bench::new([
        Rule::from(Concurrency::new(3)),
        Quota::daily(1_000_000).into(),
    ]);
    let in_flight = AtomicI64::new(0);
    let n_served = at_once(|_| {
        (0..2_000)
            .filter(|_| {
                let decision = bench.decide(1);
                if !decision.is_admitted() {
                    return false;
                }
                assert!(in_flight.fetch_add(1, Ordering::SeqCst) < 3);
                in_flight.fetch_sub(1, Ordering::SeqCst);
                bench.settle(&decision, &Settlement::Refund);
                true
            })
            .count()
    });
    assert!(n_served > 0);
    let left: Vec<_> = bench
        .decide(0)
        .states
        .iter()
        .map(|state| state.remaining)
        .collect();
    assert_eq!(left, [3, 1_000_000]);
}

#[test]
fn counts_are_exact_while_cells_and_periods_turn() {
    for rule in [
        Rule::from(Window::new(100, Duration::from_millis(10))),
        Window::new(100, Duration::from_millis(10))
            .exact_log()
            .into(),
        Quota::hourly(100).into(),
    ] {
        let bench = Bench::new([rule]);
        // Each round lies in a window of its own, and eight threads find the old one at once.
        for round in 0..200 {
            bench.clock.advance(SECOND * 3_600);
            let admitted = at_once(|_| bench.admits(20));
            assert_eq!(admitted, 100, "round {round}");
        }
    }
}

#[test]
fn sweeping_all_the_time_loses_no_count() {
    for rule in every_algorithm(100) {
        let bench = Bench::new([rule.clone().scope(Scope::Route)]);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    bench.store.sweep(bench.clock.now());
                }
            });
            for round in 0..100 {
                let route = format!("/{round}");
                let scopes = ScopeValues::default().route(route.as_str());
                let admitted = at_once(|_| {
                    let ask = |_: &usize| {
                        try_decide(&bench.store, &bench.set, &scopes, 1, bench.clock.now())
                            .unwrap()
                            .is_admitted()
                    };
                    (0..20).filter(ask).count()
                });
                assert_eq!(admitted, 100, "{rule:?}");
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn two_plans_racing_over_one_bucket_admit_no_more_than_the_larger() {
    for _ in 0..50 {
        let bench = Bench::new([Rate::per_day(100)]);
        let sets = [Arc::clone(&bench.set), set([Rate::per_day(200)])];
        let admitted = at_once(|number| {
            let ask = |_: &usize| {
                try_decide(
                    &bench.store,
                    &sets[number % 2],
                    &bench.scopes,
                    1,
                    bench.clock.now(),
                )
                .unwrap()
                .is_admitted()
            };
            (0..50).filter(ask).count()
        });
        assert!((100..=200).contains(&admitted), "{admitted}");
    }
}

#[test]
fn a_threshold_is_told_once_in_a_race() {
    for rule in [Rule::from(Quota::daily(100)), Rate::per_day(100).into()] {
        for _ in 0..50 {
            let bench = Bench::new([rule.clone().thresholds([50, 80, 100])]);
            let told = at_once(|_| (0..50).map(|_| bench.decide(1).crossings.len()).sum());
            assert_eq!(told, 3);
        }
    }
}
