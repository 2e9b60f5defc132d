//! Many callers at once, through several stores as several processes have them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tollgate::limit::{
    Concurrency, Cost, LimitSet, Quota, Rate, RedisLimits, Rule, ScopeValues, Window,
};

use super::{ask, call, limits, set_of};
use crate::common::redis::RedisServer;

const DAY: Duration = Duration::from_secs(86_400);

/// How many of a thousand calls at once, spread over the stores, are admitted.
async fn n_admitted(stores: &[RedisLimits], sets: &[Arc<LimitSet>]) -> usize {
    let tasks: Vec<_> = (0..1_000)
        .map(|n| {
            let (store, set) = (
                stores[n % stores.len()].clone(),
                Arc::clone(&sets[n % sets.len()]),
            );
            tokio::spawn(async move { call(&store, &set).await.expect("a decision").is_admitted() })
        })
        .collect();
    let mut n_admitted = 0;
    for task in tasks {
        n_admitted += usize::from(task.await.expect("no panic"));
    }
    n_admitted
}

async fn stores(server: &RedisServer, n: usize) -> Vec<RedisLimits> {
    let mut stores = Vec::new();
    for _ in 0..n {
        stores.push(limits(server).await);
    }
    stores
}

fn rules() -> Vec<Vec<Rule>> {
    vec![
        vec![Rate::per_day(100).into()],
        vec![Window::new(100, DAY).into()],
        vec![Window::new(100, DAY).exact_log().into()],
        vec![Quota::monthly(100).into()],
        vec![Concurrency::new(100).into()],
        vec![
            Rate::per_day(100_000).into(),
            Window::new(1_000, DAY).into(),
            Quota::monthly(100).into(),
        ],
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_calls_of_four_stores_admit_exactly_the_limit() {
    let server = RedisServer::start();
    let stores = stores(&server, 4).await;
    for (number, rules) in rules().into_iter().enumerate() {
        // Each process has compiled the rules for itself.
        let sets: Vec<_> = (0..4)
            .map(|_| set_of(&format!("race-{number}"), rules.clone()))
            .collect();
        assert_eq!(n_admitted(&stores, &sets).await, 100, "{rules:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_forgets_its_scripts_all_the_time_admits_exactly_the_limit() {
    let server = RedisServer::start();
    let stores = stores(&server, 4).await;
    let is_done = Arc::new(AtomicBool::new(false));
    let flushing = std::thread::spawn({
        let (mut client, is_done) = (server.client(), Arc::clone(&is_done));
        move || {
            let mut n_flushed = 0;
            while !is_done.load(Ordering::Relaxed) {
                let () = redis::cmd("SCRIPT")
                    .arg("FLUSH")
                    .query(&mut client)
                    .expect("flushed");
                n_flushed += 1;
            }
            n_flushed
        }
    });
    for round in 0..20 {
        let sets = [set_of(
            &format!("flushed-{round}"),
            [Quota::monthly(100), Quota::daily(2_000)]
                .into_iter()
                .enumerate()
                .map(|(n, quota)| quota.named(format!("quota-{n}"))),
        )];
        assert_eq!(n_admitted(&stores, &sets).await, 100);
    }
    is_done.store(true, Ordering::Relaxed);
    assert!(flushing.join().expect("no panic") > 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_call_of_many_rules_is_charged_whole_or_not_at_all() {
    let server = RedisServer::start();
    let store = limits(&server).await;
    let both = set_of(
        "whole",
        [
            Quota::monthly(50).named("small"),
            Window::new(1_000, DAY).named("large"),
        ],
    );
    n_admitted(std::slice::from_ref(&store), std::slice::from_ref(&both)).await;
    let states = store.peek(&both, &ScopeValues::default()).await.unwrap();
    let left: Vec<_> = states.iter().map(|state| state.remaining).collect();
    assert_eq!(
        left,
        [0, 950],
        "the refused calls took nothing of the larger rule"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_that_leave_at_any_moment_harm_nobody_and_keep_no_slot() {
    let server = RedisServer::start();
    let store = limits(&server).await;
    let set = set_of(
        "leavers",
        [
            Concurrency::new(10_000).named("slots"),
            Quota::monthly(100_000).named("calls"),
        ],
    );
    let staying = store.clone();
    let mut tasks = Vec::new();
    for n in 0..600_u64 {
        let (store, set) = (store.clone(), Arc::clone(&set));
        let mut task = Box::pin(async move { call(&store, &set).await });
        // Polled zero to four times, with others in between, and then left.
        tasks.push(tokio::spawn(async move {
            for _ in 0..n % 5 {
                if tokio::time::timeout(Duration::from_micros(n % 300), &mut task)
                    .await
                    .is_ok()
                {
                    // Answered: the slot is the caller's, who never settles it.
                    return 1_u64;
                }
            }
            0
        }));
        let other = set_of(&format!("stays-{}", n % 7), [Quota::monthly(1_000)]);
        if n % 10 == 0 {
            assert!(call(&staying, &other).await.unwrap().is_admitted());
        }
    }
    let mut n_answered = 0;
    for task in tasks {
        n_answered += task.await.expect("no panic");
    }
    // What was given up before its answer came has released its slot, or was never run.
    for _ in 0..3 {
        store.flush().await;
    }
    let states = store.peek(&set, &ScopeValues::default()).await.unwrap();
    assert_eq!(10_000 - states[0].remaining, n_answered);
    assert!(100_000 - states[1].remaining <= 600);
    assert!(100_000 - states[1].remaining >= n_answered);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_batch_holds_calls_of_many_tenants_and_of_many_rules() {
    let server = RedisServer::start();
    let store = limits(&server).await;
    let tasks: Vec<_> = (0..500_u64)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let set = set_of(
                    &format!("tenant-{n}"),
                    [
                        Rate::per_day(n + 1).named("rate"),
                        Window::new(n + 2, DAY).named("window"),
                        Quota::monthly(n + 3).named("quota"),
                        Concurrency::new(n + 4).named("slots"),
                    ],
                );
                let decision = ask(&store, &set, &ScopeValues::default(), &Cost::default())
                    .await
                    .unwrap();
                decision
                    .states
                    .iter()
                    .map(|state| state.remaining)
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    for (n, task) in (0_u64..).zip(tasks) {
        assert_eq!(task.await.unwrap(), [n, n + 1, n + 2, n + 3]);
    }
}
