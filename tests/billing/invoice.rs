//! Drafts of invoices: the same input makes the same draft, and later versions ask for differences.

use std::sync::Arc;

use proptest::prelude::*;
use tollgate::{
    id::{PlanName, TenantId},
    pricing::{
        BillingPeriod, InvoiceDraft, InvoiceDraftBuilder, LineKind, MeterPrice, Money, MoneyError,
        PriceBook, Prices, PricingError, ReconcileReport, Tier, UsageTotals, Used,
    },
};

use crate::pricing::{book, calls, month, seconds};

pub(crate) fn acme() -> TenantId {
    TenantId::new("acme").expect("an id")
}

fn plan(name: &str) -> PlanName {
    PlanName::new(name).expect("a name")
}

fn usd(text: &str) -> Money {
    Money::parse(text, "USD".parse().expect("a currency")).expect("an amount")
}

pub(crate) fn pro() -> Arc<PriceBook> {
    let tiers = [Tier::up_to(1_000, "0.01"), Tier::rest("0.005")];
    let prices = Prices::new("USD")
        .fee("base", "29.00")
        .meter(MeterPrice::graduated("calls", tiers).split("author", "50"))
        .meter(MeterPrice::per_unit("tokens", "0.00002").api("chat"));
    Arc::new(book(&prices))
}

pub(crate) fn builder(usage: UsageTotals) -> InvoiceDraftBuilder {
    InvoiceDraft::builder(acme(), month()).plan(plan("pro"), pro(), usage)
}

fn totals(calls: u64, tokens: u64) -> UsageTotals {
    let mut usage = UsageTotals::new();
    usage.add("chat", "calls", Used::new(calls, 0));
    usage.add("chat", "tokens", Used::new(tokens, 0));
    usage
}

#[test]
fn the_same_input_makes_the_same_bytes() {
    let drafts: Vec<_> = (0..3)
        .map(|_| {
            let report = ReconcileReport::compare(&totals(1_500, 7), &totals(1_500, 9));
            let draft = builder(totals(1_500, 9))
                .reconcile(report)
                .credit("sla", usd("1.00"));
            draft.draft().expect("a draft").to_json().expect("JSON")
        })
        .collect();
    assert!(drafts.iter().all(|draft| *draft == drafts[0]));
    let golden = include_str!("../golden/invoice_draft.json");
    assert_eq!(drafts[0], golden.trim_end());
    let read: InvoiceDraft = serde_json::from_str(&drafts[0]).expect("a draft");
    assert_eq!(read.to_json().expect("JSON"), drafts[0]);
    assert!(!read.reconcile.expect("a report").agrees());
}

#[test]
fn lines_stand_by_api_and_meter_and_credits_are_given_back() {
    let draft = builder(totals(1_500, 100_000))
        .credit("sla", usd("1.00"))
        .draft()
        .expect("a draft");
    let lines: Vec<_> = draft
        .lines
        .iter()
        .map(|line| (line.description.as_str(), line.amount.to_string()))
        .collect();
    let expected = [
        ("base", "29.00 USD"),
        ("calls: 1500", "12.50 USD"),
        ("tokens of chat: 100000", "2.00 USD"),
        ("sla", "-1.00 USD"),
    ];
    assert_eq!(
        lines,
        expected.map(|(text, amount)| (text, amount.to_owned()))
    );
    assert_eq!(draft.total, usd("42.50"));
    assert_eq!(draft.total, draft.standing_total);
    let ids: std::collections::BTreeSet<_> = draft.lines.iter().map(|line| &line.id).collect();
    assert_eq!(ids.len(), 4);
}

#[test]
fn late_usage_makes_a_version_of_differences() {
    let first = builder(totals(900, 100_000)).draft().expect("a draft");
    assert_eq!(builder(totals(900, 100_000)).correct(&first), Ok(None));
    // Two hundred calls arrive late, of which half are in the next tier.
    let second = builder(totals(1_100, 100_000))
        .correct(&first)
        .expect("priced")
        .expect("a difference");
    assert_eq!((second.version, second.total), (2, usd("1.50")));
    assert_eq!(second.lines.len(), 1);
    let line = &second.lines[0];
    assert_eq!(line.corrects, Some(usd("9.00")));
    assert_eq!(line.used, Used::new(1_100, 0));
    assert_eq!(line.shares[0].amount, usd("0.75"));
    assert_eq!(line.id, first.lines[1].id);
    assert_ne!(second.id, first.id);
    // Counted twice by mistake: given back.
    let third = builder(totals(100, 0))
        .correct(&second)
        .expect("priced")
        .expect("a difference");
    assert_eq!(third.total, usd("-11.50"));
    assert!(third.lines.iter().all(|line| line.amount.minor() < 0));
    assert_eq!(third.standing_total, usd("30.00"));
}

#[test]
fn a_change_of_plan_that_is_learnt_late_moves_the_amounts() {
    let first = builder(calls(100, 0)).draft().expect("a draft");
    let free = Arc::new(book(&Prices::new("USD")));
    let mid = seconds(15 * 86_400);
    let part = |from, to| month().part(from, to).expect("a part");
    let (early, late) = (part(month().start(), mid), part(mid, month().end()));
    let changed = InvoiceDraft::builder(acme(), month())
        // The order of calls makes no difference.
        .plan_for(late, plan("free"), free, calls(60, 0))
        .plan_for(early, plan("pro"), pro(), calls(40, 0));
    let second = changed
        .correct(&first)
        .expect("priced")
        .expect("a difference");
    assert_eq!(second.standing_total, usd("14.90"));
    assert_eq!(
        second.total,
        usd("14.90").minus(usd("30.00")).expect("a difference")
    );
    assert_eq!(second.unpriced.len(), 1);
}

#[test]
fn what_cannot_be_an_invoice_is_refused() {
    let whole = month().whole();
    let eur = Arc::new(book(&Prices::new("EUR").fee("base", "1.00")));
    let draft = |builder: InvoiceDraftBuilder| builder.draft().expect_err("a fault");
    let twice = builder(calls(1, 0)).plan(plan("free"), pro(), calls(1, 0));
    assert!(matches!(
        draft(twice),
        PricingError::OverlappingParts { .. }
    ));
    let half = month().part(seconds(0), seconds(9)).expect("a part");
    let rest = month().part(seconds(9), month().end()).expect("a part");
    let mixed = InvoiceDraft::builder(acme(), month())
        .plan_for(half, plan("pro"), pro(), calls(1, 0))
        .plan_for(rest, plan("eu"), Arc::clone(&eur), calls(1, 0));
    assert!(matches!(
        draft(mixed),
        PricingError::Money(MoneyError::Mixed { .. })
    ));
    let credit = builder(calls(1, 0)).credit("sla", "1 JPY".parse().expect("money"));
    assert!(matches!(
        draft(credit),
        PricingError::Money(MoneyError::Mixed { .. })
    ));
    let same = builder(calls(1, 0))
        .credit("sla", usd("1"))
        .credit("sla", usd("2"));
    assert!(matches!(draft(same), PricingError::SameCredit { .. }));
    for (name, amount) in [("sla", "0"), ("sla", "-1"), ("", "1")] {
        assert_eq!(
            draft(builder(calls(1, 0)).credit(name, usd(amount))),
            PricingError::NoCredit
        );
    }
    assert_eq!(
        draft(InvoiceDraft::builder(acme(), month())),
        PricingError::Empty
    );
    let other = BillingPeriod::new(seconds(1), seconds(2)).expect("a period");
    let elsewhere =
        InvoiceDraft::builder(acme(), other).plan_for(whole, plan("pro"), pro(), calls(1, 0));
    assert_eq!(draft(elsewhere), PricingError::OutsidePeriod);

    let first = builder(calls(1, 0)).draft().expect("a draft");
    let of_globex = InvoiceDraft::builder(TenantId::new("globex").expect("an id"), month()).plan(
        plan("pro"),
        pro(),
        calls(1, 0),
    );
    assert!(matches!(
        of_globex.correct(&first),
        Err(PricingError::AnotherInvoice { .. })
    ));
    let in_euro = InvoiceDraft::builder(acme(), month()).plan(plan("eu"), eur, calls(1, 0));
    assert!(matches!(
        in_euro.correct(&first),
        Err(PricingError::Money(MoneyError::Mixed { .. }))
    ));
    assert_eq!(
        BillingPeriod::new(seconds(5), seconds(5)),
        Err(PricingError::EmptyPeriod)
    );
    assert_eq!(
        month().part(seconds(5), seconds(5)),
        Err(PricingError::EmptyPeriod)
    );
    assert_eq!(
        other.part(seconds(0), seconds(2)),
        Err(PricingError::OutsidePeriod)
    );
}

#[test]
fn names_that_run_together_are_still_two_lines() {
    let prices = Prices::new("USD")
        .meter(MeterPrice::per_unit("b/calls", "1").api("a"))
        .meter(MeterPrice::per_unit("calls", "1").api("a/b"));
    let mut usage = UsageTotals::new();
    usage.add("a", "b/calls", Used::new(1, 0));
    usage.add("a/b", "calls", Used::new(1, 0));
    let draft = InvoiceDraft::builder(acme(), month())
        .plan(plan("pro"), Arc::new(book(&prices)), usage)
        .draft()
        .expect("a draft");
    assert_eq!(draft.lines.len(), 2);
    assert_ne!(draft.lines[0].id, draft.lines[1].id);
    assert!(draft.lines.iter().all(|line| line.kind == LineKind::Usage));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn versions_add_up_to_what_the_period_comes_to(
        states in prop::collection::vec((0_u64..3_000, 0_u64..200_000, 0_i64..3), 1..6),
    ) {
        let mut last: Option<InvoiceDraft> = None;
        let mut asked = 0;
        for (calls, tokens, credit) in states {
            let mut state = builder(totals(calls, tokens));
            if credit > 0 {
                state = state.credit("sla", Money::from_minor(credit.into(), usd("0").currency()));
            }
            let expected = state.clone().draft().expect("a draft");
            let next = match &last {
                None => Some(state.draft().expect("a draft")),
                Some(before) => state.correct(before).expect("priced"),
            };
            if let Some(next) = next {
                asked += next.total.minor();
                prop_assert_eq!(&next.standing, &expected.standing);
                last = Some(next);
            }
            prop_assert_eq!(asked, expected.total.minor());
        }
    }
}
