//! What nothing that is left needs.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{
    document::OpenApiDocument,
    walk::{Component, Place, Reference, references},
};

/// Drops the components that cannot be reached, directly or through others.
pub(super) fn components(document: &OpenApiDocument, root: &mut Map<String, Value>) {
    let reached = reached(document, root);
    let Some(Value::Object(kinds)) = root.get_mut("components") else {
        return;
    };
    kinds.retain(|kind, parts| {
        // Extensions are left alone.
        let Some(parts) = parts.as_object_mut().filter(|_| !kind.starts_with("x-")) else {
            return true;
        };
        parts.retain(|name, _| reached.contains(&(kind.clone(), name.clone())));
        !parts.is_empty()
    });
    if kinds.is_empty() {
        root.retain(|key, _| key != "components");
    }
}

fn reached(document: &OpenApiDocument, root: &Map<String, Value>) -> BTreeSet<Component> {
    let mut reached = BTreeSet::new();
    let mut waiting: Vec<Component> = Vec::new();
    let kinds = root.get("components");
    for (key, value) in root.iter().filter(|(key, _)| *key != "components") {
        // The document's own security is read as that of an operation.
        let own = Value::Object(Map::from_iter([(key.clone(), value.clone())]));
        references(&own, Place::Object, &mut |reference| {
            waiting.extend(document.targets(reference));
        });
    }
    let extensions = kinds.and_then(Value::as_object).into_iter().flatten();
    for (_, value) in extensions.filter(|(kind, _)| kind.starts_with("x-")) {
        references(value, Place::Object, &mut |reference| {
            waiting.extend(document.targets(reference));
        });
    }
    while let Some(component) = waiting.pop() {
        let (kind, name) = &component;
        let part = kinds.and_then(|it| it.get(kind)?.get(name));
        let Some(part) = part.filter(|_| !reached.contains(&component)) else {
            continue;
        };
        // A callback's keys are names, as a map of paths has them.
        let place = if kind == "callbacks" {
            Place::Names
        } else {
            Place::Object
        };
        references(part, place, &mut |reference| {
            waiting.extend(document.targets(reference));
        });
        reached.insert(component);
    }
    reached
}

/// Drops dead links, wherever links stand.
pub(super) fn links(value: &mut Value, is_dead: &impl Fn(&Value) -> bool) {
    walk_links(value, Place::Object, is_dead);
}

fn walk_links(value: &mut Value, place: Place, is_dead: &impl Fn(&Value) -> bool) {
    match value {
        Value::Array(items) => {
            for item in items {
                walk_links(item, place, is_dead);
            }
        }
        Value::Object(object) if place != Place::Payload => {
            if place == Place::Object
                && let Some(Value::Object(links)) = object.get_mut("links")
            {
                links.retain(|_, link| !is_dead(link));
            }
            for (key, value) in object.iter_mut() {
                let under = place.under(key, value);
                walk_links(value, under, is_dead);
            }
        }
        _ => {}
    }
}

/// Drops the scopes of OAuth flows that no operation asks for.
pub(super) fn scopes(root: &mut Map<String, Value>) {
    let mut asked: BTreeSet<(String, String)> = BTreeSet::new();
    let whole = Value::Object(root.clone());
    references(&whole, Place::Object, &mut |reference| {
        if let Reference::Security { scheme, scopes } = reference {
            let scopes = scopes.as_array().into_iter().flatten();
            let scopes = scopes.filter_map(Value::as_str);
            asked.extend(scopes.map(|scope| (scheme.to_owned(), scope.to_owned())));
        }
    });
    let Some(Value::Object(schemes)) = root
        .get_mut("components")
        .and_then(|components| components.get_mut("securitySchemes"))
    else {
        return;
    };
    for (scheme, definition) in schemes {
        let flows = definition.get_mut("flows").and_then(Value::as_object_mut);
        for flow in flows.into_iter().flat_map(Map::values_mut) {
            if let Some(Value::Object(scopes)) = flow.get_mut("scopes") {
                scopes.retain(|scope, _| asked.contains(&(scheme.clone(), scope.clone())));
            }
        }
    }
}
