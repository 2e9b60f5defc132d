//! Random documents, filtered for random callers, against a plain reading of the result.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tollgate::openapi::{DocumentAccess, OpenApiDocument};

/// Decisions of a generator, one number after the other.
struct Dice {
    throws: Vec<u16>,
    place: usize,
}

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        let throw = self.throws[self.place % self.throws.len()];
        self.place += 1;
        // Once around, the same throws mean something else.
        (usize::from(throw) + 31 * (self.place / self.throws.len())) % n
    }

    fn chance(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }
}

const N: usize = 8;

fn schema_ref(dice: &mut Dice) -> Value {
    json!({ "$ref": format!("#/components/schemas/Schema{}z", dice.below(N)) })
}

fn schema(dice: &mut Dice, depth: usize) -> Value {
    let nested = |dice: &mut Dice| {
        if depth > 2 || dice.chance(2) {
            schema_ref(dice)
        } else {
            schema(dice, depth + 1)
        }
    };
    match dice.below(8) {
        0 => json!({ "type": "array", "items": nested(dice) }),
        1 => json!({ "allOf": [nested(dice), nested(dice)] }),
        2 => {
            json!({ "type": "object", "properties": { "$ref": nested(dice), "example": nested(dice), "security": nested(dice) } })
        }
        3 => json!({ "type": "object", "additionalProperties": nested(dice) }),
        4 => {
            let by_name = format!("Schema{}z", dice.below(N));
            let by_ref = format!("#/components/schemas/Schema{}z", dice.below(N));
            json!({ "discriminator": { "propertyName": "kind", "mapping": { "a": by_name, "b": by_ref, "c": "other.json#/x" } } })
        }
        5 => {
            json!({ "type": "integer", "example": { "$ref": "#/components/schemas/OnlyData" }, "enum": [1] })
        }
        6 => json!({ "$ref": "https://elsewhere.example/all.json#/Figure" }),
        _ => json!({ "type": "string" }),
    }
}

fn content(dice: &mut Dice) -> Value {
    json!({ "application/json": { "schema": schema(dice, 0), "examples": { "e": { "$ref": format!("#/components/examples/Example{}z", dice.below(N)) } } } })
}

fn link(dice: &mut Dice) -> Value {
    match dice.below(3) {
        0 => json!({ "operationId": format!("operation{}z", dice.below(2 * N)) }),
        1 => json!({ "operationRef": format!("#/paths/~1path{}z/get", dice.below(N)) }),
        _ => json!({ "$ref": format!("#/components/links/Link{}z", dice.below(N)) }),
    }
}

fn response(dice: &mut Dice) -> Value {
    let links: Map<String, Value> = (0..dice.below(3))
        .map(|n| (format!("l{n}"), link(dice)))
        .collect();
    json!({ "description": "d", "content": content(dice), "links": links })
}

/// What a thing asks callers for.
fn fields(dice: &mut Dice, object: &mut Value) {
    match dice.below(6) {
        0 => object["x-tollgate-plans"] = json!([format!("plan{}", dice.below(3)), "plan9"]),
        1 => object["x-tollgate-features"] = json!([format!("feature{}", dice.below(3))]),
        2 => object["x-tollgate-scopes"] = json!([format!("scope{}", dice.below(3))]),
        _ => {}
    }
}

fn operation(dice: &mut Dice, id: usize) -> Value {
    let mut operation = json!({
        "operationId": format!("operation{id}z"),
        "tags": [format!("Tag{}z", dice.below(N))],
        "responses": { "default": { "$ref": format!("#/components/responses/Response{}z", dice.below(N)) }, "200": response(dice) },
        "parameters": [{ "$ref": format!("#/components/parameters/Parameter{}z", dice.below(N)) }],
    });
    if dice.chance(4) {
        operation["security"] = match dice.below(3) {
            0 => json!([]),
            1 => json!([{ "oauth": [format!("scope{}", dice.below(3))] }, { "oauth": ["scope9"] }]),
            _ => json!([{ "key": [] }]),
        };
    }
    if dice.chance(4) {
        let item = json!({ "post": { "requestBody": { "content": content(dice) }, "responses": { "200": response(dice) } } });
        operation["callbacks"] = json!({ "c": { "{$request.body#/url}": item }, "d": { "$ref": "#/components/callbacks/Callback0z" } });
    }
    fields(dice, &mut operation);
    operation
}

fn document(dice: &mut Dice) -> Value {
    let named = |dice: &mut Dice, kind: &str, make: &mut dyn FnMut(&mut Dice) -> Value| -> Value {
        (0..N)
            .map(|n| (format!("{kind}{n}z"), make(dice)))
            .collect::<Map<_, _>>()
            .into()
    };
    let mut paths = Map::new();
    for n in 0..N {
        let mut item = if dice.chance(6) {
            json!({ "$ref": format!("#/components/pathItems/PathItem{}z", dice.below(2)) })
        } else {
            json!({ "get": operation(dice, 2 * n), "post": operation(dice, 2 * n + 1) })
        };
        fields(dice, &mut item);
        paths.insert(format!("/path{n}z"), item);
    }
    let mut tags: Vec<Value> = (0..N)
        .map(|n| json!({ "name": format!("Tag{n}z") }))
        .collect();
    tags.iter_mut()
        .filter(|_| dice.chance(4))
        .for_each(|tag| tag["x-tollgate-features"] = json!(["feature0"]));
    let shared = json!({ "get": { "responses": { "200": response(dice) } } });
    let mut hidden = json!({ "get": { "responses": { "200": response(dice) } } });
    hidden["x-tollgate-plans"] = json!(["plan0"]);
    json!({
        "openapi": "3.1.0",
        "info": { "title": "t", "version": "1" },
        "security": [{ "key": [] }],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": named(dice, "Schema", &mut |dice| schema(dice, 0)),
            "responses": named(dice, "Response", &mut response),
            "links": named(dice, "Link", &mut |dice| json!({ "operationId": format!("operation{}z", dice.below(2 * N)) })),
            "examples": named(dice, "Example", &mut |dice| json!({ "value": { "$ref": "data", "n": dice.below(9) } })),
            "parameters": named(dice, "Parameter", &mut |dice| json!({ "name": "p", "in": "query", "schema": schema(dice, 0) })),
            "callbacks": { "Callback0z": { "{$url}": { "x-tollgate-plans": ["plan1"], "post": { "responses": { "200": response(dice) } } } } },
            "pathItems": { "PathItem0z": shared, "PathItem1z": hidden },
            "securitySchemes": {
                "key": { "type": "apiKey", "in": "header", "name": "k" },
                "oauth": { "type": "oauth2", "flows": { "clientCredentials": { "tokenUrl": "t", "scopes": { "scope0": "", "scope1": "", "scope2": "", "scope9": "" } } } },
            },
        },
    })
}

/// Whether a caller meets the fields, by a reading of its own.
fn meets(object: &Value, access: &DocumentAccess) -> bool {
    let list = |field: &str| -> Option<Vec<&str>> {
        Some(
            object
                .get(field)?
                .as_array()?
                .iter()
                .filter_map(Value::as_str)
                .collect(),
        )
    };
    list("x-tollgate-plans").is_none_or(|plans| {
        plans
            .iter()
            .any(|plan| access.plan.as_deref() == Some(plan))
    }) && list("x-tollgate-features")
        .is_none_or(|names| names.iter().all(|name| access.features.contains(*name)))
        && list("x-tollgate-scopes")
            .is_none_or(|names| names.iter().all(|name| access.scopes.contains(*name)))
}

/// The operations that the caller sees, by path and method.
fn expected(document: &Value, access: &DocumentAccess) -> BTreeSet<(String, String)> {
    let tag_fields: BTreeMap<&str, &Value> = document["tags"]
        .as_array()
        .expect("tags")
        .iter()
        .map(|tag| (tag["name"].as_str().expect("a name"), tag))
        .collect();
    let mut seen = BTreeSet::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for method in ["get", "post"] {
            let Some(operation) = item.get(method) else {
                continue;
            };
            let security = operation
                .get("security")
                .unwrap_or_else(|| &document["security"]);
            let alternatives = security.as_array().expect("a list");
            let is_met = alternatives.is_empty()
                || access.plan.is_some()
                    && alternatives.iter().any(|alternative| {
                        let scopes = alternative
                            .as_object()
                            .expect("schemes")
                            .values()
                            .flat_map(|it| it.as_array().expect("scopes"));
                        scopes
                            .into_iter()
                            .all(|scope| access.scopes.contains(scope.as_str().expect("a scope")))
                    });
            let mut tags = operation["tags"].as_array().expect("tags").iter();
            let sees_tags =
                tags.all(|tag| meets(tag_fields[tag.as_str().expect("a name")], access));
            if meets(item, access) && meets(operation, access) && sees_tags && is_met {
                seen.insert((path.clone(), method.to_owned()));
            }
        }
    }
    seen
}

/// Every `$ref`, mapping and link of the result, but for those that are data.
fn check_references(value: &Value, root: &Value, gone: &BTreeSet<String>, is_names: bool) {
    match value {
        Value::Array(items) => items
            .iter()
            .for_each(|item| check_references(item, root, gone, false)),
        Value::Object(object) => {
            for (key, value) in object {
                match (key.as_str(), value.as_str()) {
                    ("$ref" | "operationRef", Some(to)) if to.starts_with('#') => {
                        assert!(root.pointer(&to[1..]).is_some(), "{to} dangles");
                    }
                    ("operationId", Some(id)) => assert!(!gone.contains(id), "{id} is gone"),
                    ("mapping", _) if !is_names => {
                        for to in value
                            .as_object()
                            .expect("a mapping")
                            .values()
                            .filter_map(Value::as_str)
                        {
                            let is_there = match to.strip_prefix('#') {
                                Some(pointer) => root.pointer(pointer).is_some(),
                                None => {
                                    to.contains('#')
                                        || root["components"]["schemas"].get(to).is_some()
                                }
                            };
                            assert!(is_there, "{to} dangles");
                        }
                    }
                    ("example" | "enum" | "value", _) if !is_names => {}
                    _ => check_references(
                        value,
                        root,
                        gone,
                        matches!(key.as_str(), "properties" | "schemas"),
                    ),
                }
            }
        }
        _ => {}
    }
}

/// The names of components that anything but themselves mentions, from outside the components on.
fn mentioned(result: &Value) -> BTreeSet<String> {
    let mut outside = result.clone();
    let components = outside
        .as_object_mut()
        .expect("an object")
        .remove("components");
    let mut texts = vec![outside.to_string()];
    let mut parts: BTreeMap<String, String> = BTreeMap::new();
    let kinds = components
        .as_ref()
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    for (kind, named) in kinds.filter(|(kind, _)| *kind != "securitySchemes") {
        for (name, part) in named.as_object().expect("names") {
            assert!(
                parts.insert(name.clone(), part.to_string()).is_none(),
                "{kind}"
            );
        }
    }
    let mut found = BTreeSet::new();
    while let Some(text) = texts.pop() {
        for (name, part) in &parts {
            if text.contains(&**name) && found.insert(name.clone()) {
                texts.push(part.clone());
            }
        }
    }
    assert_eq!(
        found,
        parts.into_keys().collect(),
        "components that nothing needs"
    );
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn nothing_dangles_and_nothing_hidden_is_named(
        throws in prop::collection::vec(any::<u16>(), 400),
        plan in prop::option::of(0_usize..3),
        features in prop::collection::btree_set(0_usize..3, 0..3),
        scopes in prop::collection::btree_set(0_usize..3, 0..3),
    ) {
        let original = document(&mut Dice { throws, place: 0 });
        let document = OpenApiDocument::new(original.clone()).expect("a document");
        let mut access = plan.map_or_else(DocumentAccess::anonymous, |plan| DocumentAccess::on_plan(format!("plan{plan}")));
        if plan.is_some() {
            access.features = features.iter().map(|n| format!("feature{n}").into()).collect();
            access.scopes = scopes.iter().map(|n| format!("scope{n}").into()).collect();
        }
        let result = document.for_caller(&access);
        prop_assert_eq!(&result, &document.for_caller(&access));

        // Exactly the operations that the caller may use are there.
        let expected = expected(&original, &access);
        let mut seen = BTreeSet::new();
        let mut ids = BTreeSet::new();
        for (path, item) in result["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("an item") {
                if let Some(id) = operation.get("operationId") {
                    ids.insert(id.as_str().expect("an id").to_owned());
                    seen.insert((path.clone(), method.clone()));
                }
            }
        }
        prop_assert_eq!(&seen, &expected);

        // A link may have led nowhere before.
        let items = original["paths"].as_object().expect("paths").values();
        let known = items.flat_map(|item| ["get", "post"].map(|method| item[method]["operationId"].as_str()));
        let known: BTreeSet<String> = known.flatten().map(str::to_owned).collect();
        let gone: BTreeSet<String> = known.difference(&ids).cloned().collect();
        check_references(&result, &result, &gone, false);
        mentioned(&result);

        // What is gone is named nowhere.
        let text = result.to_string();
        prop_assert!(!text.contains("x-tollgate"));
        for id in &gone {
            prop_assert!(!text.contains(id), "{}", id);
        }
        for n in 0..N {
            let path = format!("path{n}z");
            let is_there = result["paths"].get(format!("/{path}")).is_some();
            prop_assert_eq!(text.contains(&path), is_there, "{}", path);
            let tag = format!("Tag{n}z");
            let in_operation = result["paths"].as_object().expect("paths").values().any(|item| item.to_string().contains(&tag));
            prop_assert_eq!(text.contains(&tag), in_operation, "{}", tag);
        }
        for scope in ["scope0", "scope1", "scope2", "scope9"] {
            let asked = seen.iter().any(|(path, method)| result["paths"][path][method].to_string().contains(scope));
            prop_assert_eq!(text.contains(scope), asked, "{}", scope);
        }
    }
}
