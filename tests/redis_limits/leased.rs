//! Leased mode: slices in hand of several stores, as several processes have them.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Request, Response, StatusCode};
use tollgate::{
    clock::{Clock, ManualClock, SystemClock},
    limit::{
        Concurrency, Cost, Decision, Lease, LimitCall, LimitLayer, LimitSet, LimitStore,
        LimitStoreError, OnStoreFailure, Outcome, Quota, Rate, RedisLimits, Rule, ScopeValues,
        Settlement, Window,
    },
    redis_support::RedisConnector,
};
use tower::{Layer, ServiceExt, service_fn};

use super::{ask, call, limits, set_of};
use crate::common::redis::RedisServer;

const DAY: Duration = Duration::from_secs(86_400);
/// Nothing lapses while a test runs.
const LONG: Duration = Duration::from_secs(3_600);

async fn leased(server: &RedisServer, lease: Lease) -> RedisLimits {
    with_clock(server, lease, &ManualClock::default()).await
}

/// A store whose slices lapse by the test's clock.
async fn with_clock(server: &RedisServer, lease: Lease, clock: &ManualClock) -> RedisLimits {
    let patience = Duration::from_secs(5);
    let connector = RedisConnector::single(server.url())
        .unwrap()
        .connect_timeout(patience)
        .response_timeout(patience);
    RedisLimits::builder(connector)
        .leased(lease)
        .clock(Arc::new(clock.clone()))
        .connect()
        .await
        .unwrap()
}

async fn several(server: &RedisServer, n: usize, lease: Lease) -> Vec<RedisLimits> {
    let mut stores = Vec::new();
    for _ in 0..n {
        stores.push(leased(server, lease).await);
    }
    stores
}

/// An answer without a trip.
fn at_once(store: &RedisLimits, set: &Arc<LimitSet>, cost: &Cost) -> Option<Decision> {
    let (scopes, now) = (ScopeValues::default(), tollgate::clock::Now::default());
    let answer = store.try_decide(&LimitCall::new(set, &scopes, cost, now))?;
    Some(answer.expect("no failure"))
}

/// Units used, as Redis has them.
async fn used(server: &RedisServer, set: &Arc<LimitSet>) -> Vec<u64> {
    let states = limits(server).await;
    let states = states.peek(set, &ScopeValues::default()).await.unwrap();
    states
        .iter()
        .map(|state| state.limit - state.remaining)
        .collect()
}

async fn n_admitted(store: &RedisLimits, set: &Arc<LimitSet>, n_calls: usize) -> usize {
    let mut n_admitted = 0;
    for _ in 0..n_calls {
        n_admitted += usize::from(call(store, set).await.unwrap().is_admitted());
    }
    n_admitted
}

fn n_scripts(server: &RedisServer) -> u64 {
    let stats: String = server.query(&["INFO", "commandstats"]);
    let calls = stats.lines().filter_map(|line| {
        let line = line.strip_prefix("cmdstat_eval")?;
        let calls = line.split_once("calls=")?.1;
        calls.split(',').next()?.parse::<u64>().ok()
    });
    calls.sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_stores_never_admit_more_than_the_limit_and_spend_what_they_hold() {
    let server = RedisServer::start();
    let rules: [Rule; 3] = [
        Quota::monthly(100).into(),
        Rate::per_day(100).into(),
        Window::new(100, DAY).into(),
    ];
    for (number, rule) in rules.into_iter().enumerate() {
        let tenant = format!("race-{number}");
        let stores = several(&server, 8, Lease::of(10).time(LONG)).await;
        let tasks: Vec<_> = (0..1_000)
            .map(|n| {
                let store = stores[n % 8].clone();
                // Each process has compiled the rules for itself.
                let set = set_of(&tenant, [rule.clone()]);
                tokio::spawn(async move { call(&store, &set).await.unwrap().is_admitted() })
            })
            .collect();
        let mut n_admitted = 0;
        for task in tasks {
            n_admitted += u64::from(task.await.unwrap());
        }
        assert!(n_admitted <= 100, "{n_admitted} of {rule:?}");
        assert!(n_admitted + 8 * 10 >= 100, "{n_admitted} of {rule:?}");
        for store in &stores {
            store.return_slices().await;
        }
        let set = set_of(&tenant, [rule]);
        assert_eq!(used(&server, &set).await, [n_admitted]);
    }
}

#[tokio::test]
async fn slices_shrink_with_what_is_left_and_the_last_units_are_given_out_one_by_one() {
    let server = RedisServer::start();
    let stores = several(&server, 8, Lease::of(10).time(LONG)).await;
    let sets: Vec<_> = (0..8)
        .map(|_| set_of("acme", [Quota::monthly(100)]))
        .collect();
    let mut n_admitted = 0;
    let mut largest = Vec::new();
    for round in 0..100 {
        let mut in_round = 0;
        for (store, set) in std::iter::zip(&stores, &sets) {
            in_round += u64::from(call(store, set).await.unwrap().is_admitted());
        }
        n_admitted += in_round;
        for store in &stores {
            store.flush().await;
        }
        let in_hand = used(&server, &sets[0]).await[0] - n_admitted;
        largest.push(in_hand);
        assert!(in_hand <= 80, "round {round}");
    }
    assert_eq!(
        n_admitted, 100,
        "every store that has units goes on to spend them"
    );
    assert!(
        largest.iter().max() > Some(&8),
        "slices were taken: {largest:?}"
    );
}

#[tokio::test]
async fn a_call_in_hand_is_answered_without_a_trip_and_a_slice_of_n_saves_n_trips() {
    let server = RedisServer::start();
    let store = leased(&server, Lease::of(100).time(LONG)).await;
    let set = set_of("acme", [Quota::monthly(1_000_000)]);
    n_admitted(&store, &set, 300).await;
    store.flush().await;
    let before = n_scripts(&server);
    assert_eq!(n_admitted(&store, &set, 20_000).await, 20_000);
    let n_trips = n_scripts(&server) - before;
    assert!(n_trips <= 20_000 / 100 * 5 / 4, "{n_trips} trips");
}

#[tokio::test]
async fn a_call_in_hand_allocates_nothing() {
    let server = RedisServer::start();
    let store = leased(&server, Lease::of(1_000).time(LONG)).await;
    let rules: [Rule; 3] = [
        Rate::per_day(1_000_000).into(),
        Window::new(1_000_000, DAY).into(),
        Quota::monthly(1_000_000).into(),
    ];
    let set = set_of("acme", rules);
    n_admitted(&store, &set, 600).await;
    let (scopes, cost) = (ScopeValues::default(), Cost::default());
    let call = LimitCall::new(&set, &scopes, &cost, tollgate::clock::Now::default());
    let mut answer = None;
    let allocated = allocation_counter::measure(|| answer = store.try_decide(&call));
    assert!(answer.is_some_and(|answer| answer.unwrap().is_admitted()));
    assert_eq!(allocated.count_total, 0);
}

#[tokio::test]
async fn a_tenant_that_calls_less_than_once_in_a_lease_is_counted_exactly() {
    let server = RedisServer::start();
    let clock = ManualClock::default();
    let store = with_clock(&server, Lease::of(100), &clock).await;
    let set = set_of("seldom", [Quota::monthly(1_000)]);
    for n in 1..20 {
        assert!(call(&store, &set).await.unwrap().is_admitted());
        assert_eq!(used(&server, &set).await, [n]);
        clock.advance(Duration::from_secs(1));
    }
}

#[tokio::test]
async fn what_is_unspent_goes_back_at_the_end_of_the_process_or_of_its_last_handle() {
    let server = RedisServer::start();
    for (number, is_dropped) in [false, true].into_iter().enumerate() {
        let store = leased(&server, Lease::of(50).time(LONG)).await;
        let set = set_of(
            &format!("ends-{number}"),
            [
                Rate::per_day(10_000).into(),
                Window::new(10_000, DAY).into(),
                Quota::monthly(10_000).into(),
            ] as [Rule; 3],
        );
        assert_eq!(n_admitted(&store, &set, 40).await, 40);
        store.flush().await;
        assert!(used(&server, &set).await.iter().all(|used| *used > 40));
        if is_dropped {
            drop(store);
            let mut patience = 200;
            while used(&server, &set).await != [40, 40, 40] {
                patience -= 1;
                assert!(patience > 0, "{:?}", used(&server, &set).await);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        } else {
            store.return_slices().await;
            assert_eq!(used(&server, &set).await, [40, 40, 40]);
            assert!(at_once(&store, &set, &Cost::default()).is_none());
            assert!(call(&store, &set).await.unwrap().is_admitted());
        }
    }
}

#[tokio::test]
async fn a_slice_that_lapses_is_not_served_and_goes_back_by_itself() {
    let server = RedisServer::start();
    let clock = ManualClock::default();
    let lease = Lease::of(50).time(Duration::from_millis(50));
    let store = with_clock(&server, lease, &clock).await;
    let set = set_of("acme", [Quota::monthly(10_000)]);
    assert_eq!(n_admitted(&store, &set, 40).await, 40);
    assert!(at_once(&store, &set, &Cost::default()).is_some());
    clock.advance(Duration::from_millis(50));
    assert!(at_once(&store, &set, &Cost::default()).is_none());
    let mut patience = 400;
    while used(&server, &set).await != [41] {
        patience -= 1;
        assert!(patience > 0, "{:?}", used(&server, &set).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_stepped_wall_clock_of_the_host_mints_nothing() {
    let server = RedisServer::start();
    let hour = Duration::from_secs(3_600);
    for (number, lease) in [None, Some(Lease::of(10))].into_iter().enumerate() {
        let clock = ManualClock::default();
        clock.set_wall(SystemClock::new().now().wall());
        let connector = RedisConnector::single(server.url()).unwrap();
        let connector = connector.response_timeout(Duration::from_secs(5));
        let builder = RedisLimits::builder(connector).clock(Arc::new(clock.clone()));
        let builder = match lease {
            Some(lease) => builder.leased(lease),
            None => builder,
        };
        let store = builder.connect().await.unwrap();
        let rules: [(Rule, &str); 2] = [
            (Rate::per_day(100).into(), "bucket"),
            (Quota::monthly(100).into(), "quota"),
        ];
        for (rule, unit) in rules {
            let set = set_of(&format!("stepped-{number}-{unit}"), [rule]);
            assert_eq!(n_admitted(&store, &set, 150).await, 100);
            let wall = clock.now().wall();
            for stepped in [wall.saturating_add(hour), wall.saturating_sub(hour), wall] {
                clock.set_wall(stepped);
                assert_eq!(n_admitted(&store, &set, 50).await, 0, "{unit}");
            }
        }
    }
}

#[tokio::test]
async fn a_changed_plan_takes_effect_at_once_and_takes_no_slice_along() {
    let server = RedisServer::start();
    let store = leased(&server, Lease::of(50).time(LONG)).await;
    let large = set_of("acme", [Quota::monthly(10_000)]);
    assert_eq!(n_admitted(&store, &large, 40).await, 40);
    assert!(at_once(&store, &large, &Cost::default()).is_some());
    let small = set_of("acme", [Quota::monthly(45)]);
    assert!(at_once(&store, &small, &Cost::default()).is_none());
    assert_eq!(n_admitted(&store, &small, 20).await, 4);
    let none = set_of("acme", [Quota::monthly(0)]);
    assert_eq!(n_admitted(&store, &none, 3).await, 0);
    // A bucket keeps its level in proportion, and what was in hand goes back by the numbers of its debit.
    let rates = [100, 1_000].map(|n| set_of("fast", [Rate::per_day(n)]));
    assert_eq!(n_admitted(&store, &rates[0], 20).await, 20);
    assert_eq!(n_admitted(&store, &rates[1], 1).await, 1);
    store.return_slices().await;
    assert_eq!(used(&server, &rates[1]).await, [201]);
}

#[tokio::test]
async fn a_refusal_holds_without_a_trip_for_calls_of_its_cost_until_it_ends() {
    let mut server = RedisServer::start();
    let clock = ManualClock::default();
    let store = with_clock(&server, Lease::of(10), &clock).await;
    let set = set_of("acme", [Quota::monthly(10)]);
    let cost = Cost::requests;
    let scopes = ScopeValues::default();
    assert!(
        ask(&store, &set, &scopes, &cost(5))
            .await
            .unwrap()
            .is_admitted()
    );
    assert!(at_once(&store, &set, &cost(8)).is_none());
    assert!(
        !ask(&store, &set, &scopes, &cost(8))
            .await
            .unwrap()
            .is_admitted()
    );
    let n_scripts_before = n_scripts(&server);
    for n in [8, 9, 10] {
        let refused = at_once(&store, &set, &cost(n)).expect("a leased refusal");
        let Outcome::Refused {
            retry_after, rule, ..
        } = refused.outcome
        else {
            panic!("{refused:?}");
        };
        assert_eq!(
            (rule, retry_after),
            (0, Some(Duration::from_secs(1))),
            "a lease time at most"
        );
        assert_eq!(refused.states[0].remaining, 5);
        assert!(refused.states[0].exceeded);
    }
    assert_eq!(n_scripts(&server), n_scripts_before);
    // Cheaper calls ask.
    assert!(
        ask(&store, &set, &scopes, &cost(5))
            .await
            .unwrap()
            .is_admitted()
    );
    server.kill();
    assert!(at_once(&store, &set, &cost(8)).is_some());
    clock.advance(Duration::from_secs(1));
    assert!(at_once(&store, &set, &cost(8)).is_none());
    let lost = ask(&store, &set, &scopes, &cost(8)).await;
    assert!(lost.is_err(), "{lost:?}");
}

#[tokio::test]
async fn a_refused_bucket_is_asked_again_when_a_unit_has_come_back() {
    let server = RedisServer::start();
    let clock = ManualClock::default();
    let store = with_clock(&server, Lease::of(10), &clock).await;
    let set = set_of("acme", [Rate::per_second(2).burst(3)]);
    assert_eq!(n_admitted(&store, &set, 6).await, 3);
    let refused = at_once(&store, &set, &Cost::default()).expect("a leased refusal");
    let Outcome::Refused {
        retry_after: Some(wait),
        ..
    } = refused.outcome
    else {
        panic!("{refused:?}");
    };
    assert!(wait <= Duration::from_millis(500), "{wait:?}");
    clock.advance(wait);
    assert!(at_once(&store, &set, &Cost::default()).is_none());
}

#[tokio::test]
async fn a_reset_voids_slices_and_refusals_and_a_grant_ends_refusals() {
    let server = RedisServer::start();
    let store = leased(&server, Lease::of(10).time(LONG)).await;
    let set = set_of("acme", [Quota::monthly(100)]);
    let scopes = ScopeValues::default();
    assert_eq!(n_admitted(&store, &set, 150).await, 100);
    assert!(at_once(&store, &set, &Cost::default()).is_some(), "refused");
    assert!(store.grant(&set, &scopes, "quota", 7).await.unwrap());
    assert_eq!(n_admitted(&store, &set, 20).await, 7);
    for _ in 0..3 {
        store.flush().await;
    }
    assert_eq!(store.reset(&set, &scopes, None).await.unwrap(), 1);
    assert_eq!(n_admitted(&store, &set, 50).await, 50);
    // A slice on its way at a reset is void, too, wherever its units came from: none is.
    for _ in 0..3 {
        store.flush().await;
    }
    assert_eq!(store.reset(&set, &scopes, None).await.unwrap(), 1);
    assert!(at_once(&store, &set, &Cost::default()).is_none(), "void");
    assert_eq!(n_admitted(&store, &set, 150).await, 100);
    store.return_slices().await;
    assert_eq!(used(&server, &set).await, [100]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_forgets_its_scripts_all_the_time_loses_no_unit() {
    let server = RedisServer::start();
    let stores = several(&server, 4, Lease::of(10).time(LONG)).await;
    let is_done = Arc::new(AtomicBool::new(false));
    let flushing = std::thread::spawn({
        let (mut client, is_done) = (server.client(), Arc::clone(&is_done));
        move || {
            while !is_done.load(Ordering::Relaxed) {
                let flush = redis::cmd("SCRIPT").arg("FLUSH").query(&mut client);
                let () = flush.expect("flushed");
            }
        }
    });
    for round in 0..10 {
        let set = set_of(&format!("flushed-{round}"), [Quota::monthly(200)]);
        let tasks: Vec<_> = (0..400)
            .map(|n| {
                let (store, set) = (stores[n % 4].clone(), Arc::clone(&set));
                tokio::spawn(async move { call(&store, &set).await.unwrap().is_admitted() })
            })
            .collect();
        let mut n_admitted = 0;
        for task in tasks {
            n_admitted += u64::from(task.await.unwrap());
        }
        assert!(n_admitted <= 200);
        for store in &stores {
            store.return_slices().await;
        }
        assert_eq!(used(&server, &set).await, [n_admitted]);
    }
    is_done.store(true, Ordering::Relaxed);
    flushing.join().expect("no panic");
}

#[tokio::test]
async fn a_server_that_is_gone_leaves_what_is_in_hand_until_its_lease_ends() {
    let mut server = RedisServer::start();
    let clock = ManualClock::default();
    let store = with_clock(&server, Lease::of(20), &clock).await;
    let set = set_of("acme", [Quota::monthly(10_000)]);
    assert_eq!(n_admitted(&store, &set, 40).await, 40);
    store.flush().await;
    server.kill();
    assert!(call(&store, &set).await.unwrap().is_admitted());
    assert!(call(&store, &set).await.unwrap().is_admitted());
    clock.advance(Duration::from_secs(1));
    let failed = call(&store, &set).await;
    assert!(
        matches!(
            failed,
            Err(LimitStoreError::Unavailable(_) | LimitStoreError::Indeterminate(_))
        ),
        "{failed:?}"
    );
    server.restart();
    let mut patience = 400;
    while call(&store, &set).await.is_err() {
        patience -= 1;
        assert!(patience > 0, "the store does not recover");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

#[tokio::test]
async fn a_layer_serves_what_is_in_hand_while_its_breaker_is_open() {
    let mut server = RedisServer::start();
    let clock = ManualClock::default();
    let store = with_clock(&server, Lease::of(50), &clock).await;
    let rule = Quota::monthly(10_000).on_store_failure(OnStoreFailure::Deny);
    let busy = LimitLayer::new(store, [rule]).unwrap();
    let busy = busy.by(|head| {
        head.headers()
            .get("x-team")?
            .to_str()
            .ok()
            .map(str::to_owned)
    });
    let answer =
        service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(String::new())));
    let service = busy.deadline(Duration::from_secs(5)).layer(answer);
    let status = async |team: &str| {
        let request = Request::builder().header("x-team", team).body(()).unwrap();
        service.clone().oneshot(request).await.unwrap().status()
    };
    for _ in 0..40 {
        assert_eq!(status("busy").await, StatusCode::OK);
    }
    server.kill();
    // Others have nothing in hand: enough of them open the breaker.
    for n in 0..8 {
        assert_eq!(
            status(&format!("other-{n}")).await,
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(status("busy").await, StatusCode::OK);
    }
    clock.advance(Duration::from_secs(1));
    assert_eq!(status("busy").await, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn settlements_of_leased_charges_count_whole() {
    let server = RedisServer::start();
    let store = leased(&server, Lease::of(20).time(LONG)).await;
    let set = set_of(
        "acme",
        [
            Rate::per_day(10_000).named("rate"),
            Quota::monthly(10_000).named("quota"),
        ],
    );
    let (scopes, cost) = (ScopeValues::default(), Cost::default());
    let settle = |decision: &Decision, settlement: &Settlement| {
        let now = tollgate::clock::Now::default();
        let call = LimitCall::new(&set, &scopes, &cost, now);
        store.settle(&call, &decision.receipt, settlement);
        // Once is enough.
        store.settle(&call, &decision.receipt, settlement);
    };
    let mut expected = [0, 0];
    for n in 0..200 {
        let decision = call(&store, &set).await.unwrap();
        let (settlement, charges) = match n % 5 {
            0 => (Settlement::Refund, [1, 0]),
            1 => (Settlement::Cancel, [0, 0]),
            2 => (Settlement::Actual(Cost::requests(7)), [7, 7]),
            3 => (Settlement::Waive(Cost::requests(30)), [30, 0]),
            _ => (Settlement::Actual(Cost::requests(1)), [1, 1]),
        };
        settle(&decision, &settlement);
        expected = [expected[0] + charges[0], expected[1] + charges[1]];
    }
    store.return_slices().await;
    assert_eq!(used(&server, &set).await, expected);
}

#[tokio::test]
async fn a_call_after_a_settlement_sees_what_came_back() {
    let server = RedisServer::start();
    let store = leased(&server, Lease::of(10).time(LONG)).await;
    let set = set_of("acme", [Quota::monthly(1)]);
    let (scopes, cost) = (ScopeValues::default(), Cost::default());
    let first = call(&store, &set).await.unwrap();
    assert!(!call(&store, &set).await.unwrap().is_admitted());
    let now = tollgate::clock::Now::default();
    let settled = LimitCall::new(&set, &scopes, &cost, now);
    store.settle(&settled, &first.receipt, &Settlement::Refund);
    assert!(call(&store, &set).await.unwrap().is_admitted());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_that_leave_at_any_moment_lose_no_unit() {
    let server = RedisServer::start();
    let store = leased(&server, Lease::of(7).time(LONG)).await;
    let set = set_of(
        "leavers",
        [
            Quota::monthly(100_000).named("month"),
            Rate::per_day(100_000).named("rate"),
        ],
    );
    let tasks: Vec<_> = (0..800_u64)
        .map(|n| {
            let (store, set) = (store.clone(), Arc::clone(&set));
            let mut task = Box::pin(async move { call(&store, &set).await });
            tokio::spawn(async move {
                for _ in 0..n % 5 {
                    let patience = Duration::from_micros(n % 300);
                    if tokio::time::timeout(patience, &mut task).await.is_ok() {
                        return 1_u64;
                    }
                }
                0
            })
        })
        .collect();
    let mut n_answered = 0;
    for task in tasks {
        n_answered += task.await.expect("no panic");
    }
    // Trips of callers that have left may still be on their way.
    let mut patience = 100;
    loop {
        store.return_slices().await;
        let used = used(&server, &set).await;
        if used == [n_answered, n_answered] {
            return;
        }
        patience -= 1;
        assert!(patience > 0, "{used:?} of {n_answered}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_call_of_many_rules_takes_of_all_or_of_none() {
    let server = RedisServer::start();
    let stores = several(&server, 3, Lease::of(10).time(LONG)).await;
    let rules = || {
        [
            Quota::monthly(150).named("small"),
            Window::new(10_000, DAY).named("large"),
            Concurrency::new(100_000).named("slots"),
        ]
    };
    // With a rule that is never leased, and without.
    for n_rules in [2, 3] {
        let tenant = format!("whole-{n_rules}");
        let set = set_of(&tenant, rules().into_iter().take(n_rules));
        let tasks: Vec<_> = (0..600)
            .map(|n| {
                let (store, set) = (stores[n % 3].clone(), Arc::clone(&set));
                tokio::spawn(async move { call(&store, &set).await.unwrap().is_admitted() })
            })
            .collect();
        let mut n_admitted = 0;
        for task in tasks {
            n_admitted += u64::from(task.await.unwrap());
        }
        for store in &stores {
            store.return_slices().await;
        }
        let expected = vec![n_admitted; n_rules];
        assert_eq!(used(&server, &set).await, expected);
        assert!(n_admitted <= 150 && n_admitted + 30 >= 150, "{n_admitted}");
    }
}

#[tokio::test]
async fn overage_is_marked_on_exactly_the_calls_above_the_limit_and_a_threshold_is_told_once() {
    let server = RedisServer::start();
    let stores = several(&server, 2, Lease::of(10).time(LONG)).await;
    let overage = set_of("pays", [Quota::monthly(20).overage()]);
    let mut marked = Vec::new();
    for n in 0..40 {
        let decision = call(&stores[n % 2], &overage).await.unwrap();
        marked.push(matches!(
            decision.outcome,
            Outcome::Admitted { overage: true }
        ));
    }
    assert_eq!(marked, [[false; 20], [true; 20]].concat());
    let warned = set_of("warned", [Quota::monthly(200).thresholds([50, 100])]);
    let mut crossings = Vec::new();
    for n in 0..200 {
        let decision = call(&stores[n % 2], &warned).await.unwrap();
        assert!(decision.is_admitted());
        crossings.extend(decision.crossings.iter().map(|crossing| crossing.percent));
    }
    assert_eq!(crossings, [50, 100]);
}

#[tokio::test]
async fn what_is_told_to_be_left_is_never_more_than_was_seen() {
    let server = RedisServer::start();
    let (store, other) = (
        leased(&server, Lease::of(20).time(LONG)).await,
        limits(&server).await,
    );
    let set = set_of("acme", [Quota::monthly(1_000)]);
    let mut last = 1_000;
    for n in 1..=300 {
        let decision = call(&store, &set).await.unwrap();
        let remaining = decision.states[0].remaining;
        assert!(remaining < last, "{remaining} after {last}");
        assert!(remaining <= 1_000 - n);
        last = remaining;
        if n % 3 == 0 {
            call(&other, &set).await.unwrap();
        }
    }
}

#[tokio::test]
async fn routes_addresses_and_values_have_slices_of_their_own() {
    use tollgate::limit::Scope;
    let server = RedisServer::start();
    let store = leased(&server, Lease::of(10).time(LONG)).await;
    let set = set_of(
        "acme",
        [
            Rate::per_day(50).named("route").scope(Scope::Route),
            Rate::per_day(60)
                .named("team")
                .scope(Scope::Custom("team".into())),
            Rate::per_day(1_000).named("chat").route("/chat"),
        ],
    );
    let mut n_admitted = Vec::new();
    for (route, team) in [("/a", "x"), ("/b", "x"), ("/chat", "y")] {
        let scopes = ScopeValues::default().route(route).custom("team", team);
        let mut n = 0;
        for _ in 0..100 {
            let decision = ask(&store, &set, &scopes, &Cost::default()).await.unwrap();
            n += u64::from(decision.is_admitted());
        }
        n_admitted.push(n);
    }
    assert_eq!(n_admitted, [50, 10, 50]);
}
