use super::*;

use proptest::prelude::*;
use tollgate::limit::{Concurrency, Window};

#[test]
fn fault_01_a_wall_clock_that_goes_back_gives_nothing_and_locks_nobody_out_for_long() {
    let bench = Bench::new([Quota::monthly(5)]);
    bench.clock.set_wall(at("2026-02-01T00:00:01Z"));
    assert_eq!(bench.admits(4), 4);
    // A small step back over the month's edge stays in the new month.
    bench.clock.set_wall(at("2026-01-31T23:59:59Z"));
    assert_eq!(bench.admits(4), 1);
    // A long one takes the use along into the month that it is.
    bench.clock.set_wall(at("2025-06-10T00:00:00Z"));
    let refused = bench.decide(1);
    assert_eq!(retry_after(&refused), Some(SECOND * 86_400 * 21));
    bench.clock.set_wall(at("2025-07-01T00:00:00Z"));
    assert_eq!(bench.admits(9), 5);
}

#[test]
fn fault_01_a_stepped_wall_clock_does_not_touch_buckets_and_windows() {
    let bench = Bench::new([
        Rule::from(Rate::per_minute(5)),
        Window::new(5, SECOND * 60).into(),
    ]);
    assert_eq!(bench.admits(9), 5);
    bench.clock.set_wall(at("2020-01-01T00:00:00Z"));
    assert_eq!(bench.admits(9), 0);
    bench.clock.set_wall(at("2030-01-01T00:00:00Z"));
    assert_eq!(bench.admits(9), 0);
}

#[test]
fn fault_02_a_clock_that_jumps_ahead_gives_one_quota_once() {
    let bench = Bench::new([Quota::daily(5)]);
    assert_eq!(bench.admits(9), 5);
    bench.clock.set_wall(at("2026-06-01T12:00:00Z"));
    assert_eq!(bench.admits(9), 5, "one period's worth");
    bench.clock.set_wall(at("2026-01-15T12:00:00Z"));
    assert_eq!(bench.admits(9), 0, "and nothing on the way back");
    let wait = retry_after(&bench.decide(1)).unwrap();
    assert_eq!(wait, SECOND * 12 * 3_600, "until the end of the true day");
}

#[test]
fn fault_03_readings_of_the_clock_that_arrive_out_of_order_count_as_if_in_order() {
    for rule in [
        Rule::from(Rate::per_minute(60).burst(10)),
        Window::new(10, SECOND * 60).into(),
        Window::new(10, SECOND * 60).smooth().into(),
        Window::new(10, SECOND * 60).exact_log().into(),
        Quota::hourly(10).into(),
    ] {
        let bench = Bench::new([rule]);
        let early = bench.clock.now();
        bench.clock.advance(SECOND * 10);
        let late = bench.clock.now();
        let admitted = (0..40)
            .filter(|n| {
                let now = if n % 2 == 0 { late } else { early };
                bench.decide_at(1, now).is_admitted()
            })
            .count();
        assert_eq!(admitted, 10, "{:?}", bench.set.rules()[0].algorithm());
    }
}

#[test]
fn fault_04_all_rules_of_a_call_use_its_one_time() {
    let bench = Bench::new([Rule::from(Quota::hourly(1)), Rate::per_hour(1).into()]);
    bench.clock.set_wall(at("2026-01-15T12:00:00Z"));
    assert!(bench.passes(1));
    bench.clock.advance(SECOND * 3_600 - MICRO);
    let refused = bench.decide(1);
    assert!(
        refused
            .states
            .iter()
            .all(|state| state.reset() == Some(MICRO))
    );
    bench.clock.advance(MICRO);
    assert!(bench.passes(1), "both turn at the same instant");
}

#[test]
fn fault_05_a_bucket_left_alone_holds_exactly_its_burst() {
    // The last rate has ticks that wrap around in hours: it must not look empty, or hold more, after any time.
    for rate in [
        Rate::per_second(5).burst(7),
        Rate::per_minute(7),
        Rate::per_second(1_000_000_007).burst(7),
        Rate::per(4_398_046_511_101, SECOND).burst(7),
    ] {
        let bench = Bench::new([rate]);
        for exponent in 0..52 {
            bench.clock.advance(SECOND * 60);
            assert_eq!(bench.admits(9), 7, "{rate:?} before 2^{exponent}");
            bench
                .clock
                .advance(Duration::from_micros((1 << exponent) - 1));
            assert!(bench.left() <= 7);
        }
    }
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let limit = 1_u64..12;
    let length = (1_u64..5_000_000).prop_map(Duration::from_micros);
    prop_oneof![
        (1_u64..10, length.clone(), limit.clone()).prop_map(|(n, period, burst)| Rate::per(
            n, period
        )
        .burst(burst)
        .into()),
        (limit.clone(), 20_u64..5_000_000, 1_u32..20, any::<bool>()).prop_map(
            |(limit, length, cells, smooth)| {
                let window = Window::new(limit, Duration::from_micros(length))
                    .cells(cells.try_into().unwrap());
                if smooth { window.smooth() } else { window }.into()
            }
        ),
        (limit.clone(), length)
            .prop_map(|(limit, length)| Window::new(limit, length).exact_log().into()),
        limit.prop_map(|limit| Quota::hourly(limit).into()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn waiting_exactly_retry_after_succeeds_and_a_microsecond_less_does_not(
        rules in prop::collection::vec(any_rule(), 1..4),
        calls in prop::collection::vec((0_u64..2_000_000, 1_u64..5), 1..60),
    ) {
        let rules = rules
            .into_iter()
            .enumerate()
            .map(|(place, rule)| rule.named(format!("rule-{place}")));
        let bench = Bench::new(rules);
        for (pause, cost) in calls {
            bench.clock.advance(Duration::from_micros(pause));
            let decision = bench.decide(cost);
            if decision.is_admitted() {
                continue;
            }
            let Some(wait) = retry_after(&decision) else {
                prop_assert_eq!(reason(&decision), RefusalReason::ExceedsCapacity);
                continue;
            };
            bench.clock.advance(wait - MICRO);
            prop_assert!(!bench.passes(cost), "a microsecond less than {:?}", wait);
            bench.clock.advance(MICRO);
            prop_assert!(bench.passes(cost), "exactly {:?}", wait);
        }
    }
}

#[test]
fn the_longest_wait_is_reported_and_a_call_that_never_passes_before_it() {
    let bench = Bench::new([
        Rule::from(Rate::per_second(1)),
        Rate::per_minute(1).named("slow"),
        Concurrency::new(1).into(),
    ]);
    assert!(bench.passes(1));
    let Outcome::Refused {
        rule, retry_after, ..
    } = bench.decide(1).outcome
    else {
        panic!("the call passed");
    };
    assert_eq!((rule, retry_after), (1, Some(SECOND * 60)));
    bench.clock.advance(SECOND * 60);
    let Outcome::Refused {
        rule, retry_after, ..
    } = bench.decide(1).outcome
    else {
        panic!("the call passed");
    };
    assert_eq!((rule, retry_after), (2, None), "only the slot is taken now");
    let Outcome::Refused {
        rule,
        reason,
        retry_after,
    } = bench.decide(2).outcome
    else {
        panic!("the call passed");
    };
    assert_eq!(
        (rule, reason, retry_after),
        (0, RefusalReason::ExceedsCapacity, None)
    );
}
