//! Plans as a document.

use tollgate::{
    id::PlanName,
    limit::{Quota, Rate},
    plan::{Plan, PlanCatalog, PlanDocument},
};

const TWO_PLANS: &str = r#"{
    "plans": [
        { "name": "free" },
        {
            "name": "pro",
            "features": ["export"],
            "allowances": { "seats": 5 },
            "apis": ["chat"],
            "upgrade_url": "https://example.com/upgrade"
        }
    ]
}"#;

fn name(text: &str) -> PlanName {
    PlanName::new(text).unwrap()
}

#[test]
fn a_document_in_json_becomes_a_catalog() {
    let document = PlanDocument::from_json(TWO_PLANS).unwrap();
    let catalog = PlanCatalog::from_document(&document).unwrap();
    let pro = catalog.find(&name("pro")).unwrap();
    assert!(pro.entitlements().has_feature("export"));
    assert_eq!(pro.entitlements().allowance("seats"), Some(5));
    assert!(pro.entitlements().includes_api("chat"));
    assert!(!pro.entitlements().includes_api("images"));
    assert_eq!(pro.upgrade_url(), Some("https://example.com/upgrade"));
    assert!(catalog.find(&name("free")).unwrap().rules().is_empty());
}

#[test]
fn the_same_document_in_toml_says_the_same() {
    let toml = r#"
        [[plans]]
        name = "free"

        [[plans]]
        name = "pro"
        features = ["export"]
        apis = ["chat"]
        upgrade_url = "https://example.com/upgrade"
        [plans.allowances]
        seats = 5
    "#;
    let deserializer = toml::Deserializer::parse(toml).unwrap();
    let document = PlanDocument::from_deserializer(deserializer).unwrap();
    assert_eq!(document, PlanDocument::from_json(TWO_PLANS).unwrap());
    let written = toml::to_string(&document).unwrap();
    let deserializer = toml::Deserializer::parse(&written).unwrap();
    assert_eq!(
        PlanDocument::from_deserializer(deserializer).unwrap(),
        document
    );
}

#[test]
fn rules_written_in_code_survive_the_way_through_a_document() {
    let plan = Plan::new("pro")
        .rule(Rate::per_second(5).burst(10))
        .rule(Quota::monthly(1_000).overage());
    let document: PlanDocument = [plan.clone()].into_iter().collect();
    let text = serde_json::to_string(&document).unwrap();
    let read = PlanDocument::from_json(&text).unwrap();
    let catalog = PlanCatalog::from_document(&read).unwrap();
    let expected = plan.compile().unwrap();
    assert_eq!(
        catalog.find(&name("pro")).unwrap().rules(),
        expected.rules()
    );
}

#[test]
fn a_fault_is_named_by_its_place_and_with_what_is_wrong() {
    for (text, path, reason) in [
        (
            r#"{"plans": [{"name": "a"}, {"name": "b", "featurs": []}]}"#,
            "plans[1].featurs",
            "unknown field `featurs`, expected one of",
        ),
        (
            r#"{"plans": [{"name": ""}]}"#,
            "plans[0].name",
            "must not be empty",
        ),
        (
            r#"{"plans": [{"name": "a", "allowances": {"seats": 1.5}}]}"#,
            "plans[0].allowances.seats",
            "floating point",
        ),
        (
            r#"{"plans": [{"name": "a", "allowances": {"seats": -1}}]}"#,
            "plans[0].allowances.seats",
            "-1",
        ),
        (
            r#"{"plans": [{"features": []}]}"#,
            "plans[0]",
            "missing field `name`",
        ),
        (r#"{"plans": {}}"#, "plans", "expected a sequence"),
        (
            r#"{"plan": []}"#,
            "plan",
            "unknown field `plan`, expected `plans`",
        ),
        (r#"{"plans": []} {}"#, "", "trailing characters"),
        (
            r#"{"plans": [{"name": "a", "rules": [{"colour": "red"}]}]}"#,
            "plans[0].rules[0]",
            "",
        ),
        ("", "", "EOF"),
    ] {
        let error = PlanDocument::from_json(text).unwrap_err();
        assert!(error.path().starts_with(path), "{text}: {error}");
        assert!(error.to_string().contains(reason), "{text}: {error}");
        assert_eq!(error.path().is_empty(), path.is_empty(), "{text}: {error}");
    }
}

#[test]
fn a_rule_that_cannot_work_is_named_by_its_place_in_the_document() {
    let fault = |rules: &str| {
        let text =
            format!(r#"{{"plans": [{{"name": "a"}}, {{"name": "b", "rules": [{rules}]}}]}}"#);
        let catalog = PlanDocument::from_json(&text)
            .and_then(|document| PlanCatalog::from_document(&document));
        catalog.unwrap_err().to_string()
    };
    let rate = r#"{"kind": "rate", "limit": 5, "per": "second"}"#;
    for (rules, expected) in [
        (
            r#"{"kind": "rate", "limit": 5, "per": "second", "burst": 0}"#,
            "plans[1].rules[0].burst: ",
        ),
        (
            r#"{"kind": "rate", "limit": -1, "per": "second"}"#,
            "plans[1].rules[0].limit: ",
        ),
        (
            r#"{"kind": "rate", "limt": 5}"#,
            "plans[1].rules[0].limt: unknown field",
        ),
        (
            r#"{"kind": "quota", "limit": 5}"#,
            "plans[1].rules[0]: a rule of kind `quota` needs the field `period`",
        ),
        (&format!("{rate}, {rate}"), "plans[1].rules[1].name: "),
    ] {
        let fault = fault(rules);
        assert!(fault.starts_with(expected), "{rules}: {fault}");
    }
}

#[test]
fn two_plans_of_one_name_are_refused_by_the_place_of_the_second() {
    let document =
        PlanDocument::from_json(r#"{"plans": [{"name": "a"}, {"name": "b"}, {"name": "a"}]}"#);
    let error = PlanCatalog::from_document(&document.unwrap()).unwrap_err();
    assert_eq!(error.path(), "plans[2].name");
    assert!(error.to_string().contains("rename one"));
    let error = PlanCatalog::new([Plan::new("a"), Plan::new("a")]).unwrap_err();
    assert_eq!(error.path(), "plans[a].name");
}

#[test]
fn a_document_that_does_not_work_leaves_the_old_plans_on_sale() {
    let catalog = PlanCatalog::new([Plan::new("free")]).unwrap();
    let version = catalog.version();
    let twice = PlanDocument::from_json(r#"{"plans": [{"name": "a"}, {"name": "a"}]}"#).unwrap();
    assert!(catalog.replace_from_document(&twice).is_err());
    assert!(catalog.find(&name("free")).is_some());
    assert_eq!(catalog.version(), version);
    let other_handle = catalog.clone();
    let document = PlanDocument::from_json(TWO_PLANS).unwrap();
    catalog.replace_from_document(&document).unwrap();
    assert!(other_handle.find(&name("pro")).is_some());
    assert!(catalog.version() > version);
}
