//! What callers see of an OpenAPI document.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tollgate::{
    identity::PublicPath,
    openapi::{
        DocumentAccess, OpenApiDocument, OpenApiService, problem_components, problem_schema,
    },
    prelude::*,
};

use crate::common;

const SHOP: &str = include_str!("../golden/openapi/shop.json");
const INSTALL: &str = "install it with scripts/install-test-servers";

fn shop() -> OpenApiDocument {
    OpenApiDocument::from_json(SHOP).expect("a document")
}

fn callers() -> [(&'static str, DocumentAccess); 4] {
    let pro = DocumentAccess::on_plan("pro");
    [
        ("anonymous", DocumentAccess::anonymous()),
        ("free", DocumentAccess::on_plan("free")),
        ("pro", pro.feature("export").scope("orders:write")),
        ("admin", DocumentAccess::on_plan("free").scope("admin")),
    ]
}

/// Answers of the validator that others use, one for each document.
fn validated(documents: &[Value]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut python = Command::new(root.join("target/test-servers/bin/python"))
        .arg(root.join("tests/billing/validate_openapi.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("the validator is missing: {error}; {INSTALL}"));
    let stdin = python.stdin.take().expect("a pipe");
    serde_json::to_writer(stdin, documents).expect("a pipe that is read");
    let output = python.wait_with_output().expect("an end");
    assert!(output.status.success(), "the validator failed; {INSTALL}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn each_caller_sees_the_golden_part() {
    for (name, access) in callers() {
        let file = format!("tests/golden/openapi/shop-{name}.json");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(&file);
        let golden = std::fs::read_to_string(path).expect("a golden file");
        let golden: Value = serde_json::from_str(&golden).expect("JSON");
        let seen = shop().for_caller(&access);
        assert_eq!(seen, golden, "{file}: {seen:#}");
    }
}

#[test]
fn what_callers_see_is_valid_by_another_validator() {
    let mut documents: Vec<Value> = callers()
        .iter()
        .map(|(_, access)| shop().for_caller(access))
        .collect();
    let mut problems =
        json!({ "openapi": "3.1.0", "info": { "title": "t", "version": "1" }, "paths": {} });
    problems["components"] = problem_components();
    documents.push(problems);
    // The validator is one that can say no.
    documents.push(json!({ "openapi": "3.1.0", "info": {} }));
    let old = json!({
        "openapi": "3.0.3", "info": { "title": "t", "version": "1" }, "tags": [{ "name": "a" }],
        "paths": { "/a": { "x-tollgate-features": ["a"], "get": { "responses": { "200": { "description": "a" } } } } }
    });
    let old = OpenApiDocument::new(old).expect("a document");
    documents.push(old.for_caller(&DocumentAccess::anonymous()));
    documents.push(old.for_caller(&DocumentAccess::on_plan("free").feature("a")));
    let told = validated(&documents);
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(
        lines,
        [
            "valid", "valid", "valid", "valid", "valid", "invalid", "valid", "valid"
        ]
    );
}

#[test]
fn operations_are_documented_for_everybody_where_security_is_ignored() {
    let seen = shop()
        .ignore_security()
        .for_caller(&DocumentAccess::anonymous());
    assert!(seen["paths"]["/orders"].get("post").is_some());
    // The fields of this crate still count.
    assert!(seen["paths"]["/orders"].get("delete").is_none());
    assert_eq!(seen["security"], json!([{ "key": [] }]));
    assert_eq!(
        seen["paths"]["/orders"]["post"]["security"]
            .as_array()
            .map(Vec::len),
        Some(2)
    );
}

#[test]
fn a_webhook_is_filtered_whatever_its_name() {
    let hidden = json!({ "post": {
        "x-tollgate-plans": ["pro"], "responses": { "200": { "description": "d" } }
    } });
    let document = json!({
        "openapi": "3.1.0", "info": { "title": "t", "version": "1" },
        "paths": { "x-note": { "post": "shown" } },
        "webhooks": { "x-hidden": hidden },
        "components": { "pathItems": { "x-part": hidden } },
    });
    let document = OpenApiDocument::new(document).expect("a document");
    let seen = document.for_caller(&DocumentAccess::anonymous());
    assert!(!seen.to_string().contains("x-hidden") && !seen.to_string().contains("x-part"));
    assert_eq!(seen["paths"]["x-note"]["post"], "shown");
    let seen = document.for_caller(&DocumentAccess::on_plan("pro"));
    assert!(seen["webhooks"]["x-hidden"].get("post").is_some());
    assert!(!seen.to_string().contains("x-tollgate"));
}

#[test]
fn references_into_operations_are_replaced_by_what_they_point_to() {
    let of = |schema: Value| {
        json!({
            "openapi": "3.0.0", "info": { "title": "t", "version": "1" },
            "paths": {
                "/hidden": { "x-tollgate-features": ["a"], "get": { "responses": { "200": {
                    "description": "d", "content": { "application/json": { "schema": schema } } } } } },
                "/seen": { "get": { "responses": { "200": { "description": "d", "content": { "application/json": {
                    "schema": { "$ref": "#/paths/~1hidden/get/responses/200/content/application~1json/schema" } } } } } } },
            },
            "components": { "schemas": { "A": { "type": "integer" } } }
        })
    };
    let document =
        OpenApiDocument::new(of(json!({ "$ref": "#/components/schemas/A" }))).expect("a document");
    let seen = document.for_caller(&DocumentAccess::anonymous());
    let schema = "/paths/~1seen/get/responses/200/content/application~1json/schema/$ref";
    assert_eq!(seen.pointer(schema), Some(&json!("#/components/schemas/A")));
    assert_eq!(
        seen["components"]["schemas"]["A"],
        json!({ "type": "integer" })
    );
    let cycle = json!({ "type": "array", "items": {
        "$ref": "#/paths/~1hidden/get/responses/200/content/application~1json/schema" } });
    let error = OpenApiDocument::new(of(cycle)).expect_err("a cycle");
    assert!(error.to_string().contains("leads to itself"), "{error}");
}

#[test]
fn a_faulty_document_is_refused_by_the_place_of_its_fault() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut document: Value = serde_json::from_str(SHOP).expect("JSON");
        change(&mut document);
        let error = OpenApiDocument::new(document).expect_err("a fault");
        (error.path().to_owned(), error.to_string())
    };
    for (change, path, says) in [
        (
            &(|it: &mut Value| it["openapi"] = json!("2.0")) as &dyn Fn(&mut Value),
            "openapi",
            "only OpenAPI 3.0",
        ),
        (&|it| it["openapi"] = json!(3), "openapi", "as text"),
        (&|it| it["paths"] = json!([]), "paths", "an object"),
        (
            &|it| it["paths"]["/status"]["get"]["x-tollgate-plans"] = json!("pro"),
            "paths./status.get.x-tollgate-plans",
            "a list of names",
        ),
        (
            &|it| it["paths"]["/status"]["x-tollgate-plan"] = json!(["pro"]),
            "paths./status.x-tollgate-plan",
            "no such field",
        ),
        (
            &|it| it["components"]["schemas"]["Order"]["x-tollgate-plans"] = json!(["pro"]),
            "components.schemas.Order.x-tollgate-plans",
            "move it there",
        ),
        (
            &|it| it["x-groups"] = json!([{ "of": { "x-tollgate-plans": ["pro"] } }]),
            "x-groups[0].of.x-tollgate-plans",
            "move it there",
        ),
        (
            &|it| it["paths"]["x-more"] = json!({ "get": { "x-tollgate-plans": ["pro"] } }),
            "paths.x-more.get.x-tollgate-plans",
            "move it there",
        ),
        (
            &|it| it["paths"]["x-tollgate-plans"] = json!(["pro"]),
            "paths.x-tollgate-plans",
            "move it there",
        ),
        (
            &|it| it["tags"][0]["x-tollgate-scopes"] = json!([1]),
            "tags[0].x-tollgate-scopes",
            "a list of names",
        ),
        (
            &|it| {
                it["components"]["schemas"]["Order"]["not"] =
                    json!({ "$ref": "#/components/schemas/Nothing" })
            },
            "$ref",
            "`#/components/schemas/Nothing` points nowhere",
        ),
        (
            &|it| it["components"]["schemas"]["Order"]["not"] = json!({ "$ref": "#nothing" }),
            "$ref",
            "points nowhere",
        ),
        (
            &|it| {
                it["components"]["schemas"]["Order"]["not"] = json!({ "$ref": "#/paths/~1nothing" })
            },
            "$ref",
            "points nowhere",
        ),
    ] {
        let found = with(change);
        assert_eq!(found.0, path, "{}", found.1);
        assert!(found.1.contains(says), "{}", found.1);
    }
    assert!(OpenApiDocument::from_json("{").is_err());
    assert!(OpenApiDocument::from_json("[]").is_err());
}

#[tokio::test]
async fn every_caller_of_a_gate_gets_their_own_document() {
    let gate = Tollgate::builder()
        .plans([Plan::new("free"), Plan::new("pro").feature("export")])
        .public(["/public.json"])
        .build()
        .expect("a gate");
    let key = async |plan: &str| {
        let new = NewKey::for_tenant(format!("{plan}-tenant")).plan(plan);
        gate.keys()
            .issue(new)
            .await
            .expect("issued")
            .key
            .expose()
            .to_owned()
    };
    let (free, pro) = (key("free").await, key("pro").await);
    let service = OpenApiService::new(shop());
    let app = axum::Router::new()
        .route_service("/openapi.json", service.clone())
        .route_service("/public.json", service)
        .layer(gate.layer());
    let server = common::serve(app).await;
    let get = async |method: &str, path: &str, key: &str, known: Option<&str>| {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("x-api-key", key);
        if let Some(known) = known {
            request = request.header("if-none-match", known);
        }
        server
            .send(request.body(Full::new(Bytes::new())).expect("a request"))
            .await
    };

    let of_free = get("GET", "/openapi.json", &free, None).await;
    assert_eq!(of_free.status, 200);
    let etag = of_free.headers["etag"].to_str().expect("text").to_owned();
    assert_eq!(of_free.headers["vary"], "authorization, x-api-key");
    assert_eq!(of_free.headers["cache-control"], "private, no-cache");
    let text = String::from_utf8(of_free.body.to_vec()).expect("text");
    assert!(text.contains("listOrders") && !text.contains("xport") && !text.contains("x-tollgate"));

    let of_pro = get("GET", "/openapi.json", &pro, Some(&etag)).await;
    assert_eq!(of_pro.status, 200);
    assert!(String::from_utf8_lossy(&of_pro.body).contains("exportOrders"));
    assert_ne!(of_pro.headers["etag"], etag.as_str());

    for known in [etag.clone(), format!("\"x\", W/{etag}"), "*".to_owned()] {
        let again = get("GET", "/openapi.json", &free, Some(&known)).await;
        assert_eq!(
            (again.status.as_u16(), again.body.len()),
            (304, 0),
            "{known}"
        );
        assert_eq!(again.headers["etag"], etag.as_str());
        assert!(again.headers.contains_key("vary"));
    }
    let head = get("HEAD", "/openapi.json", &free, None).await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    assert_eq!(
        head.headers["content-length"],
        text.len().to_string().as_str()
    );
    let refused = get("DELETE", "/openapi.json", &free, None).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.headers["allow"]),
        (405, &"GET, HEAD".parse().expect("a value"))
    );

    // Nobody is known on a public path.
    let public = get("GET", "/public.json", &pro, None).await;
    let text = String::from_utf8_lossy(&public.body);
    assert!(text.contains("/status") && !text.contains("listOrders"));

    // A plan that changes shows on the next call.
    let plans = [Plan::new("free").feature("export"), Plan::new("pro")];
    gate.plans().replace(plans).expect("plans");
    let changed = get("GET", "/openapi.json", &free, Some(&etag)).await;
    assert!(String::from_utf8_lossy(&changed.body).contains("exportOrders"));
}

#[tokio::test]
async fn callers_who_bring_names_of_their_own_make_no_more_variants() {
    use tollgate::{
        identity::Grant,
        plan::PlanCatalog,
        tenant::{Tenant, TenantRecord},
    };
    use tower::ServiceExt;

    let catalog = PlanCatalog::new([Plan::new("free")]).expect("plans");
    let plan = catalog
        .find(&"free".parse().expect("a name"))
        .expect("a plan");
    let service = OpenApiService::new(shop());
    let call = async |scopes: Vec<String>| {
        let id = "acme".parse().expect("an id");
        let tenant = Tenant::new(std::sync::Arc::new(TenantRecord::new(
            id,
            "free".parse().expect("a name"),
        )));
        let mut grant = Grant::default();
        grant.scopes = scopes.into_iter().map(Into::into).collect();
        let identity =
            Identity::new(tenant, std::sync::Arc::clone(&plan), grant).expect("an identity");
        let mut request = Request::get("/openapi.json").body(()).expect("a request");
        request.extensions_mut().insert(PublicPath::Anonymous);
        request.extensions_mut().insert(identity);
        let answer = service.clone().oneshot(request).await.expect("never fails");
        answer
            .into_body()
            .collect()
            .await
            .expect("never fails")
            .to_bytes()
    };
    let first = call(Vec::new()).await;
    for n in 0..200 {
        assert_eq!(call(vec![format!("scope-{n}")]).await, first);
    }
    assert_ne!(call(vec!["admin".to_owned()]).await, first);
    assert_eq!(format!("{service:?}"), "OpenApiService { variants: 2, .. }");
}

#[test]
fn every_problem_of_this_crate_meets_the_schema() {
    let golden = include_str!("../golden/problems.jsonl");
    let problems: Vec<Value> = golden
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let n = problems.len();
    let told = validated(&[json!({ "schema": problem_schema(), "instances": problems })]);
    assert_eq!(told.lines().collect::<Vec<_>>(), vec!["valid"; n]);
}
