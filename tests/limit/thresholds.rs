use super::*;

use tollgate::limit::{Crossing, Window};

fn told(decision: &Decision) -> Vec<u8> {
    let percent = |crossing: &Crossing| crossing.percent;
    decision.crossings.iter().map(percent).collect()
}

#[test]
fn each_threshold_is_told_once_in_a_period() {
    let bench = Bench::new([Quota::hourly(10).thresholds([80, 100, 90])]);
    let crossed: Vec<_> = (0..12).flat_map(|_| told(&bench.decide(1))).collect();
    assert_eq!(crossed, [80, 90, 100]);
    bench.clock.advance(SECOND * 3_600);
    let first = bench.decide(9);
    assert_eq!(told(&first), [80, 90], "one call can cross several");
    assert_eq!((first.crossings[0].used, first.crossings[0].limit), (9, 10));
    assert_eq!(first.states[0].threshold, 90);
}

#[test]
fn what_was_given_back_is_not_told_again_in_the_same_period() {
    let bench = Bench::new([Quota::hourly(10).thresholds([80])]);
    let first = bench.decide(8);
    assert_eq!(told(&first), [80]);
    bench.settle(&first, &Settlement::Cancel);
    assert_eq!(bench.decide(0).states[0].threshold, 0);
    assert!(told(&bench.decide(9)).is_empty());
}

#[test]
fn a_quota_tells_with_the_next_call_what_a_settlement_crossed() {
    let bench = Bench::new([Quota::hourly(10).thresholds([80])]);
    let first = bench.decide(1);
    bench.settle(&first, &Settlement::Actual(Cost::requests(8)));
    assert_eq!(told(&bench.decide(1)), [80]);
}

#[test]
fn rules_without_a_calendar_tell_again_after_falling_below_the_lowest() {
    for rule in [
        Rule::from(Rate::per_second(10)),
        Window::new(10, SECOND).into(),
        Window::new(10, SECOND).exact_log().into(),
    ] {
        let bench = Bench::new([rule.thresholds([50, 100])]);
        for _ in 0..3 {
            let crossed: Vec<_> = (0..12).flat_map(|_| told(&bench.decide(1))).collect();
            assert_eq!(crossed, [50, 100]);
            bench.clock.advance(SECOND * 2);
        }
    }
}

#[test]
fn a_refused_call_crosses_nothing() {
    let bench = Bench::new([
        Quota::hourly(10).thresholds([10]),
        Rate::per_second(0).named("closed"),
    ]);
    assert!(bench.decide(5).crossings.is_empty());
}
