//! What use comes to: golden vectors, traces, and what is counted at all.

use std::{fs, path::Path};

use serde::Deserialize;
use tollgate::{
    clock::Timestamp,
    id::{Environment, PlanName, TenantId},
    meter::{CallOutcome, EventId, UsageEvent},
    pricing::{
        BillingPeriod, MeterPrice, Money, Partial, PriceBook, Prices, PricingError, Rated, Tier,
        UsageTotals, Used, margin_report, rate,
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

pub(crate) fn one_meter(price: MeterPrice) -> PriceBook {
    book(&Prices::new("USD").meter(price))
}

pub(crate) fn minor(book: &PriceBook, units: u64) -> i128 {
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

#[test]
fn margins_are_told_as_they_are() {
    let report = |revenue: &str, cost_nanos: u128, buffer: &str| {
        let revenue: Money = revenue.parse().expect("rated");
        margin_report(revenue, cost_nanos, buffer.parse().expect("a percentage"))
    };
    for (revenue, cost_nanos, buffer, margin, points, suggested) in [
        (
            "10.00 USD",
            8_000_000_000,
            "30",
            "2.00 USD",
            Some(2_000),
            "10.40 USD",
        ),
        (
            "10.00 USD",
            8_000_000_000,
            "50",
            "2.00 USD",
            Some(2_000),
            "12.00 USD",
        ),
        // A loss, and fractions that never flatter.
        (
            "10.00 USD",
            10_000_000_001,
            "0",
            "-0.01 USD",
            Some(-10),
            "10.01 USD",
        ),
        (
            "3.00 USD",
            2_000_000_000,
            "33.3333",
            "1.00 USD",
            Some(3_333),
            "2.67 USD",
        ),
        ("0.00 USD", 1, "100", "-0.01 USD", None, "0.01 USD"),
        (
            "100 JPY",
            50_500_000_000,
            "30",
            "49 JPY",
            Some(4_900),
            "66 JPY",
        ),
    ] {
        let found = report(revenue, cost_nanos, buffer).expect("a report");
        assert_eq!(found.margin.to_string(), margin, "{revenue}");
        assert_eq!(found.margin_basis_points, points, "{revenue}");
        assert_eq!(found.suggested.to_string(), suggested, "{revenue}");
    }
    assert_eq!(
        report("1.00 USD", u128::MAX, "1"),
        Err(PricingError::TooLarge)
    );
}

#[test]
fn more_overage_than_units_is_all_units() {
    let used: Used = serde_json::from_str(r#"{"units":2,"overage":9}"#).expect("use");
    let sum = used.plus(Used::new(5, 0));
    assert_eq!((sum.units, sum.overage), (7, 2));
    let price = MeterPrice::per_unit("calls", "1").overage("2");
    let mut usage = UsageTotals::new();
    usage.add("chat", "calls", used);
    let rated = rate(&one_meter(price), &usage, month().whole()).expect("rated");
    assert_eq!(rated.total.minor(), 400);
}
