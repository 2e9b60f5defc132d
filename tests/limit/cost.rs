use super::*;

use tollgate::limit::{Algorithm, Concurrency, Scope, Unit, Window};

fn every_algorithm(limit: u64) -> [Rule; 6] {
    let window = || Window::new(limit, SECOND * 60);
    [
        Rate::per_minute(limit).into(),
        window().into(),
        window().smooth().into(),
        window().exact_log().into(),
        Quota::daily(limit).into(),
        Concurrency::new(limit).into(),
    ]
}

#[test]
fn fault_13_a_cost_above_the_capacity_is_refused_for_ever_and_changes_nothing() {
    for rule in every_algorithm(5) {
        let bench = Bench::new([rule]);
        let refused = bench.decide(6);
        assert_eq!(reason(&refused), RefusalReason::ExceedsCapacity);
        assert_eq!(retry_after(&refused), None);
        assert!(refused.receipt.holds().is_empty());
        assert!(refused.states[0].exceeded);
        assert!(bench.passes(5), "smaller costs are not held up by it");
    }
}

#[test]
fn fault_14_a_cost_of_zero_peeks() {
    for rule in every_algorithm(5) {
        let bench = Bench::new([rule.thresholds([1])]);
        for _ in 0..100 {
            let peeked = bench.decide(0);
            assert!(peeked.is_admitted());
            assert_eq!(peeked.states[0].remaining, 5);
            assert_eq!(peeked.states[0].reset(), None, "a full rule has no reset");
            assert!(peeked.crossings.is_empty());
        }
        assert!(bench.passes(5));
        assert!(bench.passes(0), "at the limit a peek still passes");
        let charge = bench.decide(0);
        bench.settle(&charge, &Settlement::Actual(Cost::requests(1)));
        let is_gauge = bench.set.rules()[0].name() == "concurrency";
        assert_eq!(
            bench.passes(0),
            is_gauge,
            "and not above it; a slot ends with its call"
        );
    }
}

#[test]
fn fault_15_a_refused_call_changes_no_rule() {
    let tight = every_algorithm(3);
    for tight in tight {
        let tight = tight.named("tight");
        // The tight rule stands first, in the middle and last.
        for place in 0..7 {
            let mut rules = every_algorithm(10).to_vec();
            for (index, rule) in rules.iter_mut().enumerate() {
                *rule = rule.clone().named(format!("wide-{index}"));
            }
            rules.insert(place, tight.clone());
            let bench = Bench::new(rules);
            assert_eq!(bench.admits(3), 3);
            let before = bench.decide(0).states;
            assert_eq!(bench.admits(50), 0);
            assert_eq!(bench.decide(0).states, before);
        }
    }
}

#[test]
fn fault_16_a_refund_never_lifts_a_rule_above_its_capacity() {
    for rule in every_algorithm(5) {
        let bench = Bench::new([rule]);
        let first = bench.decide(3);
        bench.clock.advance(SECOND * 86_400);
        assert!(first.is_admitted());
        bench.settle(&first, &Settlement::Cancel);
        assert_eq!(bench.left(), 5);
        assert_eq!(bench.admits(9), 5);
    }
}

#[test]
fn fault_16_a_refund_after_the_window_has_ended_is_nothing() {
    for rule in every_algorithm(5) {
        let is_concurrency = matches!(rule.algorithm(), Algorithm::Concurrency { .. });
        let bench = Bench::new([rule]);
        let held = bench.decide(5);
        bench.clock.advance(SECOND * 86_400 * 40);
        let spent = if is_concurrency { 0 } else { bench.admits(9) };
        bench.settle(&held, &Settlement::Cancel);
        assert_eq!(bench.admits(9) + spent, 5, "five in one instant, not ten");
    }
}

#[test]
fn fault_17_a_limit_of_zero_always_refuses_without_a_count() {
    for rule in every_algorithm(0) {
        let bench = Bench::new([rule]);
        for cost in [0, 1, Cost::MAX] {
            let refused = bench.decide(cost);
            assert_eq!(retry_after(&refused), None);
            assert_eq!(refused.states[0].remaining, 0);
            assert_eq!(refused.states[0].reset(), None);
        }
        assert_eq!(bench.store.n_keys(), 0);
    }
}

#[test]
fn fault_17_a_quota_of_zero_with_overage_sells_every_call_apart() {
    let bench = Bench::new([Quota::monthly(0).overage()]);
    let decision = bench.decide(1);
    assert_eq!(decision.outcome, Outcome::Admitted { overage: true });
    assert_eq!(
        bench.decide(0).outcome,
        Outcome::Admitted { overage: false }
    );
}

#[test]
fn fault_18_unlimited_keeps_no_count_and_shows_no_state() {
    let bench = Bench::new([Rule::unlimited()]);
    for _ in 0..100 {
        let decision = bench.decide(Cost::MAX);
        assert!(decision.is_admitted());
        assert!(decision.states.is_empty());
        assert!(decision.receipt.holds().is_empty());
    }
    assert_eq!(bench.store.n_keys(), 0);
}

#[test]
fn fault_19_a_limit_of_one_works() {
    for rule in every_algorithm(1) {
        let bench = Bench::new([rule]);
        assert_eq!(bench.admits(10), 1);
    }
}

#[test]
fn fault_20_a_call_that_no_rule_applies_to_passes() {
    let no_rules: [Rule; 0] = [];
    assert!(Bench::new(no_rules).passes(1));
    let mut bench = Bench::new([Rule::from(Quota::daily(1)).scope(Scope::Custom("team".into()))]);
    assert_eq!(bench.admits(5), 5, "the scope has no value");
    assert!(bench.decide(1).states.is_empty());
    bench.scopes = ScopeValues::default().custom("team", "red");
    assert_eq!(bench.admits(5), 1);
    bench.scopes = ScopeValues::default().custom("team", "blue");
    assert_eq!(bench.admits(5), 1);
    let zero = Rule::from(Quota::daily(0)).scope(Scope::Custom("team".into()));
    assert_eq!(Bench::new([zero]).admits(5), 5);
}

#[test]
fn rules_that_warn_count_overage_or_watch_never_refuse() {
    for rule in every_algorithm(2) {
        for rule in [rule.clone().warn(), rule.clone().shadow(), rule.overage()] {
            let bench = Bench::new([rule]);
            let is_overage =
                |decision: &Decision| decision.outcome == Outcome::Admitted { overage: true };
            let decisions: Vec<_> = (0..5).map(|_| bench.decide(1)).collect();
            let exceeded: Vec<_> = decisions.iter().map(|d| d.states[0].exceeded).collect();
            assert_eq!(exceeded, [false, false, true, true, true]);
            let marked = decisions.iter().filter(|d| is_overage(d)).count();
            let rule = bench.set.rules()[0].rule();
            assert_eq!(
                marked,
                if rule.clone() == rule.clone().overage() {
                    3
                } else {
                    0
                }
            );
        }
    }
}

#[test]
fn a_shadow_rule_neither_hides_nor_shortens_a_real_one() {
    let bench = Bench::new([
        Rule::from(Rate::per_day(1)).named("watched").shadow(),
        Rate::per_second(2).into(),
    ]);
    assert_eq!(bench.admits(5), 2);
    let refused = bench.decide(1);
    assert_eq!(retry_after(&refused), Some(SECOND / 2));
    assert!(refused.states.iter().all(|state| state.exceeded));
}

#[test]
fn each_unit_is_counted_by_its_own_rules() {
    let bench = Bench::new([
        Rule::from(Quota::daily(10)),
        Rule::from(Quota::daily(1_000))
            .named("bytes")
            .unit(Unit::Bytes),
        Rule::from(Quota::daily(100))
            .named("tokens")
            .unit(Unit::custom("tokens")),
    ]);
    let cost = Cost::default().bytes(600).with("tokens", 70);
    let call = LimitCall::new(&bench.set, &bench.scopes, &cost, bench.clock.now());
    let decision = bench.store.try_decide(&call).unwrap().unwrap();
    let left: Vec<_> = decision
        .states
        .iter()
        .map(|state| state.remaining)
        .collect();
    assert_eq!(left, [9, 400, 30]);
    let refused = bench.store.try_decide(&call).unwrap().unwrap();
    assert!(matches!(refused.outcome, Outcome::Refused { rule: 1, .. }));
}
