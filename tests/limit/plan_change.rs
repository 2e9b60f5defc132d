use super::*;

use tollgate::limit::Window;

#[test]
fn fault_26_a_bucket_keeps_its_level_in_proportion() {
    let mut bench = Bench::new([Rate::per_day(100)]);
    assert_eq!(bench.admits(60), 60);
    assert_eq!(bench.left(), 40);
    bench.change_plan([Rate::per_day(200)]);
    assert_eq!(bench.left(), 80);
    bench.change_plan([Rate::per_day(20)]);
    assert_eq!(bench.left(), 8);
}

#[test]
fn fault_26_a_downgrade_locks_nobody_out_for_longer_than_the_new_refill() {
    let mut bench = Bench::new([Rule::from(Rate::per_second(100)).overage()]);
    for _ in 0..100 {
        assert!(bench.passes(100), "the debt is as deep as it can be");
    }
    bench.change_plan([Rate::per_minute(10)]);
    let wait = retry_after(&bench.decide(0)).unwrap();
    assert_eq!(wait, SECOND * 60);
    assert_eq!(bench.left(), 0);
}

#[test]
fn fault_26_a_quota_and_a_window_keep_what_was_used() {
    for (hundred, two_hundred, fifty) in [
        (
            Rule::from(Quota::monthly(100)),
            Rule::from(Quota::monthly(200)),
            Rule::from(Quota::monthly(50)),
        ),
        (
            Window::new(100, SECOND).into(),
            Window::new(200, SECOND).into(),
            Window::new(50, SECOND).into(),
        ),
    ] {
        let mut bench = Bench::new([hundred]);
        assert_eq!(bench.admits(90), 90);
        bench.change_plan([two_hundred.clone()]);
        assert_eq!(bench.left(), 110);
        bench.change_plan([fifty]);
        assert_eq!(bench.left(), 0);
        assert!(!bench.passes(1));
        bench.change_plan([two_hundred]);
        assert_eq!(bench.left(), 110, "90 stay used");
    }
}

#[test]
fn fault_27_changing_plans_back_and_forth_never_refills() {
    type Plans = (Rule, Rule);
    let plans: [Plans; 5] = [
        (Rate::per_day(100).into(), Rate::per_hour(7).burst(3).into()),
        (
            Window::new(100, SECOND * 3_600).into(),
            Window::new(100, SECOND * 60).into(),
        ),
        (
            Window::new(100, SECOND).into(),
            Window::new(100, SECOND).smooth().into(),
        ),
        (Quota::daily(100).into(), Quota::monthly(100).into()),
        (
            Quota::daily(100).into(),
            Quota::daily(100).time_zone("Asia/Tokyo").into(),
        ),
    ];
    for (a, b) in plans {
        let mut bench = Bench::new([a.clone()]);
        let spent = bench.admits(100);
        assert_eq!(spent, 100);
        for _ in 0..50 {
            bench.change_plan([b.clone()]);
            // May be a count of its own, so spend what it has as well.
            bench.admits(150);
            bench.change_plan([a.clone()]);
            assert_eq!(bench.admits(150), 0, "{:?}", a.algorithm());
        }
    }
}

#[test]
fn fault_28_two_versions_of_a_plan_in_use_at_once_do_not_reset_each_other() {
    for (old, new) in [
        (Rule::from(Rate::per_day(10)), Rule::from(Rate::per_day(20))),
        (Quota::daily(10).into(), Quota::daily(20).into()),
        (
            Window::new(10, SECOND * 60).into(),
            Window::new(20, SECOND * 60).into(),
        ),
    ] {
        let mut bench = Bench::new([old]);
        let (old, new) = (Arc::clone(&bench.set), set([new]));
        let mut admitted = 0;
        for n in 0..100 {
            bench.set = Arc::clone(if n % 2 == 0 { &old } else { &new });
            admitted += u32::from(bench.passes(1));
        }
        assert!((10..=20).contains(&admitted), "{admitted}");
    }
}
