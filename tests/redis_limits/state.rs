//! What stands in Redis, and what does not.

use std::{sync::Arc, time::Duration};

use tollgate::{
    clock::{Clock, SystemClock},
    limit::{
        Concurrency, Cost, LimitCall, LimitSet, LimitStore, LimitStoreError, LostQuota, Outcome,
        Quota, QuotaTotals, Rate, RedisLimits, Rule, Scope, ScopeValues, Settlement, Unit, Window,
    },
    redis_support::RedisConnector,
};

use super::{ask, call, limits, set_of};
use crate::common::redis::RedisServer;

const HOUR: Duration = Duration::from_secs(3_600);

fn every_kind(limit: u64) -> Vec<Rule> {
    vec![
        Rate::per_hour(limit).thresholds([50]),
        Window::new(limit, HOUR).thresholds([50]),
        Window::new(limit, HOUR).exact_log().named("log"),
        Quota::monthly(limit).into(),
        Concurrency::new(limit)
            .lease(Duration::from_secs(600))
            .into(),
    ]
}

/// The serialised value of each key but the epoch, and when it goes.
fn contents(server: &RedisServer) -> Vec<(String, Vec<u8>, i64)> {
    let mut keys: Vec<String> = server.query(&["KEYS", "*"]);
    keys.retain(|key| !key.ends_with("epoch"));
    keys.sort();
    keys.into_iter()
        .map(|key| {
            let value = server.query(&["DUMP", &key]);
            let goes = server.query(&["PEXPIRETIME", &key]);
            (key, value, goes)
        })
        .collect()
}

#[tokio::test]
async fn a_refused_call_and_one_of_cost_zero_write_nothing() {
    let server = RedisServer::start();
    let limits = limits(&server).await;
    let set = set_of("acme", every_kind(2));
    let free = Cost::requests(0);
    assert!(
        ask(&limits, &set, &ScopeValues::default(), &free)
            .await
            .unwrap()
            .is_admitted()
    );
    assert_eq!(
        contents(&server),
        [],
        "nothing was used, so nothing is kept"
    );
    for _ in 0..2 {
        assert!(call(&limits, &set).await.unwrap().is_admitted());
    }
    let before = contents(&server);
    assert_eq!(before.len(), 1, "one hash for one limit key");
    assert!(!call(&limits, &set).await.unwrap().is_admitted());
    assert!(
        ask(&limits, &set, &ScopeValues::default(), &free)
            .await
            .unwrap()
            .is_admitted()
    );
    assert_eq!(
        limits
            .peek(&set, &ScopeValues::default())
            .await
            .unwrap()
            .len(),
        5
    );
    assert_eq!(contents(&server), before);
}

#[tokio::test]
async fn every_key_goes_when_it_is_not_needed_any_more_and_never_before() {
    let server = RedisServer::start();
    let limits = limits(&server).await;
    let lifetime = |server: &RedisServer| {
        let keys: Vec<String> = server.query(&["KEYS", "tg:1:{*"]);
        assert_eq!(keys.len(), 1);
        server.query::<i64>(&["PTTL", &keys[0]])
    };
    for (tenant, rule, least, most) in [
        (
            "bucket",
            Rule::from(Rate::per_hour(60).burst(10)),
            60_000,
            60_000,
        ),
        (
            "window",
            Window::new(10, HOUR).into(),
            3_600_000,
            3_600_000 + 360_000,
        ),
        (
            "log",
            Window::new(10, HOUR).exact_log().into(),
            3_600_000,
            3_600_000,
        ),
        ("quota", Quota::hourly(10).into(), 0, 3_600_000),
        (
            "slots",
            Concurrency::new(10).lease(HOUR).into(),
            3_600_000,
            3_600_000,
        ),
    ] {
        let () = server.query(&["FLUSHALL"]);
        let set = set_of(tenant, [rule]);
        assert!(call(&limits, &set).await.unwrap().is_admitted());
        let ttl = lifetime(&server);
        assert!((least..=most + 10_000).contains(&ttl), "{tenant}: {ttl} ms");
        // Whoever makes it stay forever is corrected by the next call.
        let keys: Vec<String> = server.query(&["KEYS", "tg:1:{*"]);
        let () = server.query(&["PERSIST", &keys[0]]);
        assert!(call(&limits, &set).await.unwrap().is_admitted());
        assert!(lifetime(&server) > 0, "{tenant}");
    }
    // A rule that needs a minute does not cut short the lifetime of one that needs an hour.
    let () = server.query(&["FLUSHALL"]);
    let both = |rules: Vec<Rule>| set_of("both", rules);
    let long: Rule = Window::new(10, HOUR).into();
    assert!(
        call(&limits, &both(vec![long]))
            .await
            .unwrap()
            .is_admitted()
    );
    let before = lifetime(&server);
    assert!(
        call(&limits, &both(vec![Rate::per_second(5).into()]))
            .await
            .unwrap()
            .is_admitted()
    );
    assert!(lifetime(&server) > before - 5_000);
}

#[tokio::test]
async fn a_value_that_is_no_count_fails_its_own_call_alone_and_a_reset_mends_it() {
    let server = RedisServer::start();
    let limits = limits(&server).await;
    let set = set_of("acme", every_kind(1_000));
    let fine = set_of("fine", every_kind(1_000));
    assert!(call(&limits, &set).await.unwrap().is_admitted());
    let key = "tg:1:{l.acme}:t";
    let fields: Vec<String> = server.query(&["HKEYS", key]);
    let fields: Vec<_> = fields.into_iter().filter(|field| field != "x").collect();
    assert_eq!(fields.len(), 5);
    let wrong = [
        "",
        "b",
        "b;",
        "text",
        "b;1 2 3",
        "b;1 1 1 1.5 1",
        "b;0 0 0 0 0",
        "b;1 1 1 9 1",
        "b;-1 1 1 1 1",
        "b;1 1 9007199254740993 1 1",
        "b;1 1 99999999999999999999999999 1 1",
        "b;nan nan nan nan nan",
        "b;1 1 1 1 1\n",
        "b,50,;1 1",
        "w;",
        "w;x",
        "w;1 2 3 4 5 6 7 8 9 10 11 12 13 14",
        "w;1 9007199254740993",
        "w;1 -1",
        "l;",
        "l;short",
        "l;\u{7f}\u{7f}\u{7f}\u{7f}\u{7f}\u{7f}\u{7f}",
        "q;1 2 3",
        "q;2 1 0 5",
        "q;1 2 0 1e3",
        "q;1 2 3 4",
        "c;123",
        "c;\u{7f}\u{7f}\u{7f}\u{7f}\u{7f}\u{7f}\u{7f}",
        "\u{0}\u{1}",
        "w;9007199254740992 9007199254740992 9007199254740992",
    ];
    for field in &fields {
        let right: Vec<u8> = server.query(&["HGET", key, field]);
        for value in wrong {
            let _: i64 = server.query(&["HSET", key, field, value]);
            let (broken, whole) = tokio::join!(call(&limits, &set), call(&limits, &fine));
            assert!(
                matches!(broken, Err(LimitStoreError::Corrupt(_))),
                "{field} = {value:?}: {broken:?}"
            );
            assert!(whole.unwrap().is_admitted());
        }
        let mut restore = redis::cmd("HSET");
        let _: i64 = restore
            .arg(key)
            .arg(field)
            .arg(right)
            .query(&mut server.client())
            .unwrap();
        assert!(call(&limits, &set).await.unwrap().is_admitted(), "{field}");
    }
    // A value of another type under the key.
    let _: i64 = server.query(&["DEL", key]);
    let () = server.query(&["SET", key, "foreign"]);
    assert!(matches!(
        call(&limits, &set).await,
        Err(LimitStoreError::Corrupt(_))
    ));
    assert!(call(&limits, &fine).await.unwrap().is_admitted());
    let receipt_of = call(&limits, &fine).await.unwrap().receipt;
    let (scopes, cost, now) = (
        ScopeValues::default(),
        Cost::default(),
        SystemClock::new().now(),
    );
    limits.settle(
        &LimitCall::new(&set, &scopes, &cost, now),
        &receipt_of,
        &Settlement::Cancel,
    );
    limits.flush().await;
    assert_eq!(limits.reset(&set, &scopes, None).await.unwrap(), 5);
    assert!(call(&limits, &set).await.unwrap().is_admitted());
}

#[tokio::test]
async fn a_corrupt_time_far_ahead_does_not_refuse_for_ever() {
    let server = RedisServer::start();
    let limits = limits(&server).await;
    let far = 9_007_199_254_740_000_u64;
    let set = set_of("acme", [Rate::per(10, Duration::from_millis(100))]);
    assert!(call(&limits, &set).await.unwrap().is_admitted());
    let key = "tg:1:{l.acme}:t";
    let _: i64 = server.query(&[
        "HSET",
        key,
        "bucket rate",
        &format!("b;1 10000 10 -100000 {far}"),
    ]);
    assert!(!call(&limits, &set).await.unwrap().is_admitted());
    // From the deepest debt, two refills of 100 ms.
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert!(call(&limits, &set).await.unwrap().is_admitted());
    let set = set_of("acme", [Window::new(1, Duration::from_millis(100))]);
    assert!(call(&limits, &set).await.unwrap().is_admitted());
    let _: i64 = server.query(&["HSET", key, "window/100000/10 window", "w;900719925474 1"]);
    assert!(!call(&limits, &set).await.unwrap().is_admitted());
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(call(&limits, &set).await.unwrap().is_admitted());
}

#[tokio::test]
async fn counts_are_apart_by_tenant_environment_key_route_address_and_value() {
    let server = RedisServer::start();
    let limits = limits(&server).await;
    let rules = || {
        [
            Quota::monthly(1).named("route").scope(Scope::Route),
            Quota::monthly(1).named("address").scope(Scope::Address),
            Quota::monthly(1)
                .named("team")
                .scope(Scope::Custom("team".into())),
        ]
    };
    let scopes = |n: u8| {
        ScopeValues::default()
            .route(format!("/{n}"))
            .address([192, 0, 2, n].into())
            .custom("team", format!("{{x}}:{n}\n\0"))
    };
    for tenant in ["a", "a}", "{a", "a:b", "a{b}c", "é", "%", "%%"] {
        let set = set_of(tenant, rules());
        for n in 0..3 {
            assert!(
                ask(&limits, &set, &scopes(n), &Cost::default())
                    .await
                    .unwrap()
                    .is_admitted(),
                "{tenant}"
            );
            assert!(
                !ask(&limits, &set, &scopes(n), &Cost::default())
                    .await
                    .unwrap()
                    .is_admitted(),
                "{tenant}"
            );
        }
    }
    let keys: Vec<String> = server.query(&["KEYS", "*"]);
    assert!(
        keys.iter()
            .all(|key| key.starts_with("tg:1:") && key.len() <= 128)
    );
}

#[tokio::test]
async fn limits_of_zero_and_unlimited_ones_make_no_trip() {
    let mut server = RedisServer::start();
    let limits = limits(&server).await;
    server.kill();
    let none = set_of("none", [Quota::monthly(0)]);
    assert!(!call(&limits, &none).await.unwrap().is_admitted());
    let all = set_of("all", [Rule::unlimited()]);
    assert!(call(&limits, &all).await.unwrap().is_admitted());
}

#[tokio::test]
async fn what_was_reserved_is_settled_and_a_quota_that_was_only_looked_at_is_charged_later() {
    let server = RedisServer::start();
    let limits = limits(&server).await;
    let tokens = || Unit::custom("tokens");
    let set = set_of(
        "acme",
        [
            Quota::monthly(1_000).unit(tokens()),
            Rate::per_day(1_000).unit(tokens()),
        ],
    );
    let scopes = ScopeValues::default();
    let left = async || {
        let states = limits.peek(&set, &scopes).await.unwrap();
        states
            .iter()
            .map(|state| state.remaining)
            .collect::<Vec<_>>()
    };
    let settle = |decision: &tollgate::limit::Decision, units| {
        let (cost, now) = (Cost::default(), SystemClock::new().now());
        let call = LimitCall::new(&set, &scopes, &cost, now);
        let actual = Settlement::Actual(Cost::default().with("tokens", units));
        for _ in 0..2 {
            limits.settle(&call, &decision.receipt, &actual);
        }
    };
    let nothing = ask(
        &limits,
        &set,
        &scopes,
        &Cost::default().reserve("tokens", 0),
    )
    .await
    .unwrap();
    settle(&nothing, 812);
    assert_eq!(left().await, [188, 188]);
    let some = ask(
        &limits,
        &set,
        &scopes,
        &Cost::default().reserve("tokens", 100),
    )
    .await
    .unwrap();
    assert_eq!(left().await, [88, 88]);
    settle(&some, 40);
    assert_eq!(left().await, [148, 148]);
    assert!(limits.grant(&set, &scopes, "quota", 500).await.unwrap());
    assert!(limits.grant(&set, &scopes, "rate", 10_000).await.unwrap());
    assert!(!limits.grant(&set, &scopes, "other", 1).await.unwrap());
    assert_eq!(left().await, [648, 1_000]);
    assert_eq!(limits.reset(&set, &scopes, Some("quota")).await.unwrap(), 1);
    assert_eq!(left().await, [1_000, 1_000]);
}

#[tokio::test]
async fn a_month_s_limit_at_the_largest_numbers_is_counted_exactly() {
    let server = RedisServer::start();
    let limits = limits(&server).await;
    let large = Cost::MAX;
    let set: Arc<LimitSet> = set_of(
        "large",
        [
            Rule::from(Quota::monthly(large)),
            Window::new(large, HOUR).smooth().into(),
            Rate::per(1_000_000_007, Duration::from_micros(1))
                .burst(1 << 53)
                .into(),
            Concurrency::new(large).into(),
        ],
    );
    let scopes = ScopeValues::default();
    let first = ask(&limits, &set, &scopes, &Cost::requests(large - 1))
        .await
        .unwrap();
    assert!(first.is_admitted());
    let left: Vec<_> = first.states.iter().map(|state| state.remaining).collect();
    assert_eq!(left, [1, 1, 2, 1]);
    let Outcome::Refused { .. } = ask(&limits, &set, &scopes, &Cost::requests(2))
        .await
        .unwrap()
        .outcome
    else {
        panic!("two more would be one too many")
    };
}

/// Totals that a test sets, and how often they were asked.
#[derive(Clone, Debug, Default)]
struct Totals {
    used: Arc<std::sync::Mutex<Option<u64>>>,
    n_asked: Arc<std::sync::atomic::AtomicU32>,
}

#[async_trait::async_trait]
impl QuotaTotals for Totals {
    async fn used(
        &self,
        quota: &LostQuota,
    ) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
        self.n_asked
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        assert_eq!((quota.tenant.as_str(), &*quota.rule), ("acme", "quota"));
        let real = SystemClock::new().now().wall();
        assert!(quota.period.contains(real));
        // So that all of a hundred calls find the reading under way.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let used = *self.used.lock().unwrap();
        used.ok_or_else(|| "the database is down".into())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_that_redis_has_lost_is_read_again_once() {
    let server = RedisServer::start();
    let totals = Totals::default();
    let patience = Duration::from_secs(5);
    let connector = RedisConnector::single(server.url())
        .unwrap()
        .connect_timeout(patience)
        .response_timeout(patience);
    let limits = RedisLimits::builder(connector)
        .totals(totals.clone())
        .connect()
        .await
        .unwrap();
    let n_asked = || totals.n_asked.load(std::sync::atomic::Ordering::Relaxed);
    let set = set_of(
        "acme",
        [
            Rule::from(Quota::monthly(100)),
            Rate::per_second(1_000).into(),
        ],
    );
    let left = async || {
        call(&limits, &set)
            .await
            .map(|decision| decision.states[0].remaining)
    };
    // The month is older than the server: it may have been counted elsewhere. Nobody can say yet.
    assert!(matches!(left().await, Err(LimitStoreError::Unavailable(_))));
    assert_eq!(n_asked(), 1);
    *totals.used.lock().unwrap() = Some(40);
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let (limits, set) = (limits.clone(), Arc::clone(&set));
            tokio::spawn(async move { call(&limits, &set).await.unwrap().states[0].remaining })
        })
        .collect();
    let mut left_after = Vec::new();
    for call in calls {
        left_after.push(call.await.unwrap());
    }
    assert_eq!(
        left_after.iter().max(),
        Some(&59),
        "the totals and the first call"
    );
    assert_eq!(
        left_after.iter().min(),
        Some(&0),
        "no call more than the month has left"
    );
    assert_eq!(n_asked(), 2);
    // Everything is lost, the epoch too: the totals tell.
    let () = server.query(&["FLUSHALL"]);
    *totals.used.lock().unwrap() = Some(97);
    assert_eq!(left().await.unwrap(), 2);
    assert_eq!(n_asked(), 3);
    assert!(server.query::<u64>(&["GET", "tg:1:epoch"]) > 1_700_000_000_000_000);
    // A month that began after the server did is known to have begun at nothing.
    let () = server.query(&["FLUSHALL"]);
    let () = server.query(&["SET", "tg:1:epoch", "1600000000000000"]);
    assert_eq!(left().await.unwrap(), 99);
    assert_eq!(n_asked(), 3);
}
