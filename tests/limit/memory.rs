use super::*;

use std::net::IpAddr;

use tollgate::{
    id::{Environment, KeyId},
    limit::{Concurrency, Scope, Window},
};

fn address(text: &str) -> ScopeValues {
    ScopeValues::default().address(text.parse::<IpAddr>().unwrap())
}

#[test]
fn ipv6_is_counted_by_its_64_and_mapped_ipv4_as_ipv4() {
    let mut bench = Bench::new([Rate::per_day(1).scope(Scope::Address)]);
    let mut passes_from = |text: &str| {
        bench.scopes = address(text);
        bench.passes(1)
    };
    assert!(passes_from("2001:db8:0:1::1"));
    assert!(!passes_from("2001:db8:0:1:ffff:ffff:ffff:ffff"));
    assert!(passes_from("2001:db8:0:2::1"));
    assert!(passes_from("192.0.2.1"));
    assert!(!passes_from("::ffff:192.0.2.1"));
    assert!(passes_from("192.0.2.2"));
}

#[test]
fn calls_without_an_address_or_a_route_share_a_count() {
    for scope in [Scope::Address, Scope::Route] {
        let bench = Bench::new([Rate::per_day(2).scope(scope)]);
        assert_eq!(bench.admits(5), 2);
    }
}

#[test]
fn tenants_environments_keys_and_rules_count_apart() {
    let store = MemoryLimits::new();
    let now = ManualClock::default().now();
    let rules = RuleSet::compile([Rate::per_day(1).scope(Scope::Key)]).unwrap();
    let key = |text: &str| KeyId::new(text).unwrap();
    let other = Owner::tenant(TenantId::new("other").unwrap());
    for owner in [
        acme(),
        acme().environment(Environment::Test),
        acme().key(key("a")),
        acme().key(key("b")),
        other.clone(),
        other.key(key("a")),
    ] {
        let set = Arc::new(LimitSet::new(owner, Arc::clone(&rules)));
        let one = || try_decide(&store, &set, &ScopeValues::default(), 1, now).unwrap();
        assert!(one().is_admitted());
        assert!(!one().is_admitted());
    }
    assert_eq!(store.n_keys(), 6);
}

#[test]
fn a_set_made_anew_refills_nothing() {
    let mut bench = Bench::new([Rule::from(Quota::daily(5)), Rate::per_day(5).into()]);
    assert_eq!(bench.admits(3), 3);
    bench.change_plan([Rule::from(Quota::daily(5)), Rate::per_day(5).into()]);
    assert_eq!(bench.admits(9), 2);
}

#[test]
fn two_stores_that_see_one_set_count_apart() {
    let bench = Bench::new([Rate::per_day(2)]);
    assert_eq!(bench.admits(5), 2);
    let second = MemoryLimits::new();
    let now = bench.clock.now();
    let one = |store| {
        try_decide(store, &bench.set, &bench.scopes, 1, now)
            .unwrap()
            .is_admitted()
    };
    assert_eq!((0..5).filter(|_| one(&second)).count(), 2);
    assert!(!one(&bench.store));
}

#[test]
fn idle_counts_make_room_and_counts_in_use_never_do() {
    let store = MemoryLimits::new().max_keys(3);
    let clock = ManualClock::default();
    let set = set([Rate::per_second(2).scope(Scope::Address)]);
    let ask = |from: &str| {
        try_decide(&store, &set, &address(from), 1, clock.now()).map(|d| d.is_admitted())
    };
    for from in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        assert!(ask(from).unwrap());
    }
    assert!(matches!(
        ask("192.0.2.4"),
        Err(LimitStoreError::Unavailable(_))
    ));
    assert_eq!((store.n_keys(), store.n_refused_keys()), (3, 1));
    assert!(ask("192.0.2.1").unwrap(), "what has a count goes on");
    clock.advance(SECOND * 2);
    assert!(ask("192.0.2.4").unwrap());
    assert_eq!(store.n_keys(), 1, "three full buckets were evicted for it");
    assert_eq!(store.sweep(clock.now()), 0);
    clock.advance(SECOND);
    assert_eq!(store.sweep(clock.now()), 1);
    assert_eq!(store.n_keys(), 0);
}

#[test]
fn every_kind_of_count_is_evicted_exactly_when_it_is_as_good_as_new() {
    let window = || Window::new(5, SECOND * 10);
    for (rule, idle_after) in [
        (Rule::from(Rate::per_second(1).burst(5)), SECOND),
        (window().into(), SECOND * 11),
        (window().exact_log().into(), SECOND * 10),
        (Quota::hourly(5).into(), SECOND * 3_600),
    ] {
        let mut bench = Bench::new([rule.scope(Scope::Route)]);
        bench.scopes = ScopeValues::default().route("/a");
        assert!(bench.passes(1));
        bench.clock.advance(idle_after - MICRO);
        assert_eq!(bench.store.sweep(bench.clock.now()), 0);
        bench.clock.advance(MICRO);
        assert_eq!(bench.store.sweep(bench.clock.now()), 1);
        assert_eq!(bench.admits(9), 5);
    }
    let bench = Bench::new([Concurrency::new(1).scope(Scope::Route)]);
    let held = bench.decide(1);
    bench.clock.advance(SECOND * 1_000_000);
    assert_eq!(bench.store.sweep(bench.clock.now()), 0);
    bench.settle(&held, &Settlement::Cancel);
    assert_eq!(bench.store.sweep(bench.clock.now()), 1);
}

#[test]
fn a_count_that_a_set_holds_is_not_evicted_under_it() {
    let bench = Bench::new([Rate::per_second(5)]);
    assert!(bench.passes(1));
    bench.clock.advance(SECOND * 60);
    assert_eq!(bench.store.sweep(bench.clock.now()), 0);
    let second = Bench {
        store: Arc::clone(&bench.store),
        clock: bench.clock.clone(),
        set: set([Rate::per_second(5)]),
        scopes: ScopeValues::default(),
    };
    assert_eq!(
        bench.admits(3) + second.admits(9),
        5,
        "both count in one place"
    );
}

#[test]
fn memory_stays_bounded_under_a_flood_of_addresses() {
    let store = MemoryLimits::new().max_keys(10_000);
    let clock = ManualClock::default();
    let set = set([Rate::per_second(10).scope(Scope::Address)]);
    let mut most = 0;
    for n in 0_u32..60_000 {
        clock.advance(Duration::from_micros(100));
        let from = ScopeValues::default().address(IpAddr::from(n.to_be_bytes()));
        assert!(try_decide(&store, &set, &from, 1, clock.now()).is_ok());
        most = most.max(store.n_keys());
    }
    // A bucket is full again after 100 ms, which is a thousand calls.
    assert!(most < 4_000, "{most}");
}

#[tokio::test]
async fn the_slow_way_gives_the_same_answer() {
    let bench = Bench::new([Rate::per_day(1)]);
    let cost = Cost::default();
    let call = LimitCall::new(&bench.set, &bench.scopes, &cost, bench.clock.now());
    let store: Arc<dyn LimitStore> = Arc::clone(&bench.store) as _;
    assert!(
        Arc::clone(&store)
            .decide(call.to_owned())
            .await
            .unwrap()
            .is_admitted()
    );
    assert!(!store.decide(call.to_owned()).await.unwrap().is_admitted());
}
