use super::*;

use tollgate::limit::{Concurrency, Unit, Window};

fn error_path(rule: impl Into<Rule>) -> String {
    let error = RuleSet::compile([rule.into()]).unwrap_err();
    assert!(!error.to_string().is_empty());
    error.path().to_owned()
}

#[test]
fn fault_06_times_beyond_2_to_53_are_counted_exactly() {
    let bench = Bench::new([Rate::per_second(3).burst(1)]);
    bench.clock.advance(Duration::from_micros(1 << 54));
    assert!(bench.passes(1));
    // A third of a second is not a whole number of microseconds: rounded up, to the microsecond.
    assert_eq!(
        retry_after(&bench.decide(1)),
        Some(Duration::from_micros(333_334))
    );
    bench.clock.advance(Duration::from_micros(333_333));
    assert!(!bench.passes(1));
    bench.clock.advance(MICRO);
    assert!(bench.passes(1));
}

/// Takes a unit at every chance, a million times, and counts. The bucket is never full after the first step, so
/// nothing that comes back is lost.
fn count_of_a_million_steps(rate: Rate, step: Duration) -> u64 {
    let bench = Bench::new([rate]);
    let mut now = bench.clock.now();
    let mut admitted = 0;
    for _ in 0..1_000_000 {
        admitted += u64::from(bench.decide_at(1, now).is_admitted());
        let monotonic = now.monotonic_micros() + u64::try_from(step.as_micros()).unwrap();
        now = Now::new(now.wall(), monotonic);
    }
    admitted
}

#[test]
fn fault_11_seven_per_minute_never_drifts() {
    let step = Duration::from_micros(1_000_003);
    let admitted = count_of_a_million_steps(Rate::per_minute(7).burst(2), step);
    let exact = 7 * 999_999 * 1_000_003 / 60_000_000 + 2;
    assert!(admitted.abs_diff(exact) <= 1, "{admitted}, not {exact}");
}

#[test]
fn fault_11_one_per_three_seconds_and_three_per_second_never_drift() {
    let admitted = count_of_a_million_steps(
        Rate::per(1, SECOND * 3).burst(2),
        Duration::from_micros(999_999),
    );
    let exact = 999_999 * 999_999 / 3_000_000 + 2;
    assert!(admitted.abs_diff(exact) <= 1, "{admitted}, not {exact}");
    let admitted =
        count_of_a_million_steps(Rate::per_second(3).burst(2), Duration::from_micros(166_667));
    let exact = 3 * 999_999 * 166_667 / 1_000_000 + 2;
    assert!(admitted.abs_diff(exact) <= 1, "{admitted}, not {exact}");
}

#[test]
fn fault_12_a_rate_above_one_per_microsecond_is_exact() {
    let bench = Bench::new([Rate::per_second(1_000_000_000).burst(1_000)]);
    assert!(bench.passes(1_000));
    assert!(!bench.passes(1));
    assert_eq!(retry_after(&bench.decide(1_000)), Some(MICRO));
    bench.clock.advance(MICRO);
    assert_eq!(bench.left(), 1_000);
    assert!(bench.passes(1_000));
    assert!(!bench.passes(1), "no rate is unlimited");
}

#[test]
fn fault_12_numbers_that_cannot_be_exact_are_refused_when_built() {
    assert_eq!(error_path(Rate::per_second(u64::MAX)), "rules[0].limit");
    assert_eq!(
        error_path(Rate::per_day(1).burst(u64::MAX)),
        "rules[0].burst"
    );
    assert_eq!(error_path(Quota::monthly(u64::MAX)), "rules[0].limit");
    assert_eq!(error_path(Window::new(u64::MAX, SECOND)), "rules[0].limit");
    assert_eq!(error_path(Concurrency::new(u64::MAX)), "rules[0].limit");
    assert_eq!(error_path(Window::new(1, Duration::MAX)), "rules[0].window");
}

#[test]
fn fault_12_the_largest_numbers_neither_wrap_nor_panic() {
    let most = Cost::MAX;
    for rule in [
        Rule::from(Rate::per(1, MICRO).burst(most)),
        Window::new(most, SECOND).into(),
        Window::new(most, SECOND).smooth().into(),
        Quota::monthly(most).into(),
        Concurrency::new(most).into(),
    ] {
        let bench = Bench::new([rule.clone()]);
        assert!(bench.passes(most));
        assert!(!bench.passes(1));
        assert!(!bench.passes(most));
        assert_eq!(bench.left(), 0);
        let bench = Bench::new([rule.overage()]);
        for _ in 0..2_000 {
            assert!(bench.passes(u64::MAX));
        }
        assert_eq!(bench.left(), 0, "{:?}", bench.set.rules()[0].algorithm());
    }
    let bench = Bench::new([Rule::from(Quota::monthly(5)).unit(Unit::custom("tokens"))]);
    assert!(
        bench.passes(u64::MAX),
        "the call takes none of what is counted"
    );
}
