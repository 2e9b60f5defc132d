use super::*;

use tollgate::limit::{Concurrency, Unit, Window};

fn actual(cost: u64) -> Settlement {
    Settlement::Actual(Cost::requests(cost))
}

fn counting(limit: u64) -> [Rule; 5] {
    let window = || Window::new(limit, SECOND * 60);
    [
        Rate::per_minute(limit).into(),
        window().into(),
        window().smooth().into(),
        window().exact_log().into(),
        Quota::daily(limit).into(),
    ]
}

#[test]
fn fault_36_what_was_not_used_is_given_back_and_the_rest_is_charged_past_the_limit() {
    for rule in counting(10) {
        let bench = Bench::new([rule]);
        let first = bench.decide(8);
        bench.settle(&first, &actual(3));
        assert_eq!(bench.left(), 7);
        let second = bench.decide(7);
        bench.settle(&second, &actual(12));
        assert_eq!(bench.left(), 0);
        assert!(!bench.passes(0), "five above the limit");
    }
}

#[test]
fn fault_36_what_a_call_did_not_reserve_is_charged_too() {
    let bench = Bench::new([Rule::from(Quota::daily(1_000)).unit(Unit::custom("tokens"))]);
    let decision = bench.decide(1);
    assert_eq!(decision.receipt.holds()[0].amount, 0);
    bench.settle(
        &decision,
        &Settlement::Actual(Cost::default().with("tokens", 812)),
    );
    assert_eq!(bench.left(), 188);
}

#[test]
fn fault_37_settling_twice_is_settling_once() {
    for rule in counting(10) {
        let bench = Bench::new([rule]);
        let (first, second) = (bench.decide(4), bench.decide(4));
        for _ in 0..3 {
            bench.settle(&first, &Settlement::Cancel);
            bench.settle(&second, &actual(5));
        }
        assert_eq!(bench.left(), 5);
    }
    let bench = Bench::new([Concurrency::new(2)]);
    let (first, second) = (bench.decide(1), bench.decide(1));
    for _ in 0..3 {
        bench.settle(&first, &Settlement::Refund);
    }
    assert_eq!(bench.left(), 1, "one slot came back, not three");
    bench.settle(&second, &actual(1));
    assert_eq!(bench.left(), 2);
}

#[test]
fn fault_37_a_refused_call_has_nothing_to_settle() {
    let bench = Bench::new([Rate::per_day(1)]);
    assert!(bench.passes(1));
    let refused = bench.decide(1);
    bench.settle(&refused, &Settlement::Cancel);
    assert!(!bench.passes(1));
}

#[test]
fn a_refund_goes_to_quotas_and_slots_and_never_to_rates() {
    let bench = Bench::new([
        Rule::from(Rate::per_day(10)),
        Window::new(10, SECOND * 60).into(),
        Quota::daily(10).into(),
        Concurrency::new(10).into(),
    ]);
    let decision = bench.decide(4);
    bench.settle(&decision, &Settlement::Refund);
    let left = bench.decide(0).states;
    let left: Vec<_> = left.iter().map(|state| state.remaining).collect();
    assert_eq!(left, [6, 6, 10, 10]);
}

#[test]
fn fault_39_the_window_of_the_reservation_is_charged_and_a_past_one_left_alone() {
    let quota = Bench::new([Quota::hourly(10)]);
    let held = quota.decide(4);
    quota.clock.advance(SECOND * 3_600);
    assert!(quota.passes(3));
    quota.settle(&held, &actual(9));
    assert_eq!(quota.left(), 7, "the new hour knows nothing of it");
    let held = quota.decide(4);
    quota.clock.advance(SECOND * 3_600);
    assert!(quota.passes(3));
    quota.settle(&held, &Settlement::Cancel);
    assert_eq!(quota.left(), 7);

    for window in [
        Window::new(10, SECOND * 10),
        Window::new(10, SECOND * 10).exact_log(),
    ] {
        let bench = Bench::new([window]);
        let held = bench.decide(4);
        bench.clock.advance(SECOND * 5);
        assert!(bench.passes(1));
        bench.settle(&held, &actual(6));
        assert_eq!(bench.left(), 3);
        // The six leave with the time of the reservation, not of the settlement.
        bench.clock.advance(SECOND * 6);
        assert_eq!(bench.left(), 9);
        let held = bench.decide(4);
        bench.clock.advance(SECOND * 60);
        assert!(bench.passes(3));
        bench.settle(&held, &Settlement::Cancel);
        assert_eq!(bench.left(), 7);
    }
}

#[test]
fn fault_41_holds_and_use_together_never_pass_the_limit() {
    for rule in counting(100) {
        let bench = Bench::new([rule]);
        let mut open = Vec::new();
        let mut used = 0;
        for step in 0_u64..500 {
            let decision = bench.decide(7);
            if decision.is_admitted() {
                open.push(decision);
            }
            if step % 3 == 0 && !open.is_empty() {
                let done = open.swap_remove(step as usize % open.len());
                bench.settle(&done, &actual(step % 7));
                used += step % 7;
            }
            assert!(open.len() as u64 * 7 + used <= 100);
            assert_eq!(bench.left(), 100 - (open.len() as u64 * 7 + used));
        }
        assert!(used > 90, "the test has come near the limit");
    }
}
