//! Plans, tenants and keys from one document.

use tollgate::{
    Tollgate,
    auth::{KeyFormat, KeyHasher, MemoryKeyStore},
    gate::Document,
    identity::NewKey,
    limit::{Quota, Rate, Unit},
    plan::Plan,
    tenant::MemoryTenantStore,
};

use super::{DIGEST, KEY, OTHER, call};

fn toml(text: &str) -> Document {
    Document::from_toml(text).unwrap()
}

fn whole() -> String {
    format!(
        r#"
        [[plans]]
        name = "free"
        rules = [
            {{ kind = "quota", limit = 100, period = "month" }},
            {{ kind = "quota", name = "tokens", limit = 500, period = "daily", unit = "tokens" }},
            {{ kind = "rate", name = "chat", limit = 1, per = "hour", route = "/v1/chat" }},
        ]
        [[tenants]]
        id = "acme"
        plan = "free"
        [[keys]]
        digest = "{DIGEST}"
        tenant = "acme"
        scopes = ["chat:write"]
        "#
    )
}

#[tokio::test]
async fn a_gate_starts_from_one_document() {
    let gate = Tollgate::builder()
        .document(toml(&whole()))
        .build()
        .unwrap();
    assert_eq!(call(&gate, KEY).await, (200, Some(99)));
    assert_eq!(call(&gate, KEY).await, (200, Some(98)));
    assert_eq!(gate.keys().digest(KEY).to_string(), DIGEST);
}

#[tokio::test]
async fn a_rule_of_one_route_holds_in_a_router() {
    use axum::{Router, body::Body, http::Request, routing::get};
    use tower::ServiceExt;

    let gate = Tollgate::builder()
        .document(toml(&whole()))
        .build()
        .unwrap();
    let app: Router = Router::new()
        .route("/v1/chat", get(async || "chat"))
        .route("/v1/hello", get(async || "hello"))
        .layer(gate.layer());
    let call = async |path: &str| {
        let request = Request::get(path).header("x-api-key", KEY);
        let answer = app.clone().oneshot(request.body(Body::empty()).unwrap());
        answer.await.unwrap().status().as_u16()
    };
    assert_eq!(call("/v1/chat").await, 200);
    assert_eq!(call("/v1/chat").await, 429);
    for _ in 0..3 {
        assert_eq!(call("/v1/hello").await, 200);
    }
}

#[tokio::test]
async fn the_same_document_is_read_from_toml_json_a_file_and_written_back() {
    let directory = tempfile::tempdir().unwrap();
    let document = toml(&whole());
    let json = document.to_json().unwrap();
    assert_eq!(Document::from_json(&json).unwrap().to_json().unwrap(), json);
    for name in ["gate.toml", "gate.json", "gate.JSON"] {
        let path = directory.path().join(name);
        document.save(&path).unwrap();
        // Over a file that is there already.
        document.save(&path).unwrap();
        assert_eq!(Document::read(&path).unwrap().to_json().unwrap(), json);
    }
    let names: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(names.len(), 3, "nothing half written is left: {names:?}");
}

#[cfg(unix)]
#[test]
fn a_new_file_is_for_its_owner_alone_and_an_old_one_keeps_its_mode() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gate.json");
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    Document::default().save(&path).unwrap();
    assert_eq!(mode(), 0o600);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    Document::default().save(&path).unwrap();
    assert_eq!(mode(), 0o640);
}

#[tokio::test]
async fn keys_issued_at_run_time_survive_in_the_saved_document() {
    let gate = Tollgate::builder()
        .document(toml(&whole()))
        .build()
        .unwrap();
    let issued = gate
        .keys()
        .issue(NewKey::for_tenant("new").plan("free"))
        .await
        .unwrap();
    let gone = gate.keys().issue(NewKey::for_tenant("acme")).await.unwrap();
    gate.keys().revoke(&gone.record.id).await.unwrap();
    let saved = gate.document().to_toml().unwrap();
    assert!(
        !saved.contains(issued.key.expose()),
        "a raw key is never written"
    );

    let again = Tollgate::builder().document(toml(&saved)).build().unwrap();
    assert_eq!(call(&again, issued.key.expose()).await.0, 200);
    assert_eq!(call(&again, KEY).await.0, 200);
    assert_eq!(call(&again, gone.key.expose()).await.0, 401);
    assert_eq!(again.document().to_toml().unwrap(), saved);
}

#[tokio::test]
async fn plans_in_code_go_with_tenants_and_keys_in_a_document() {
    let keys = format!(
        "[[tenants]]\nid = 'acme'\nplan = 'pro'\n[[keys]]\ndigest = '{DIGEST}'\ntenant = 'acme'"
    );
    let gate = Tollgate::builder()
        .plans([Plan::new("pro").rule(Quota::daily(7))])
        .document(toml(&keys))
        .build()
        .unwrap();
    assert_eq!(call(&gate, KEY).await, (200, Some(6)));
    assert!(!gate.document().to_json().unwrap().contains("plans"));
}

#[test]
fn a_fault_is_named_by_its_path_with_what_is_allowed() {
    let plan = r#"{"name": "free"}"#;
    let tenant = r#"{"id": "acme", "plan": "free"}"#;
    let key = format!(r#"{{"digest": "{DIGEST}", "tenant": "acme", "id": "k"}}"#);
    let all = |plans: &str, tenants: &str, keys: &str| {
        format!(r#"{{"plans": [{plans}], "tenants": [{tenants}], "keys": [{keys}]}}"#)
    };
    let cases = [
        (all(plan, r#"{"id": "acme", "plan": "fre"}"#, ""), "tenants[0].plan", "one of `free`"),
        (all(plan, tenant, &key.replace("acme", "acne")), "keys[0].tenant", "one of `acme`"),
        (
            all(plan, tenant, &key.replace("\"id\"", "\"plan\": \"gold\", \"id\"")),
            "keys[0].plan",
            "no plan `gold`",
        ),
        (all(&format!("{plan}, {plan}"), "", ""), "plans[1].name", "rename"),
        (all(plan, &format!("{tenant}, {tenant}"), ""), "tenants[1].id", "remove one"),
        (all(plan, tenant, &format!("{key}, {key}")), "keys[1].digest", "`keys[0]`"),
        (all(plan, tenant, &format!("{key}, {}", key.replace(DIGEST, OTHER))), "keys[1].id", "`keys[0]`"),
        (
            all(r#"{"name": "free", "rules": [{"kind": "rate", "limit": 5, "per": "second", "burst": 0}]}"#, "", ""),
            "plans[0].rules[0].burst",
            "",
        ),
        (
            all(plan, tenant, &key.replace("\"id\"", r#""limits": [{"kind": "quota", "limit": 1, "period": "day", "time_zone": "Mars"}], "id""#)),
            "keys[0].limits.rules[0].time_zone",
            "IANA",
        ),
        (all(r#"{"name": ""}"#, "", ""), "plans[0].name", "empty"),
        (all(r#"{"name": "a", "rule": []}"#, "", ""), "plans[0].rule", "expected one of"),
        (r#"{"plan": []}"#.to_owned(), "plan", "expected one of `plans`, `tenants`, `keys`"),
        (all("", "", &key), "plans", "at least one plan"),
    ];
    for (json, path, reason) in cases {
        let built = Document::from_json(&json)
            .and_then(|document| Tollgate::builder().document(document).build().map(drop));
        let error = built.unwrap_err();
        assert_eq!(error.path(), path, "{error}\n{json}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn a_fault_in_toml_is_told_with_its_line_and_without_the_text() {
    let error = Document::from_toml(
        "[[plans]]\nname = 'free'\n\n[[keys]]\ndigest = 'secret'\ntenant = 'a'\n",
    )
    .unwrap_err();
    assert_eq!(error.path(), "keys[0].digest");
    assert!(error.to_string().contains("(line 5)"), "{error}");
    assert!(!format!("{error:?}").contains("secret"));
    let error = Document::from_toml("[[plans]]\nname = secret\n").unwrap_err();
    assert!(error.to_string().contains("(line 2)"), "{error}");
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
}

#[test]
fn a_raw_key_in_a_document_is_refused_wherever_it_stands_and_not_repeated() {
    let own = KeyFormat::new("shop").unwrap();
    let raw = own.generate(tollgate::id::Environment::Live).unwrap();
    for key in [KEY, raw.expose()] {
        for field in ["id", "shown"] {
            let text = format!(
                "[[plans]]\nname = 'free'\n[[tenants]]\nid = 'acme'\nplan = 'free'\n\
                 [[keys]]\ndigest = '{DIGEST}'\ntenant = 'acme'\n{field} = '{key}'\n"
            );
            let builder = Tollgate::builder()
                .key_format(own.clone())
                .document(toml(&text));
            let error = builder.build().unwrap_err();
            assert_eq!(error.path(), format!("keys[0].{field}"));
            assert!(!format!("{error} {error:?}").contains(key));
        }
    }
}

#[test]
fn a_store_of_ones_own_and_a_document_do_not_mix() {
    let with_keys = || {
        toml(&format!(
            "[[plans]]\nname = 'free'\n[[keys]]\ndigest = '{DIGEST}'\ntenant = 'acme'"
        ))
    };
    let built = Tollgate::builder()
        .keys(MemoryKeyStore::new())
        .document(with_keys())
        .build();
    assert_eq!(built.unwrap_err().path(), "keys");
    let tenants = toml("[[plans]]\nname = 'free'\n[[tenants]]\nid = 'acme'\nplan = 'free'");
    let built = Tollgate::builder()
        .tenants(MemoryTenantStore::new())
        .document(tenants)
        .build();
    assert_eq!(built.unwrap_err().path(), "tenants");
    let built = Tollgate::builder()
        .plans([Plan::new("free")])
        .document(toml(&whole()))
        .build();
    assert_eq!(built.unwrap_err().path(), "plans");
    // Keys of tenants that are kept elsewhere are fine.
    let built = Tollgate::builder()
        .tenants(MemoryTenantStore::new())
        .document(with_keys())
        .build();
    assert!(built.is_ok(), "{built:?}");
}

#[test]
fn a_document_comes_from_the_environment_by_name() {
    // What is set wherever a test runs: the path of a file, or of several, that is no document.
    let error = Document::from_env("PATH").unwrap_err();
    assert!(error.path().starts_with("PATH"), "{error}");
    let error = Document::from_env("TOLLGATE_TEST_NOT_SET").unwrap_err();
    assert_eq!(
        error.to_string(),
        "TOLLGATE_TEST_NOT_SET: the environment variable is not set"
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Document::read("no/such/file.toml").unwrap_err();
    assert!(error.to_string().contains("no/such/file.toml"), "{error}");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gate.toml");
    std::fs::write(&path, "[[plans]]\nnam = 'free'").unwrap();
    let error = Document::read(&path).unwrap_err();
    assert_eq!(error.path(), "plans[0].nam");
    assert!(error.to_string().contains("gate.toml"), "{error}");
}

#[test]
fn rules_that_count_what_nobody_adds_are_refused_where_the_gate_knows() {
    let plan = |unit: &str| Plan::new("ai").rule(Quota::daily(5).unit(Unit::custom(unit)));
    let build = |unit: &str| {
        Tollgate::builder()
            .plans([plan(unit)])
            .quantities(["tokens", "images"])
            .build()
            .map(drop)
    };
    assert!(build("tokens").is_ok());
    let error = build("token").unwrap_err();
    assert_eq!(error.path(), "plans[ai].rules[0].unit");
    assert!(error.to_string().contains("tokens"), "{error}");
    let gate = Tollgate::builder()
        .plans([plan("tokens")])
        .quantities(["tokens"])
        .build()
        .unwrap();
    assert!(
        gate.plans().replace([plan("token")]).is_err(),
        "later plans too"
    );
    let built = Tollgate::builder()
        .plans([plan("tokens")])
        .quantities(["tokens"])
        .ceiling(Rate::per_day(5).unit(Unit::custom("token")))
        .build();
    assert_eq!(built.unwrap_err().path(), "ceiling.rules[0].unit");
}

#[test]
fn a_plan_without_a_name_is_named_by_its_place() {
    let built = Tollgate::builder()
        .plans([Plan::new("free"), Plan::new("")])
        .build();
    assert_eq!(built.unwrap_err().path(), "plans[1].name");
}

#[tokio::test]
async fn a_peppered_gate_knows_keys_by_its_own_digests() {
    let pepper = || tollgate::auth::Pepper::new([7; 32]).unwrap();
    let digest = KeyHasher::hmac(pepper()).digest(KEY);
    let text = whole().replace(DIGEST, &digest.to_string());
    let gate = Tollgate::builder()
        .key_hasher(KeyHasher::hmac(pepper()))
        .document(toml(&text))
        .build()
        .unwrap();
    assert_eq!(gate.keys().digest(KEY), digest);
    assert_eq!(call(&gate, KEY).await.0, 200);
}

#[test]
fn the_document_of_the_readme_and_the_one_of_the_examples_start_a_gate() {
    let readme = include_str!("../../README.md");
    let start = readme.find("# tollgate.toml").expect("the document");
    let text = readme[start..].split("```").next().expect("its end");
    for text in [text, include_str!("../../examples/tollgate.toml")] {
        let builder = Tollgate::builder().quantities(["tokens"]);
        let gate = builder.document(toml(text)).build().unwrap();
        let again = gate.document().to_toml().unwrap();
        assert_eq!(toml(&again).len(), toml(text).len());
    }
}
