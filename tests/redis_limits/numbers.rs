//! Numbers near 2^53, and clocks that step: the store agrees with the one in memory, or gives nothing away.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use tollgate::{
    clock::{Clock, ManualClock, Now, Timestamp},
    limit::{
        Cost, Decision, LimitCall, LimitSet, LimitStore, MemoryLimits, Quota, Rate, RedisLimits,
        Rule, RuleSet, ScopeValues, Settlement, Window,
    },
    redis_support::RedisConnector,
};

use super::{limits, set_of};
use crate::common::redis::RedisServer;

const DAY: Duration = Duration::from_secs(86_400);

async fn at_given_times(server: &RedisServer) -> Arc<RedisLimits> {
    let patience = Duration::from_secs(10);
    let connector = RedisConnector::single(server.url())
        .unwrap()
        .connect_timeout(patience)
        .response_timeout(patience);
    let builder = RedisLimits::builder(connector)
        .dangerous_time_of_calls()
        .margin(Duration::from_secs(3_600));
    Arc::new(builder.connect().await.unwrap())
}

async fn decide(limits: &Arc<RedisLimits>, set: &Arc<LimitSet>, cost: &Cost, now: Now) -> Decision {
    let scopes = ScopeValues::default();
    let call = LimitCall::new(set, &scopes, cost, now);
    Arc::clone(limits).decide(call.to_owned()).await.unwrap()
}

/// A number of any size up to 2^`bits`.
fn size(bits: u32) -> impl Strategy<Value = u64> {
    (0..=bits, any::<u64>()).prop_map(move |(bits, number)| (number & ((1 << bits) - 1)).max(1))
}

/// A bucket whose numbers may be near the largest that compile.
fn bucket() -> impl Strategy<Value = Rule> {
    (size(42), size(45), size(53), any::<bool>()).prop_map(|(n, period, burst, warns)| {
        // Whatever does not compile is made smaller until it does.
        let (mut period, mut burst) = (period, burst);
        loop {
            let rate = Rate::per(n, Duration::from_micros(period)).burst(burst);
            if RuleSet::compile([rate]).is_ok() {
                let rule = rate.named("rule").thresholds([50, 100]);
                return if warns { rule.warn() } else { rule };
            }
            (period, burst) = ((period / 2).max(1), (burst / 2).max(1));
        }
    })
}

fn window() -> impl Strategy<Value = (Rule, Rule)> {
    (size(50), 1..=20_u32, size(52), size(52)).prop_map(|(length, cells, one, other)| {
        let rule = |limit: u64| {
            let cells = NonZeroU32::new(cells).unwrap();
            let length = Duration::from_micros(length.max(u64::from(cells.get())));
            Window::new(limit.min(Cost::MAX), length)
                .cells(cells)
                .smooth()
                .named("rule")
        };
        (rule(one), rule(other))
    })
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Call { other_plan: bool, cost: u64 },
    Pass(u64),
    Settle(u64),
}

/// Times and sums stay below 2^53, where a count in Redis ends.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (any::<bool>(), prop_oneof![size(4), size(53)])
            .prop_map(|(other_plan, cost)| Step::Call { other_plan, cost }),
        2 => size(47).prop_map(Step::Pass),
        1 => size(46).prop_map(Step::Settle),
    ];
    proptest::collection::vec(step, 1..40)
}

/// Plays one history on both stores and compares every answer.
async fn plays_alike(limits: &Arc<RedisLimits>, tenant: &str, plans: [Rule; 2], steps: &[Step]) {
    let sets = || plans.clone().map(|rule| set_of(tenant, [rule]));
    let (redis_sets, memory_sets) = (sets(), sets());
    let memory = Arc::new(MemoryLimits::new());
    let clock = ManualClock::default();
    let mut open = Vec::new();
    for step in steps {
        match *step {
            Step::Pass(micros) => clock.advance(Duration::from_micros(micros)),
            Step::Call { other_plan, cost } => {
                let (plan, cost) = (usize::from(other_plan), Cost::requests(cost));
                let got = decide(limits, &redis_sets[plan], &cost, clock.now()).await;
                let scopes = ScopeValues::default();
                let call = LimitCall::new(&memory_sets[plan], &scopes, &cost, clock.now());
                let expected = memory.try_decide(&call).unwrap().unwrap();
                assert_eq!(got.outcome, expected.outcome, "{plans:?} {steps:?}");
                assert_eq!(got.states, expected.states, "{plans:?} {steps:?}");
                assert_eq!(got.crossings, expected.crossings, "{plans:?} {steps:?}");
                let amounts = |decision: &Decision| {
                    decision
                        .receipt
                        .holds()
                        .iter()
                        .map(|hold| hold.amount)
                        .collect::<Vec<_>>()
                };
                assert_eq!(amounts(&got), amounts(&expected), "{plans:?} {steps:?}");
                if got.is_admitted() {
                    open.push((plan, got.receipt, expected.receipt));
                }
            }
            Step::Settle(actual) => {
                let Some((plan, got, expected)) = open.pop() else {
                    continue;
                };
                let settlement = Settlement::Actual(Cost::requests(actual));
                let (scopes, cost) = (ScopeValues::default(), Cost::default());
                let call = LimitCall::new(&redis_sets[plan], &scopes, &cost, clock.now());
                limits.settle(&call, &got, &settlement);
                let call = LimitCall::new(&memory_sets[plan], &scopes, &cost, clock.now());
                memory.settle(&call, &expected, &settlement);
            }
        }
    }
}

#[tokio::test]
async fn redis_and_memory_agree_to_the_tick_at_the_largest_numbers() {
    let server = RedisServer::start();
    let limits = at_given_times(&server).await;
    let mut runner = TestRunner::new(Config::default());
    for number in 0..300 {
        let plans = (bucket(), bucket())
            .new_tree(&mut runner)
            .unwrap()
            .current();
        let steps = steps().new_tree(&mut runner).unwrap().current();
        plays_alike(&limits, &format!("bucket-{number}"), plans.into(), &steps).await;
        let plans = window().new_tree(&mut runner).unwrap().current();
        plays_alike(&limits, &format!("window-{number}"), plans.into(), &steps).await;
    }
}

#[tokio::test]
async fn a_server_clock_that_steps_mints_nothing_and_locks_nobody_out() {
    let server = RedisServer::start();
    let limits = at_given_times(&server).await;
    let hour = 3_600_000_000_u64;
    let start = 1_800_000_000_000_000_u64;
    let at = |micros: u64| Now::new(Timestamp::from_unix_micros(micros), micros);
    let one = Cost::default();
    let minute = Duration::from_secs(60);
    for (name, rule) in [
        ("bucket", Rule::from(Rate::per(10, minute))),
        ("window", Window::new(10, minute).into()),
        ("log", Window::new(10, minute).exact_log().into()),
    ] {
        let set = set_of(name, [rule]);
        let calls = async |now: u64| {
            let mut n_admitted = 0;
            for _ in 0..30 {
                n_admitted += u32::from(decide(&limits, &set, &one, at(now)).await.is_admitted());
            }
            n_admitted
        };
        assert_eq!(calls(start).await, 10, "{name}");
        // Back by a little and by much: nothing comes back.
        assert_eq!(calls(start - 10_000_000).await, 0, "{name}");
        assert_eq!(calls(start - hour).await, 0, "{name}");
        // And it comes back at the latest after two refills or windows of the new time.
        let n = calls(start - hour + 130_000_000).await;
        assert!((1..=10).contains(&n), "{name}: {n}");
        // Ahead by an hour: a full limit, once.
        assert_eq!(calls(start + hour).await, 10, "{name}");
        assert_eq!(calls(start + hour + 1).await, 0, "{name}");
    }
    // A quota whose clock goes back stays in the period it had reached.
    let set = set_of("quota", [Quota::daily(10)]);
    for _ in 0..10 {
        assert!(decide(&limits, &set, &one, at(start)).await.is_admitted());
    }
    assert!(
        !decide(&limits, &set, &one, at(start - hour))
            .await
            .is_admitted()
    );
    assert!(
        !decide(&limits, &set, &one, at(start - 24 * hour))
            .await
            .is_admitted()
    );
}

#[tokio::test]
async fn the_clock_of_the_host_changes_nothing() {
    let server = RedisServer::start();
    let limits = Arc::new(limits(&server).await);
    let set = set_of(
        "acme",
        [
            Quota::monthly(20).named("month"),
            Quota::hourly(20).named("hour"),
            Rate::per_day(20).named("rate"),
            Window::new(20, DAY).named("window"),
        ],
    );
    let real = tollgate::clock::SystemClock::new()
        .now()
        .wall()
        .as_unix_micros();
    let mut n_admitted = 0;
    for step in 0..40_u64 {
        // Ahead and back by an hour, forty days, and to the beginning of time.
        let wall = match step % 5 {
            0 => real,
            1 => real + 3_600_000_000,
            2 => real - 3_600_000_000,
            3 => real + 40 * 86_400_000_000,
            _ => 0,
        };
        let now = Now::new(Timestamp::from_unix_micros(wall), step * 1_000_000_000_000);
        let decision = decide(&limits, &set, &Cost::default(), now).await;
        n_admitted += u32::from(decision.is_admitted());
        let window = decision.states[0].window().unwrap();
        assert!(window >= 28 * DAY && window <= 31 * DAY);
    }
    assert_eq!(n_admitted, 20);
}
