//! What use comes to: golden vectors, and properties against a plain model that walks unit by unit.

use std::{fs, path::Path};

use proptest::prelude::*;
use serde::Deserialize;
use tollgate::{
    clock::Timestamp,
    id::{Environment, PlanName, TenantId},
    meter::{CallOutcome, EventId, UsageEvent},
    pricing::{
        BillingPeriod, LineKind, MeterPrice, Money, Part, Partial, PriceBook, Prices, PricingError,
        Rated, Tier, TraceStep, UsageTotals, Used, rate,
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    name: String,
    part: Option<PartVector>,
    prices: Prices,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PartVector {
    period: [u64; 2],
    from: u64,
    to: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    units: u64,
    #[serde(default)]
    overage: u64,
    total: Money,
}

pub(crate) fn seconds(n: u64) -> Timestamp {
    Timestamp::from_unix_seconds(n)
}

pub(crate) fn month() -> BillingPeriod {
    BillingPeriod::new(seconds(0), seconds(30 * 86_400)).expect("a month")
}

pub(crate) fn book(prices: &Prices) -> PriceBook {
    PriceBook::new(prices).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn calls(units: u64, overage: u64) -> UsageTotals {
    let mut usage = UsageTotals::new();
    usage.add("chat", "calls", Used::new(units, overage));
    usage
}

fn one_meter(price: MeterPrice) -> PriceBook {
    book(&Prices::new("USD").meter(price))
}

fn minor(book: &PriceBook, units: u64) -> i128 {
    let rated = rate(book, &calls(units, 0), month().whole()).expect("rated");
    rated.total.minor()
}

fn check(file: &Path) -> usize {
    let text = fs::read_to_string(file).expect("a file of vectors");
    let vectors: Vec<Vector> = serde_json::from_str(&text).expect("vectors");
    let mut n = 0;
    for vector in vectors {
        let book = book(&vector.prices);
        let part = match &vector.part {
            None => month().whole(),
            Some(part) => BillingPeriod::new(seconds(part.period[0]), seconds(part.period[1]))
                .and_then(|period| period.part(seconds(part.from), seconds(part.to)))
                .expect("a part"),
        };
        for case in vector.cases {
            let rated = rate(&book, &calls(case.units, case.overage), part).expect("rated");
            let context = format!("{}: {} units", vector.name, case.units);
            assert_eq!(rated.total, case.total, "{context}");
            let sum = rated.lines.iter().map(|line| line.amount.minor());
            assert_eq!(sum.sum::<i128>(), rated.total.minor(), "{context}");
            let json = serde_json::to_string(&rated).expect("JSON");
            assert_eq!(
                serde_json::from_str::<Rated>(&json).expect("read back"),
                rated
            );
            n += 1;
        }
    }
    n
}

#[test]
fn every_model_comes_to_its_golden_total_at_every_boundary() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/pricing");
    let mut n = 0;
    for entry in fs::read_dir(folder).expect("a folder of vectors") {
        n += check(&entry.expect("an entry").path());
    }
    assert_eq!(n, 312);
}

#[test]
fn the_trace_tells_tier_by_tier_how_a_line_came_about() {
    let tiers = [
        Tier::up_to(1_000, "0"),
        Tier::up_to(10_000, "0.001").fee("2.00"),
        Tier::rest("0.0005"),
    ];
    let price = MeterPrice::graduated("calls", tiers)
        .included(100)
        .overage("0.01")
        .discount("10")
        .split("market", "30")
        .split("author", "33.3333");
    let rated = rate(&one_meter(price), &calls(12_201, 100), month().whole()).expect("rated");
    let line = &rated.lines[0];
    let trace = serde_json::to_value(&line.trace).expect("JSON");
    assert_eq!(
        trace,
        serde_json::json!([
            { "step": "included", "units": 100 },
            { "step": "tier", "tier": 1, "units": 1000, "price": "0", "amount": "0" },
            { "step": "tier", "tier": 2, "units": 9000, "price": "0.001", "fee": "2.00 USD", "amount": "11" },
            { "step": "tier", "tier": 3, "units": 2001, "price": "0.0005", "amount": "1.0005" },
            { "step": "overage", "units": 100, "price": "0.01", "amount": "1" },
            { "step": "discount", "percent": "10", "amount": "11.70045" },
            { "step": "rounded", "exact": "11.70045", "rounding": "half_even" },
        ])
    );
    assert_eq!(line.amount.to_string(), "11.70 USD");
    let shares: Vec<_> = line.shares.iter().map(|it| it.amount.minor()).collect();
    assert_eq!(shares, [351, 389]);
    assert_eq!(line.to_string(), "calls: 12201");
}

#[test]
fn shares_of_all_of_a_line_add_up_to_it() {
    let price = MeterPrice::per_unit("calls", "0.01")
        .split("a", "33.3333")
        .split("b", "33.3333")
        .split("c", "33.3334");
    let book = one_meter(price);
    for units in [0, 1, 2, 3, 4, 100, 101, 9_999] {
        let rated = rate(&book, &calls(units, 0), month().whole()).expect("rated");
        for line in &rated.lines {
            let sum: i128 = line.shares.iter().map(|share| share.amount.minor()).sum();
            assert_eq!(sum, line.amount.minor(), "{units}");
        }
    }
}

#[test]
fn an_api_with_a_price_of_its_own_leaves_the_price_of_all() {
    let prices = Prices::new("USD")
        .meter(MeterPrice::per_unit("calls", "0.01").included(100))
        .meter(MeterPrice::per_unit("calls", "1").api("image"));
    let mut usage = UsageTotals::new();
    for (api, units) in [("chat", 80), ("image", 3), ("search", 30)] {
        usage.add(api, "calls", Used::new(units, 0));
    }
    usage.add("chat", "tokens", Used::new(7, 0));
    let rated = rate(&book(&prices), &usage, month().whole()).expect("rated");
    let lines: Vec<_> = rated.lines.iter().map(ToString::to_string).collect();
    assert_eq!(lines, ["calls: 110", "calls of image: 3"]);
    assert_eq!(rated.lines[0].by_api.len(), 2);
    assert_eq!(rated.lines[0].amount.to_string(), "0.10 USD");
    assert_eq!(rated.total.to_string(), "3.10 USD");
    assert_eq!(rated.unpriced.len(), 1);
    assert_eq!(&*rated.unpriced[0].meter, "tokens");
    assert_eq!(rated.unpriced[0].units, 7);
}

#[test]
fn only_what_is_paid_for_is_counted() {
    let mut event = UsageEvent::new(
        EventId::new(1, 1),
        seconds(1),
        TenantId::new("acme").expect("an id"),
        PlanName::new("pro").expect("a name"),
    );
    event.quantities.insert("tokens".into(), 5);
    // A quantity of the name of a meter of the crate's own does not count twice.
    event.quantities.insert("calls".into(), 50);
    event.response_bytes = 9;
    let with = |change: &dyn Fn(&mut UsageEvent)| {
        let mut event = event.clone();
        change(&mut event);
        event
    };
    let paid = [
        with(&|_| ()),
        with(&|event| event.outcome = CallOutcome::Aborted),
        with(&|event| event.overage = true),
        // A part of a call that goes on.
        with(&|event| event.part_of = Some(EventId::new(1, 9))),
    ];
    let free = [
        with(&|event| event.environment = Environment::Test),
        with(&|event| event.waived = true),
        with(&|event| event.outcome = CallOutcome::Refused),
        with(&|event| event.outcome = CallOutcome::Failed),
        with(&|event| event.outcome = CallOutcome::Panicked),
    ];
    let mut usage = UsageTotals::new();
    assert!(paid.iter().all(|event| usage.record(event)));
    assert!(!free.iter().any(|event| usage.record(event)));
    assert_eq!(usage.used("default", "calls"), Used::new(3, 1));
    assert_eq!(usage.used("default", "tokens"), Used::new(20, 5));
    assert_eq!(usage.used("default", "response_bytes"), Used::new(36, 9));
    assert_eq!(usage.used("default", "request_bytes"), Used::new(0, 0));
    assert_eq!(paid.iter().collect::<UsageTotals>(), usage);
}

#[test]
fn the_largest_numbers_are_rated_or_refused_without_a_panic() {
    let most = "1000000000000000";
    let tiers = || {
        [
            Tier::up_to(1, most).fee("92233720368547758.07"),
            Tier::rest(most),
        ]
    };
    let models = [
        MeterPrice::per_unit("calls", most),
        MeterPrice::graduated("calls", tiers()),
        MeterPrice::volume("calls", tiers()),
        MeterPrice::package("calls", 1, most, Partial::RoundUp),
        MeterPrice::package("calls", 1_000, most, Partial::Prorate),
        MeterPrice::flat("calls", "92233720368547758.07"),
    ];
    for price in models {
        let priced = price
            .clone()
            .discount("33.3333")
            .minimum("0.01")
            .cap("92233720368547758.07");
        for book in [one_meter(price), one_meter(priced)] {
            for units in [1, 2, u64::MAX - 1, u64::MAX] {
                match rate(&book, &calls(units, units / 2), month().whole()) {
                    Ok(rated) => assert!(rated.total.minor() > 0),
                    Err(error) => assert_eq!(error, PricingError::TooLarge),
                }
            }
        }
    }
    // What fits is rated: the prices of every day have room for all the units there are.
    let book = one_meter(MeterPrice::per_unit("calls", "18000000"));
    assert_eq!(
        minor(&book, u64::MAX),
        18_000_000 * 100 * i128::from(u64::MAX)
    );
}

#[derive(Clone, Debug)]
struct Steps {
    /// Length, price and fee of each tier, in 10^-12 and cents.
    tiers: Vec<(u64, u64, u64)>,
}

fn dollars(picos: u64) -> String {
    format!(
        "{}.{:012}",
        picos / 1_000_000_000_000,
        picos % 1_000_000_000_000
    )
}

fn cents(cents: u64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

impl Steps {
    fn tiers(&self) -> Vec<Tier> {
        let mut last = 0;
        let n = self.tiers.len();
        let tiers = self.tiers.iter().enumerate();
        tiers
            .map(|(index, (length, price, fee))| {
                let tier = if index + 1 == n {
                    Tier::rest(dollars(*price)).from(last + 1)
                } else {
                    last += length;
                    Tier::up_to(last, dollars(*price))
                };
                if *fee > 0 {
                    tier.fee(cents(*fee))
                } else {
                    tier
                }
            })
            .collect()
    }

    /// The tier that a unit falls in.
    fn tier_of(&self, unit: u64) -> usize {
        let mut last = 0;
        let found = self.tiers.iter().position(|(length, ..)| {
            last += length;
            unit <= last
        });
        found
            .unwrap_or(self.tiers.len() - 1)
            .min(self.tiers.len() - 1)
    }

    /// Unit by unit, in 10^-12.
    fn graduated(&self, units: u64) -> u128 {
        let mut reached = None;
        (1..=units)
            .map(|unit| {
                let tier = self.tier_of(unit);
                let (_, price, fee) = self.tiers[tier];
                let fee = if reached == Some(tier) { 0 } else { fee };
                reached = Some(tier);
                u128::from(price) + u128::from(fee) * 10_000_000_000
            })
            .sum()
    }

    fn volume(&self, units: u64) -> u128 {
        if units == 0 {
            return 0;
        }
        let (_, price, fee) = self.tiers[self.tier_of(units)];
        u128::from(price) * u128::from(units) + u128::from(fee) * 10_000_000_000
    }
}

/// To the cent, a half to the even one.
fn half_even(picos: u128) -> i128 {
    let cent = 10_000_000_000;
    let (whole, rest) = (picos / cent, picos % cent);
    let up = rest > cent / 2 || (rest == cent / 2 && whole % 2 == 1);
    i128::try_from(whole).expect("room") + i128::from(up)
}

fn steps() -> impl Strategy<Value = Steps> {
    let tier = (
        1_u64..60,
        0_u64..5_000_000_000_000,
        prop_oneof![3 => Just(0), 1 => 0_u64..500],
    );
    prop::collection::vec(tier, 1..6).prop_map(|tiers| Steps { tiers })
}

fn any_price() -> impl Strategy<Value = MeterPrice> {
    let price = || (0_u64..2_000_000_000_000).prop_map(dollars);
    let model = prop_oneof![
        price().prop_map(|price| MeterPrice::per_unit("calls", price)),
        steps().prop_map(|steps| MeterPrice::graduated("calls", steps.tiers())),
        (1_u64..50, price(), any::<bool>()).prop_map(|(size, price, up)| {
            let partial = if up {
                Partial::RoundUp
            } else {
                Partial::Prorate
            };
            MeterPrice::package("calls", size, price, partial)
        }),
    ];
    (
        model,
        0_u64..40,
        prop::option::of(0_u64..=1_000_000),
        prop::option::of((0_u64..3_000, 0_u64..9_000)),
    )
        .prop_map(|(price, included, discount, bounds)| {
            let mut price = price.included(included);
            if let Some(discount) = discount {
                price = price.discount(format!("{}.{:04}", discount / 10_000, discount % 10_000));
            }
            if let Some((minimum, more)) = bounds {
                price = price.minimum(cents(minimum)).cap(cents(minimum + more));
            }
            price
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn graduated_is_the_sum_of_its_tiers(steps in steps(), units in 0_u64..400) {
        let book = one_meter(MeterPrice::graduated("calls", steps.tiers()));
        prop_assert_eq!(minor(&book, units), half_even(steps.graduated(units)));
        let rated = rate(&book, &calls(units, 0), month().whole()).expect("rated");
        for line in &rated.lines {
            let tiers = line.trace.iter().filter_map(|step| match step {
                TraceStep::Tier { units, amount, .. } => Some((*units, *amount)),
                _ => None,
            });
            let (units_of_tiers, amounts): (Vec<_>, Vec<_>) = tiers.unzip();
            prop_assert_eq!(units_of_tiers.iter().sum::<u64>(), units);
            // The amounts are told exactly.
            let picos = amounts.iter().map(|amount| {
                let text = amount.to_string();
                let (whole, rest) = text.split_once('.').unwrap_or((&text, ""));
                format!("{whole}{rest:0<12}").parse::<u128>().expect("digits")
            });
            prop_assert_eq!(picos.sum::<u128>(), steps.graduated(units));
        }
    }

    #[test]
    fn volume_prices_all_units_by_the_last(steps in steps(), units in 0_u64..400) {
        let book = one_meter(MeterPrice::volume("calls", steps.tiers()));
        prop_assert_eq!(minor(&book, units), half_even(steps.volume(units)));
    }

    #[test]
    fn volume_changes_exactly_at_its_boundaries(steps in steps()) {
        let book = one_meter(MeterPrice::volume("calls", steps.tiers()));
        let mut last = 0;
        for (length, ..) in &steps.tiers {
            last += length;
            for units in [last - 1, last, last + 1] {
                prop_assert_eq!(minor(&book, units), half_even(steps.volume(units)));
            }
        }
    }

    #[test]
    fn more_use_never_costs_less(price in any_price(), units in prop::collection::vec(0_u64..500, 2..20)) {
        let book = one_meter(price);
        let mut units = units;
        units.sort_unstable();
        let amounts: Vec<_> = units.iter().map(|units| minor(&book, *units)).collect();
        prop_assert!(amounts.is_sorted(), "{:?} {:?}", units, amounts);
    }

    #[test]
    fn splitting_the_use_of_a_period_never_changes_its_total(
        price in any_price(),
        overage in any::<bool>(),
        uses in prop::collection::vec((0_usize..3, 0_u64..60, 0_u64..60, 0_usize..5), 0..40),
    ) {
        let price = if overage { price.overage("0.0123") } else { price };
        let prices = Prices::new("USD")
            .fee("base", "1.00")
            .minimum("3.00")
            .meter(price.clone().api("api-0"))
            .meter(price);
        let book = book(&prices);
        let apis = ["api-0", "api-1", "api-2"];
        let mut whole = UsageTotals::new();
        let mut processes = vec![UsageTotals::new(); 5];
        for (api, units, overage, process) in &uses {
            whole.add(apis[*api], "calls", Used::new(*units, *overage));
            processes[*process].add(apis[*api], "calls", Used::new(*units, *overage));
        }
        let mut merged = UsageTotals::new();
        for process in processes.iter().rev() {
            merged.merge(process);
        }
        let rated = |usage: &UsageTotals| rate(&book, usage, month().whole()).expect("rated");
        prop_assert_eq!(rated(&merged), rated(&whole));
    }

    #[test]
    fn parts_of_a_period_add_up_to_the_whole(
        fee in 0_u64..1_000_000,
        included in 0_u64..1_000_000,
        cuts in prop::collection::btree_set(1_u64..2_592_000, 0..6),
    ) {
        let month = month();
        let prices = Prices::new("USD")
            .fee("base", cents(fee))
            .meter(MeterPrice::per_unit("calls", "0.01").included(included));
        let book = book(&prices);
        let mut from = 0;
        let ends = cuts.into_iter().chain([2_592_000]);
        let parts: Vec<Part> = ends
            .map(|to| {
                let part = month.part(seconds(from), seconds(to)).expect("a part");
                from = to;
                part
            })
            .collect();
        let (mut fees, mut free) = (0, 0);
        for part in parts {
            let rated = rate(&book, &calls(2_000_000, 0), part).expect("rated");
            for line in &rated.lines {
                match line.kind {
                    LineKind::Fee => fees += line.amount.minor(),
                    _ => free += 2_000_000 - line.amount.minor(),
                }
            }
        }
        prop_assert_eq!(fees, i128::from(fee));
        prop_assert_eq!(free, i128::from(included));
    }
}
