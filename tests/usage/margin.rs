//! What usage costs beside what it brings.

use proptest::prelude::*;
use tollgate::usage::{Margins, RouteOnPlan, UsageTotals};

use super::minutes::{at, minute};

fn totals(calls: u64, failed: u64, cost_nanos: u128) -> UsageTotals {
    let mut totals = UsageTotals::default();
    (totals.calls, totals.failed, totals.cost_nanos) = (calls, failed, cost_nanos);
    totals
}

#[test]
fn each_route_of_a_plan_has_its_cost_per_call_and_its_margin() {
    let minutes = [
        minute("acme", "/v1/a", at(0), 3, 0, 1),
        minute("bolt", "/v1/a", at(60), 7, 5, 1),
        minute("acme", "/v1/b", at(0), 1, 0, 1),
    ];
    let mut margins = Margins::new();
    for minute in &minutes {
        margins.add_usage(RouteOnPlan::from(&minute.key), &minute.totals);
    }
    let a = RouteOnPlan::from(&minutes[0].key);
    margins.add_revenue(a.clone(), i128::from(u64::MAX) * 20);
    margins.add_cost(a.clone(), 5);
    let line = margins.line(&a).expect("a line");
    assert_eq!((line.calls, line.billable_calls), (10, 5));
    assert_eq!(
        line.cost_per_call_nanos(),
        Some(u128::from(u64::MAX) + 1),
        "rounded up"
    );
    assert_eq!(line.margin_nanos(), i128::from(u64::MAX) * 10 - 5);
    assert_eq!(
        line.margin_hundredths_of_percent(),
        Some(4_999),
        "rounded down"
    );
    // Half as many calls pay for all of the cost.
    assert_eq!(
        line.suggested_price_nanos(0),
        Some(u128::from(u64::MAX) * 2 + 1)
    );
    assert_eq!(margins.lines().count(), 2);

    // Put together by whatever else: here by the plan, as by a cost centre.
    let plans = margins.grouped(|route| route.plan.clone());
    let (_, plan) = plans.lines().next().expect("one plan");
    assert_eq!(*plan, margins.total());
    assert_eq!(plan.calls, 11);
}

#[test]
fn a_loss_a_credit_and_nothing_at_all() {
    let mut margins = Margins::new();
    margins.add_usage("loss", &totals(10, 0, 400));
    margins.add_revenue("loss", 300);
    margins.add_usage("free", &totals(0, 0, 0));
    margins.add_usage("failed", &totals(5, 5, 100));
    margins.add_revenue("credit", -50);
    margins.add_usage("most", &totals(u64::MAX, 0, u128::MAX));
    margins.add_usage("most", &totals(u64::MAX, 0, u128::MAX));
    margins.add_revenue("most", i128::MAX);
    let line = |name| margins.line(&name).expect("a line");
    assert_eq!(line("loss").margin_nanos(), -100);
    assert_eq!(line("loss").margin_hundredths_of_percent(), Some(-3_334));
    assert_eq!(line("free").cost_per_call_nanos(), None);
    assert_eq!(line("free").suggested_price_nanos(30), None);
    assert_eq!(line("failed").cost_per_call_nanos(), Some(20));
    assert_eq!(
        line("failed").suggested_price_nanos(30),
        None,
        "nobody would pay it"
    );
    assert_eq!(line("credit").margin_hundredths_of_percent(), None);
    assert_eq!(line("most").suggested_price_nanos(0), None);
    assert_eq!(line("most").margin_nanos(), 0);
    assert_eq!(line("most").calls, u64::MAX);
}

proptest! {
    #[test]
    fn a_suggested_price_covers_the_cost_and_the_buffer_and_one_below_does_not(
        cost in 0_u64.., calls in 1_u64..1_000_000, failed in 0_u64..1_000_000, buffer in 0_u32..1_000,
    ) {
        let failed = failed % (calls + 1);
        let mut margins = Margins::new();
        margins.add_usage((), &totals(calls, failed, u128::from(cost)));
        let line = margins.line(&()).expect("a line");
        let paid = u128::from(calls - failed);
        let Some(price) = line.suggested_price_nanos(buffer) else {
            prop_assert_eq!(paid, 0);
            return Ok(());
        };
        let wanted = u128::from(cost) * (100 + u128::from(buffer));
        prop_assert!(price * paid * 100 >= wanted);
        prop_assert!(price == 0 || (price - 1) * paid * 100 < wanted);
    }

    #[test]
    fn a_share_is_rounded_down_and_grows_with_the_revenue(cost in any::<u64>(), revenue in 1_i64.., more in 0_i64..1_000_000) {
        let share = |revenue: i64| {
            let mut margins = Margins::new();
            margins.add_usage((), &totals(1, 0, u128::from(cost)));
            margins.add_revenue((), i128::from(revenue));
            margins.total().margin_hundredths_of_percent().expect("a revenue")
        };
        let told = share(revenue);
        let exact = (i128::from(revenue) - i128::from(cost)) * 10_000;
        prop_assert!(told * i128::from(revenue) <= exact);
        prop_assert!((told + 1) * i128::from(revenue) > exact);
        prop_assert!(share(revenue.saturating_add(more)) >= told);
    }
}
