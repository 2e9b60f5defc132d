//! Prices that cannot be: each fault names the field and what to write instead.

use serde_json::{Value, json};
use tollgate::{
    gate::Document,
    plan::{Plan, PlanCatalog, PlanDocument},
    pricing::{MeterPrice, PriceBook, Prices},
};

/// The fault of a plan with these prices.
fn fault(prices: &Value) -> (String, String) {
    let text = json!({ "plans": [{ "name": "pro", "prices": prices }] }).to_string();
    let error = PlanDocument::from_json(&text)
        .and_then(|document| PlanCatalog::from_document(&document))
        .expect_err("a fault");
    (error.path().to_owned(), error.to_string())
}

fn of_meter(meter: &Value) -> (String, String) {
    let (path, text) = fault(&json!({ "currency": "USD", "meters": [meter] }));
    let path = path
        .strip_prefix("plans[0].prices.meters[0]")
        .map(str::to_owned);
    (path.unwrap_or_else(|| panic!("{text}")), text)
}

fn of_tiers(tiers: &Value) -> (String, String) {
    let (path, text) = of_meter(&json!({ "meter": "calls", "model": "graduated", "tiers": tiers }));
    let volume = json!({ "meter": "calls", "model": "volume", "tiers": tiers });
    assert_eq!(of_meter(&volume).0, path);
    (path.trim_start_matches('.').to_owned(), text)
}

#[track_caller]
fn assert_fault(found: &(String, String), path: &str, says: &str) {
    assert_eq!(found.0, path, "{}", found.1);
    assert!(found.1.contains(says), "{}", found.1);
}

#[test]
fn tiers_that_overlap_go_backwards_or_leave_a_gap_are_refused() {
    let first = json!({ "up_to": 1000, "price": "0" });
    let rest = json!({ "price": "1" });
    for (tiers, path, says) in [
        (json!([]), "tiers", "at least one tier"),
        (
            json!([first, { "from": 1000, "price": "1" }]),
            "tiers[1].from",
            "overlaps the tier before, which ends with 1000: write 1001",
        ),
        (
            json!([first, { "from": 1002, "price": "1" }]),
            "tiers[1].from",
            "leaves a gap, as units from 1001 on have no price: write 1001",
        ),
        (
            json!([{ "from": 2, "price": "1" }]),
            "tiers[0].from",
            "leaves a gap",
        ),
        (
            json!([{ "from": 0, "price": "1" }]),
            "tiers[0].from",
            "counted from 1",
        ),
        (
            json!([first, { "up_to": 10, "price": "1" }, rest]),
            "tiers[1].up_to",
            "go backwards",
        ),
        (
            json!([first, first, rest]),
            "tiers[1].up_to",
            "go backwards",
        ),
        (
            json!([{ "up_to": 0, "price": "1" }, rest]),
            "tiers[0].up_to",
            "go backwards",
        ),
        (
            json!([first]),
            "tiers[0].up_to",
            "leaves a gap, as units above 1000 have no price",
        ),
        (
            json!([rest, first]),
            "tiers[0].up_to",
            "only the last tier has no end",
        ),
        (
            json!([{ "up_to": u64::MAX, "price": "1" }, rest]),
            "tiers[0].up_to",
            "nothing is left",
        ),
        (
            json!([first, { "price": "-1" }]),
            "tiers[1].price",
            "must not be negative",
        ),
        (
            json!([first, { "price": "1", "fee": "-1" }]),
            "tiers[1].fee",
            "must not be negative",
        ),
        (
            json!([first, { "price": "1", "fee": "0.001" }]),
            "tiers[1].fee",
            "more than 2 decimals",
        ),
    ] {
        assert_fault(&of_tiers(&tiers), path, says);
    }
    // Faults of the form are found while the text is read.
    assert_fault(
        &of_tiers(&json!([{ "up_to": -1, "price": "1" }])),
        "tiers[0].up_to",
        "invalid value",
    );
    assert_fault(
        &of_tiers(&json!([{ "upto": 1, "price": "1" }])),
        "tiers[0].upto",
        "unknown field",
    );
}

#[test]
fn amounts_that_are_no_exact_decimals_are_refused() {
    let price =
        |text: &Value| of_meter(&json!({ "meter": "calls", "model": "per_unit", "price": text }));
    for (text, says) in [
        (json!("-0.01"), "must not be negative"),
        (json!("1e-3"), "without an exponent"),
        (json!("0.0000000000001"), "more than 12 decimals"),
        (json!("1,5"), "digits with at most one point"),
        (json!(""), "digits with at most one point"),
        (json!("1000000000000001"), "too large"),
        (json!("9".repeat(5_000)), "too large"),
        (json!(0.0005), "as text, such as"),
        (json!(5), "as text, such as"),
    ] {
        let found = price(&text);
        assert!(found.1.len() < 300, "{}", found.1);
        assert_fault(&found, ".price", says);
    }
    for field in ["minimum", "cap"] {
        for (text, says) in [
            ("0.001", "more than 2 decimals"),
            ("-1", "must not be negative"),
            ("99999999999999999999", "too large"),
        ] {
            let found = of_meter(
                &json!({ "meter": "calls", "model": "per_unit", "price": "1", field: text }),
            );
            assert_fault(&found, &format!(".{field}"), says);
        }
    }
    let discount =
        json!({ "meter": "calls", "model": "per_unit", "price": "1", "discount": "100.5" });
    assert_fault(&of_meter(&discount), ".discount", "at most 100");
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let meter = |more: &Value| {
        let mut meter = json!({ "meter": "calls", "model": "per_unit", "price": "1" });
        for (name, value) in more.as_object().expect("fields") {
            meter[name] = value.clone();
        }
        of_meter(&meter)
    };
    for (more, path, says) in [
        (
            json!({ "model": "package" }),
            ".size",
            "a package price needs it",
        ),
        (
            json!({ "model": "package", "size": 0, "partial": "prorate" }),
            ".size",
            "at least one unit",
        ),
        (
            json!({ "model": "package", "size": 5 }),
            ".partial",
            "`round_up` or `prorate`",
        ),
        (
            json!({ "model": "package", "size": 5, "partial": "half" }),
            ".partial",
            "unknown variant",
        ),
        (json!({ "model": "tiered" }), ".model", "unknown variant"),
        (
            json!({ "model": "graduated" }),
            ".price",
            "does not read it",
        ),
        (json!({ "size": 5 }), ".size", "does not read it"),
        (
            json!({ "tiers": [{ "price": "1" }] }),
            ".tiers",
            "does not read it",
        ),
        (
            json!({ "model": "flat", "included": 5 }),
            ".included",
            "does not read it",
        ),
        (
            json!({ "model": "flat", "overage": "5" }),
            ".overage",
            "does not read it",
        ),
        (
            json!({ "minimum": "5.00", "cap": "4.99" }),
            ".cap",
            "below the minimum of 5.00 USD",
        ),
        (json!({ "meter": "" }), ".meter", "must not be empty"),
        (json!({ "api": "a\nb" }), ".api", "control characters"),
        (
            json!({ "splits": [{ "to": "a", "percent": "60" }, { "to": "b", "percent": "40.0001" }] }),
            ".splits[1].percent",
            "more than 100 per cent",
        ),
        (
            json!({ "splits": [{ "to": "a", "percent": "1" }, { "to": "a", "percent": "1" }] }),
            ".splits[1].to",
            "share this name",
        ),
        (
            json!({ "splits": [{ "to": "a", "percent": "-1" }] }),
            ".splits[0].percent",
            "must not be negative",
        ),
        (json!({ "included": -1 }), ".included", "invalid value"),
        (json!({ "prise": "1" }), ".prise", "unknown field"),
    ] {
        assert_fault(&meter(&more), path, says);
    }
}

#[test]
fn a_plan_has_one_currency_in_use_and_one_price_for_a_meter() {
    for code in ["usd", "XYZ", "DEM", "XAU", ""] {
        let found = fault(&json!({ "currency": code }));
        assert_fault(&found, "plans[0].prices.currency", "ISO 4217");
    }
    let price = json!({ "meter": "calls", "model": "per_unit", "price": "1" });
    let own = json!({ "meter": "calls", "api": "chat", "model": "per_unit", "price": "1" });
    for twice in [&price, &own] {
        let found = fault(&json!({ "currency": "USD", "meters": [price, own, twice] }));
        assert_fault(
            &found,
            "plans[0].prices.meters[2].meter",
            "has a price already",
        );
    }
    let fee = json!({ "name": "base", "amount": "1.00" });
    let found = fault(&json!({ "currency": "USD", "fees": [fee, fee] }));
    assert_fault(&found, "plans[0].prices.fees[1].name", "share this name");
    let yen = json!({ "name": "base", "amount": "1.5" });
    let found = fault(&json!({ "currency": "JPY", "fees": [yen] }));
    assert_fault(
        &found,
        "plans[0].prices.fees[0].amount",
        "more than 0 decimals",
    );
}

#[test]
fn a_plan_in_code_is_checked_by_its_name() {
    let prices = Prices::new("USD").meter(MeterPrice::per_unit("calls", "-1"));
    let error = PlanCatalog::new([Plan::new("pro").prices(prices)]).expect_err("a fault");
    assert_eq!(error.path(), "plans[pro].prices.meters[0].price");
}

#[test]
fn prices_survive_a_document_and_a_gates_own() {
    let text = r#"
        [[plans]]
        name = "pro"
        [plans.prices]
        currency = "USD"
        rounding = "half_up"
        minimum = "5.00"
        fees = [{ name = "base", amount = "29.00" }]
        [[plans.prices.meters]]
        meter = "calls"
        model = "graduated"
        included = 10
        tiers = [{ from = 1, up_to = 100, price = "0.01", fee = "1" }, { price = "0.001" }]
        splits = [{ to = "market", percent = "30" }]
    "#;
    let document = Document::from_toml(text).expect("a document");
    let gate = tollgate::Tollgate::builder()
        .document(document)
        .build()
        .expect("a gate");
    let plans = gate.plans().snapshot();
    let book = plans[0].prices().expect("prices");
    let json = serde_json::to_string(book.source()).expect("JSON");
    let again: Prices = serde_json::from_str(&json).expect("prices");
    assert_eq!(PriceBook::new(&again).expect("checked"), **book);
    assert!(!json.contains("null"), "{json}");
}
