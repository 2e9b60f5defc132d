//! What is left of a document for one caller.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{
    access::{DocumentAccess, FIELDS, met, permits},
    document::{OpenApiDocument, operation_ids},
    prune,
    walk::{component, is_method, operations},
};

type Object = Map<String, Value>;

/// Leaves out operations, then all that only they need.
pub(super) fn filter(document: &OpenApiDocument, access: &DocumentAccess) -> Value {
    let Value::Object(mut root) = document.root.clone() else {
        return document.root.clone();
    };
    let view = View::new(document, access);
    if let Some(items) = components_mut(&mut root, "pathItems") {
        view.items(items);
        drop_references_to_nothing(items);
    }
    if let Some(callbacks) = components_mut(&mut root, "callbacks") {
        view.callbacks(callbacks);
    }
    let left = Left::of(&root);
    for kind in ["paths", "webhooks"] {
        if let Some(Value::Object(items)) = root.get_mut(kind) {
            match kind {
                "paths" => view.paths(items, Security::Read),
                _ => view.items(items),
            }
            items.retain(|_, item| left.has(item));
        }
    }
    if document.reads_security
        && let Some(security) = root.get("security")
    {
        match met(security, access) {
            Some(alternatives) => {
                root.insert("security".to_owned(), Value::Array(alternatives));
            }
            // Every operation that it was for is gone.
            None => root.retain(|key, _| key != "security"),
        }
    }
    drop_callbacks(&mut root);
    prune::components(document, &mut root);
    drop_links(document, &mut root);
    prune::components(document, &mut root);
    prune::scopes(&mut root);
    tags(&mut root);
    Value::Object(root)
}

/// Whether `security` decides what is seen: a callback's is about the caller's own server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Security {
    Ignored,
    Read,
}

/// A document through the eyes of a caller.
struct View<'a> {
    access: &'a DocumentAccess,
    reads_security: bool,
    security: Option<&'a Value>,
    tags: BTreeMap<&'a str, &'a Value>,
}

impl<'a> View<'a> {
    fn new(document: &'a OpenApiDocument, access: &'a DocumentAccess) -> Self {
        let tags = document.root.get("tags").and_then(Value::as_array);
        let tags = tags.into_iter().flatten();
        Self {
            access,
            reads_security: document.reads_security,
            security: document.root.get("security"),
            tags: tags
                .filter_map(|tag| Some((tag.get("name")?.as_str()?, tag)))
                .collect(),
        }
    }

    /// Of paths among the components and webhooks, every key is a name.
    fn items(&self, items: &mut Object) {
        items.retain(|_, item| self.item(item, Security::Read));
    }

    /// Of paths and callbacks, a key that begins with `x-` is an extension.
    fn paths(&self, items: &mut Object, security: Security) {
        items.retain(|key, item| key.starts_with("x-") || self.item(item, security));
    }

    /// Leaves out operations of a path; `false` when nothing is left of it.
    fn item(&self, item: &mut Value, security: Security) -> bool {
        if !permits(item, self.access) {
            return false;
        }
        let had = operations(item).count();
        let Some(object) = item.as_object_mut() else {
            return true;
        };
        object.retain(|key, value| !is_method(key) || self.operation(value, security));
        if let Some(Value::Object(more)) = object.get_mut("additionalOperations") {
            more.retain(|_, operation| self.operation(operation, security));
        }
        strip(object);
        let is_empty = had > 0 && operations(item).next().is_none();
        !is_empty || item.get("$ref").is_some()
    }

    fn operation(&self, operation: &mut Value, security: Security) -> bool {
        let tags = operation.get("tags").and_then(Value::as_array);
        let mut tags = tags.into_iter().flatten().filter_map(Value::as_str);
        let is_permitted = permits(operation, self.access)
            && tags.all(|name| {
                let tag = self.tags.get(name);
                tag.is_none_or(|tag| permits(tag, self.access))
            });
        if !is_permitted {
            return false;
        }
        if self.reads_security && security == Security::Read {
            let own = operation.get("security");
            if let Some(asked) = own.or(self.security) {
                let Some(alternatives) = met(asked, self.access) else {
                    return false;
                };
                if own.is_some()
                    && let Some(object) = operation.as_object_mut()
                {
                    object.insert("security".to_owned(), Value::Array(alternatives));
                }
            }
        }
        if let Some(object) = operation.as_object_mut() {
            strip(object);
            if let Some(Value::Object(callbacks)) = object.get_mut("callbacks") {
                self.callbacks(callbacks);
            }
        }
        true
    }

    /// Leaves out callbacks of which nothing is left.
    fn callbacks(&self, callbacks: &mut Object) {
        callbacks.retain(|_, callback| {
            let Some(items) = callback.as_object_mut() else {
                return true;
            };
            let had = items.len();
            let is_reference = items.contains_key("$ref");
            if !is_reference {
                self.paths(items, Security::Ignored);
            }
            is_reference || had == 0 || !items.is_empty()
        });
    }
}

fn strip(object: &mut Object) {
    object.retain(|key, _| !FIELDS.contains(&key.as_str()));
}

/// The paths and callbacks among the components that are left.
struct Left {
    path_items: BTreeSet<String>,
    callbacks: BTreeSet<String>,
}

impl Left {
    fn of(root: &Object) -> Self {
        let names = |kind: &str| {
            let parts = root.get("components").and_then(|it| it.get(kind));
            let parts = parts.and_then(Value::as_object);
            parts.into_iter().flat_map(Map::keys).cloned().collect()
        };
        Self {
            path_items: names("pathItems"),
            callbacks: names("callbacks"),
        }
    }

    /// Whether what a reference points to is left; what is no reference is.
    fn has(&self, item: &Value) -> bool {
        let to = item.get("$ref").and_then(Value::as_str);
        match to.and_then(component) {
            Some((kind, name)) if kind == "pathItems" => self.path_items.contains(&name),
            Some((kind, name)) if kind == "callbacks" => self.callbacks.contains(&name),
            _ => true,
        }
    }
}

/// A path among the components may refer to another one.
fn drop_references_to_nothing(items: &mut Object) {
    loop {
        let left = Left {
            path_items: items.keys().cloned().collect(),
            callbacks: BTreeSet::new(),
        };
        items.retain(|_, item| {
            let to = item.get("$ref").and_then(Value::as_str);
            let is_path = to
                .and_then(component)
                .is_some_and(|(kind, _)| kind == "pathItems");
            !is_path || left.has(item)
        });
        if items.len() == left.path_items.len() {
            return;
        }
    }
}

/// Drops references to callbacks, and paths of callbacks, of which nothing is left.
fn drop_callbacks(root: &mut Object) {
    loop {
        let left = Left::of(root);
        if let Some(callbacks) = components_mut(root, "callbacks") {
            clear_callbacks(callbacks, &left);
        }
        // A callback among the components may refer to another one.
        if Left::of(root).callbacks.len() == left.callbacks.len() {
            each_items(root, &mut |items| {
                for operation in items.values_mut().flat_map(operations_mut) {
                    if let Some(Value::Object(callbacks)) = operation.get_mut("callbacks") {
                        clear_callbacks(callbacks, &left);
                    }
                }
            });
            return;
        }
    }
}

fn clear_callbacks(callbacks: &mut Object, left: &Left) {
    callbacks.retain(|_, callback| {
        if !left.has(callback) {
            return false;
        }
        let Some(items) = callback.as_object_mut() else {
            return true;
        };
        let had = items.len();
        items.retain(|_, item| left.has(item));
        for operation in items.values_mut().flat_map(operations_mut) {
            if let Some(Value::Object(inner)) = operation.get_mut("callbacks") {
                clear_callbacks(inner, left);
            }
        }
        had == 0 || !items.is_empty()
    });
}

fn operations_mut(item: &mut Value) -> Vec<&mut Value> {
    let mut all = Vec::new();
    for (key, value) in item.as_object_mut().into_iter().flatten() {
        if is_method(key) {
            all.push(value);
        } else if key == "additionalOperations"
            && let Some(more) = value.as_object_mut()
        {
            all.extend(more.values_mut());
        }
    }
    all
}

/// The paths, webhooks and paths among the components.
fn each_items(root: &mut Object, act: &mut impl FnMut(&mut Object)) {
    for kind in ["paths", "webhooks"] {
        if let Some(Value::Object(items)) = root.get_mut(kind) {
            act(items);
        }
    }
    if let Some(items) = components_mut(root, "pathItems") {
        act(items);
    }
}

fn components_mut<'a>(root: &'a mut Object, kind: &str) -> Option<&'a mut Object> {
    root.get_mut("components")?.get_mut(kind)?.as_object_mut()
}

fn ids(root: &Object) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let components = root.get("components");
    let component = |kind: &str| {
        components
            .and_then(|it| it.get(kind))
            .and_then(Value::as_object)
    };
    for items in [
        root.get("paths").and_then(Value::as_object),
        root.get("webhooks").and_then(Value::as_object),
        component("pathItems"),
    ] {
        items
            .into_iter()
            .for_each(|items| operation_ids(items, &mut found));
    }
    let callbacks = component("callbacks").into_iter().flat_map(Map::values);
    for items in callbacks.filter_map(Value::as_object) {
        operation_ids(items, &mut found);
    }
    found
}

/// Drops links to operations that are gone, and references to such links.
fn drop_links(document: &OpenApiDocument, root: &mut Object) {
    let known = document.root.as_object().map(ids).unwrap_or_default();
    let left = ids(root);
    let whole = Value::Object(root.clone());
    let leads_on = |link: &Value| {
        let text = |field: &str| link.get(field).and_then(Value::as_str);
        let is_gone = |id: &str| known.contains(id) && !left.contains(id);
        let is_cut = |to: &str| {
            super::walk::pointer(to).is_some_and(|pointer| whole.pointer(&pointer).is_none())
        };
        !text("operationId").is_some_and(is_gone) && !text("operationRef").is_some_and(is_cut)
    };
    let mut gone = BTreeSet::new();
    if let Some(links) = components_mut(root, "links") {
        links.retain(|name, link| {
            let stays = leads_on(link);
            if !stays {
                gone.insert(name.clone());
            }
            stays
        });
    }
    let is_dead = |link: &Value| {
        let to = link.get("$ref").and_then(Value::as_str).and_then(component);
        !leads_on(link) || to.is_some_and(|(kind, name)| kind == "links" && gone.contains(&name))
    };
    for value in root.values_mut() {
        prune::links(value, &is_dead);
    }
}

/// Drops tags without an operation, and groups of tags without a tag.
fn tags(root: &mut Object) {
    let mut used = BTreeSet::new();
    each_items(root, &mut |items| used_tags(items, &mut used));
    if let Some(callbacks) = components_mut(root, "callbacks") {
        for items in callbacks.values_mut().filter_map(Value::as_object_mut) {
            used_tags(items, &mut used);
        }
    }
    if let Some(Value::Array(tags)) = root.get_mut("tags") {
        let name = |tag: &Value| tag.get("name").and_then(Value::as_str).map(str::to_owned);
        tags.retain(|tag| name(tag).is_some_and(|name| used.contains(&name)));
        tags.iter_mut()
            .filter_map(Value::as_object_mut)
            .for_each(strip);
    }
    // A field of documentation tools that names tags.
    if let Some(Value::Array(groups)) = root.get_mut("x-tagGroups") {
        groups.retain_mut(|group| {
            let Some(Value::Array(names)) = group.get_mut("tags") else {
                return true;
            };
            names.retain(|name| name.as_str().is_some_and(|name| used.contains(name)));
            !names.is_empty()
        });
    }
}

fn used_tags(items: &mut Object, used: &mut BTreeSet<String>) {
    for operation in items.values_mut().flat_map(operations_mut) {
        let tags = operation.get("tags").and_then(Value::as_array);
        let names = tags.into_iter().flatten().filter_map(Value::as_str);
        used.extend(names.map(str::to_owned));
        if let Some(Value::Object(callbacks)) = operation.get_mut("callbacks") {
            for items in callbacks.values_mut().filter_map(Value::as_object_mut) {
                used_tags(items, used);
            }
        }
    }
}
