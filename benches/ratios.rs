//! The cost of a check beside governor's, in one interleaved run: `cargo bench --bench ratios`.
//!
//! Each row alternates the two sides round by round, so that a machine that slows down slows both, and prints
//! the median of the rounds' ratios.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    hint::black_box,
    num::NonZeroU32,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    thread,
    time::Instant,
};

use http::{Request, Response};
use tollgate::{
    Tollgate,
    clock::{Clock, SystemClock},
    id::TenantId,
    identity::NewKey,
    limit::{
        Cost, LimitCall, LimitSet, LimitStore, MemoryLimits, Owner, Quota, Rate, RuleSet,
        ScopeValues,
    },
    plan::Plan,
    sink::{Filter, MemorySink},
};
use tower::{Layer, Service, service_fn};

const ROUNDS: usize = 15;
const GENEROUS: u32 = 1_000_000_000;

type Governor = governor::DefaultKeyedRateLimiter<String>;

fn governor_limiter() -> Governor {
    Governor::keyed(governor::Quota::per_second(
        NonZeroU32::new(GENEROUS).expect("not zero"),
    ))
}

fn names(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("tenant-{i}")).collect()
}

fn sets(names: &[String]) -> Vec<Arc<LimitSet>> {
    let rules = RuleSet::compile([Rate::per_second(GENEROUS.into())]).expect("a legal rule");
    let set = |name| {
        LimitSet::new(
            Owner::tenant(TenantId::new(name).expect("a legal name")),
            Arc::clone(&rules),
        )
    };
    names.iter().map(|name| Arc::new(set(name))).collect()
}

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

/// Polls a future that is ready at once, as it is when nothing has to wait.
fn finish<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("nothing here waits"),
    }
}

fn answer(_: Request<String>) -> Ready<Result<Response<String>, Infallible>> {
    ready(Ok(Response::new(String::new())))
}

/// A gate with a thousand keys, wrapped around a service that does nothing.
fn gated() -> (
    impl Service<Request<String>, Error = Infallible>,
    Vec<String>,
) {
    let plan = Plan::new("pro")
        .rule(Rate::per_second(GENEROUS.into()))
        .rule(Quota::monthly(1 << 50));
    let gate = Tollgate::builder()
        .plans([plan])
        .usage(Filter::new(MemorySink::new(), |_: &_| false))
        .build()
        .expect("a legal gate");
    let keys = (0..1_000).map(|i| {
        let new = NewKey::for_tenant(format!("tenant-{i}")).plan("pro");
        finish(gate.keys().issue(new))
            .expect("a memory store")
            .key
            .expose()
            .to_owned()
    });
    (gate.layer().layer(service_fn(answer)), keys.collect())
}

fn check(
    limits: &MemoryLimits,
    clock: &SystemClock,
    set: &Arc<LimitSet>,
    scopes: &ScopeValues,
    cost: &Cost,
) {
    let decision = limits.try_decide(&LimitCall::new(set, scopes, cost, clock.now()));
    assert!(black_box(decision).is_some_and(|decision| decision.is_ok_and(|it| it.is_admitted())));
}

fn main() {
    let (clock, scopes, cost) = (SystemClock::new(), ScopeValues::default(), Cost::default());
    println!("| row | tollgate | governor 0.10 keyed check | ratio |\n|---|---|---|---|");

    for (title, n) in [
        ("limiter check, hot key", 1),
        ("limiter check, 100 k keys", 100_000),
    ] {
        let (names, limits, theirs) = (names(n), MemoryLimits::new(), governor_limiter());
        let sets = sets(&names);
        // A stride that visits every key, in an order that caches do not foresee.
        let at = |i: u64| (i.wrapping_mul(7_919) % n as u64) as usize;
        row(
            title,
            || {
                time(200_000, |i| {
                    check(&limits, &clock, &sets[at(i)], &scopes, &cost)
                })
            },
            || {
                time(200_000, |i| {
                    assert!(black_box(theirs.check_key(&names[at(i)])).is_ok())
                })
            },
        );
    }

    let (names, limits, theirs) = (names(1), MemoryLimits::new(), governor_limiter());
    let sets = sets(&names);
    row(
        "limiter check, hot key, 2 threads",
        || {
            time_on_two(200_000, |_| {
                check(&limits, &clock, &sets[0], &scopes, &cost)
            })
        },
        || {
            time_on_two(200_000, |_| {
                assert!(black_box(theirs.check_key(&names[0])).is_ok())
            })
        },
    );

    let (mut service, keys) = gated();
    row(
        "the whole gate: identify, two rules, meter; 1 k keys",
        || {
            time(50_000, |i| {
                let key = &keys[i as usize % keys.len()];
                let request = Request::get("/")
                    .header("x-api-key", key)
                    .body(String::new());
                let response = finish(service.call(request.expect("a legal request")));
                assert!(black_box(response).is_ok());
            })
        },
        || {
            time(200_000, |_| {
                assert!(black_box(theirs.check_key(&names[0])).is_ok())
            })
        },
    );
}
