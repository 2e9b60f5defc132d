//! The bounds of leased mode, on random histories of several stores.

use std::{sync::Arc, time::Duration};

use proptest::prelude::*;
use tollgate::{
    clock::{Clock, ManualClock},
    limit::{Cost, Lease, LimitCall, LimitStore, Quota, Rate, RedisLimits, ScopeValues, Window},
    redis_support::RedisConnector,
};

use super::set_of;
use crate::common::redis::RedisServer;

const SECOND: u64 = 1_000_000;

#[derive(Clone, Copy, Debug)]
enum Step {
    Advance(u64),
    Call { store: usize, cost: u64 },
    ReturnSlices(usize),
}

#[derive(Clone, Debug)]
struct History {
    n_stores: usize,
    units: u64,
    lease_micros: u64,
    burst: u64,
    per_second: u64,
    window_limit: u64,
    quota: u64,
    steps: Vec<Step>,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (1..300_000_u64).prop_map(Step::Advance),
        1 => (1..3 * SECOND).prop_map(Step::Advance),
        30 => (0..8_usize, prop_oneof![8 => Just(1), 1 => 2..12_u64])
            .prop_map(|(store, cost)| Step::Call { store, cost }),
        1 => (0..8_usize).prop_map(Step::ReturnSlices),
    ]
}

fn history() -> impl Strategy<Value = History> {
    (
        (1..6_usize, 1..30_u64, 20_000..2 * SECOND),
        (1..120_u64, 1..100_u64, 1..200_u64, 50..400_u64),
        proptest::collection::vec(step(), 100..400),
    )
        .prop_map(
            |((n_stores, units, lease_micros), (burst, per_second, window_limit, quota), steps)| {
                History {
                    n_stores,
                    units,
                    lease_micros,
                    burst,
                    per_second,
                    window_limit,
                    quota,
                    steps,
                }
            },
        )
}

/// What was admitted: when, and how many units.
#[derive(Debug, Default)]
struct Admitted(Vec<(u64, u64)>);

impl Admitted {
    fn total(&self) -> u64 {
        self.0.iter().map(|(_, cost)| cost).sum()
    }

    /// The most units in any span, less what `allowed` gives it.
    fn check(&self, allowed: impl Fn(u64) -> u64) -> Result<(), TestCaseError> {
        for (first, (from, _)) in self.0.iter().enumerate() {
            let mut units = 0;
            for (at, cost) in &self.0[first..] {
                units += cost;
                let most = allowed(at - from);
                prop_assert!(units <= most, "{units} of {most} in {} us", at - from);
            }
        }
        Ok(())
    }
}

struct World {
    stores: Vec<RedisLimits>,
    clock: ManualClock,
}

impl World {
    async fn of(server: &RedisServer, history: &History) -> Self {
        let clock = ManualClock::default();
        // A time of zero would be the server's.
        clock.advance(Duration::from_secs(1));
        let mut stores = Vec::new();
        for _ in 0..history.n_stores {
            let patience = Duration::from_secs(10);
            let connector = RedisConnector::single(server.url())
                .unwrap()
                .connect_timeout(patience)
                .response_timeout(patience);
            let lease = Lease::of(history.units).time(Duration::from_micros(history.lease_micros));
            let limits = RedisLimits::builder(connector)
                .leased(lease)
                .clock(Arc::new(clock.clone()))
                .dangerous_time_of_calls()
                .margin(Duration::from_secs(3_600));
            stores.push(limits.connect().await.unwrap());
        }
        Self { stores, clock }
    }

    /// Waits for slices that are on their way: they bring the time of their start, and a server's clock never goes
    /// back by more than a window.
    async fn at_rest(&self) {
        for store in &self.stores {
            store.flush().await;
        }
    }

    /// Runs the history under the one rule, and says what was admitted and whether a call was refused too early.
    async fn run<R: Into<tollgate::limit::Rule> + Clone>(
        &self,
        tenant: &str,
        rule: R,
        history: &History,
        mut refused: impl FnMut(&Admitted, u64) -> Result<(), TestCaseError>,
    ) -> Result<Admitted, TestCaseError> {
        let sets: Vec<_> = self
            .stores
            .iter()
            .map(|_| set_of(tenant, [rule.clone()]))
            .collect();
        let scopes = ScopeValues::default();
        let mut admitted = Admitted::default();
        for step in &history.steps {
            match *step {
                Step::Advance(micros) => {
                    self.at_rest().await;
                    self.clock.advance(Duration::from_micros(micros));
                }
                Step::ReturnSlices(store) => {
                    self.stores[store % self.stores.len()].return_slices().await;
                }
                Step::Call { store, cost } => {
                    let place = store % self.stores.len();
                    let (store, now) = (&self.stores[place], self.clock.now());
                    let units = Cost::requests(cost);
                    let call = LimitCall::new(&sets[place], &scopes, &units, now);
                    let decision = match store.try_decide(&call) {
                        Some(answer) => answer.unwrap(),
                        None => Arc::new(store.clone())
                            .decide(call.to_owned())
                            .await
                            .unwrap(),
                    };
                    if decision.is_admitted() {
                        admitted.0.push((now.monotonic_micros(), cost));
                    } else {
                        refused(&admitted, cost)?;
                    }
                }
            }
        }
        for store in &self.stores {
            store.return_slices().await;
        }
        Ok(admitted)
    }
}

#[test]
fn no_history_admits_more_than_the_bounds_or_refuses_earlier() {
    let server = RedisServer::start();
    // One thread: a slice's time is read and sent before the history goes on.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let number = std::cell::Cell::new(0);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    });
    let checked = runner.run(&history(), |history| {
        number.set(number.get() + 1);
        runtime.block_on(check(&server, &history, number.get()))
    });
    if let Err(error) = checked {
        panic!("{error}");
    }
}

async fn check(server: &RedisServer, history: &History, number: u32) -> Result<(), TestCaseError> {
    let world = World::of(server, history).await;
    let in_hand = history.n_stores as u64 * history.units;
    let accept = |_: &Admitted, _: u64| Ok(());

    let rate = Rate::per_second(history.per_second).burst(history.burst);
    let bucket = world
        .run(&format!("bucket-{number}"), rate, history, accept)
        .await?;
    // b + r W + P N, rounded down. The other term of the bound, r L, is that of slices that go back when they lapse; by
    // a clock that is moved by hand they go back later.
    let lent = in_hand * SECOND;
    bucket.check(|span| (history.burst * SECOND + history.per_second * span + lent) / SECOND)?;

    let window = Window::new(history.window_limit, Duration::from_secs(2));
    let window = world
        .run(&format!("window-{number}"), window, history, accept)
        .await?;
    window.check(|span| {
        if span < 2 * SECOND {
            history.window_limit
        } else {
            u64::MAX
        }
    })?;

    let limit = history.quota;
    let month = Quota::monthly(limit);
    let quota = world
        .run(
            &format!("quota-{number}"),
            month,
            history,
            |admitted, cost| {
                let total = admitted.total();
                prop_assert!(
                    total + cost + in_hand > limit,
                    "{cost} refused after {total} of {limit} with {in_hand} in hand"
                );
                Ok(())
            },
        )
        .await?;
    prop_assert!(quota.total() <= limit);
    // What was unspent has gone back: Redis has what was admitted, and nothing else.
    let set = set_of(&format!("quota-{number}"), [Quota::monthly(limit)]);
    let states = world.stores[0]
        .peek(&set, &ScopeValues::default())
        .await
        .unwrap();
    prop_assert_eq!(limit - states[0].remaining, quota.total());
    Ok(())
}
