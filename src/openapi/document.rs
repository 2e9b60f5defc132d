use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{
    access::{DocumentAccess, FEATURES, FIELDS, PLANS, SCOPES, check_fields, names},
    filter,
    walk::{Component, Place, Reference, component, is_method, operations, pointer, references},
};
use crate::error::ConfigError;

/// A reference that is followed into operations is followed so deep.
const MAX_DEPTH: u32 = 64;
/// So many references into operations may be replaced by what they point to.
const MAX_COPIES: u32 = 10_000;

/// An OpenAPI document of version 3.0 to 3.2, checked, from which callers get what they may use.
///
/// A path, an operation or a tag may say who sees it:
///
/// - `x-tollgate-plans`: a list of plans, of which the caller has one;
/// - `x-tollgate-features`: a list of features, all of which the caller's plan has;
/// - `x-tollgate-scopes`: a list of scopes, all of which the caller's credential has.
///
/// What a path or a tag says holds for each of its operations, beside what they say themselves. An operation's `security`
/// counts, too, see [`ignore_security`](Self::ignore_security).
///
/// ```
/// use serde_json::json;
/// use tollgate::openapi::{DocumentAccess, OpenApiDocument};
///
/// let document = OpenApiDocument::new(json!({
///     "openapi": "3.1.0",
///     "info": { "title": "Shop", "version": "1" },
///     "paths": {
///         "/orders": { "get": { "responses": { "200": { "description": "orders" } } } },
///         "/exports": { "x-tollgate-features": ["export"], "post": { "responses": {
///             "200": { "description": "done", "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Export" } } } }
///         } } },
///     },
///     "components": { "schemas": { "Export": { "type": "object" } } },
/// }))?;
/// let public = document.for_caller(&DocumentAccess::anonymous());
/// assert!(public["paths"].get("/exports").is_none());
/// assert!(public.get("components").is_none());
///
/// let pro = document.for_caller(&DocumentAccess::on_plan("pro").feature("export"));
/// assert!(pro["components"]["schemas"].get("Export").is_some());
/// # Ok::<(), tollgate::error::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct OpenApiDocument {
    pub(super) root: Value,
    /// The components that anchors and ids of schemas stand in.
    pub(super) anchors: BTreeMap<String, Vec<Component>>,
    pub(super) reads_security: bool,
}

/// The names that a document asks callers for: nothing else of a caller makes a difference.
#[derive(Clone, Debug, Default)]
pub(super) struct AskedFor {
    pub(super) plans: BTreeSet<String>,
    pub(super) features: BTreeSet<String>,
    pub(super) scopes: BTreeSet<String>,
}

impl OpenApiDocument {
    /// Checks a document.
    ///
    /// References that point into an operation are replaced by what they point to, so that the operation can be left
    /// out. References to other documents are left alone.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when it is no OpenAPI document of version 3, a local reference points nowhere, or a field of this
    /// crate stands where nothing reads it or is no list of names.
    pub fn new(document: Value) -> Result<Self, ConfigError> {
        let version = document.get("openapi").and_then(Value::as_str);
        let is_known = |version: &str| {
            ["3.0.", "3.1.", "3.2."]
                .iter()
                .any(|known| version.starts_with(known))
        };
        if !version.is_some_and(is_known) {
            let reason = "only OpenAPI 3.0, 3.1 and 3.2 are read: write the version as text, such as \"3.1.0\"";
            return Err(ConfigError::new("openapi", reason));
        }
        for field in ["paths", "components", "webhooks"] {
            if document.get(field).is_some_and(|value| !value.is_object()) {
                return Err(ConfigError::new(field, "it must be an object"));
            }
        }
        let whole = document.clone();
        let mut root = document;
        let mut copies = 0;
        copy_in(&mut root, Place::Object, &whole, 0, &mut copies)?;
        let this = Self {
            anchors: anchors(&root),
            root,
            reads_security: true,
        };
        this.check_references()?;
        check_places(&this.root, Place::Object, Seen::Nothing, "")?;
        Ok(this)
    }

    /// Reads and checks a document in JSON.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when it is no JSON, and as [`OpenApiDocument::new`].
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        ConfigError::read_json(text).and_then(Self::new)
    }

    /// Shows operations whatever their `security` asks for, as documentation for everybody does. The fields of this
    /// crate still count.
    ///
    /// Unless this is called, an operation is shown to callers who meet an alternative of its `security`, or of the
    /// document's where it has none: who have all its scopes. One that asks for a credential and no scope is shown to
    /// every caller who is known.
    #[must_use]
    pub const fn ignore_security(mut self) -> Self {
        self.reads_security = false;
        self
    }

    /// What a caller may use: operations that are not are left out, and with them paths, tags, components, links and
    /// scopes that nothing else needs. The fields of this crate are left out, as they name other plans.
    ///
    /// Every local reference of the result points to something, as it did in the document.
    #[must_use]
    pub fn for_caller(&self, access: &DocumentAccess) -> Value {
        filter::filter(self, access)
    }

    pub(super) fn asked_for(&self) -> AskedFor {
        let mut asked = AskedFor::default();
        ask(&self.root, Place::Object, self.reads_security, &mut asked);
        asked
    }

    /// The components that a reference needs.
    pub(super) fn targets(&self, reference: Reference<'_>) -> Vec<Component> {
        let anchored = |name: &str| self.anchors.get(name).cloned().unwrap_or_default();
        match reference {
            Reference::Security { scheme, .. } => {
                vec![("securitySchemes".to_owned(), scheme.to_owned())]
            }
            Reference::Dynamic(to) => anchored(to.trim_start_matches('#')),
            Reference::Mapping(name) if !name.contains(['#', '/']) => {
                let schema = ("schemas".to_owned(), name.to_owned());
                if self.has(&schema) {
                    vec![schema]
                } else {
                    anchored(name)
                }
            }
            Reference::Mapping(to) | Reference::Ref { to, .. } => match component(to) {
                Some(component) => vec![component],
                None if to.starts_with('#') => anchored(to.trim_start_matches('#')),
                None => anchored(to.split('#').next().unwrap_or(to)),
            },
        }
    }

    fn has(&self, (kind, name): &Component) -> bool {
        let kind = self.root.get("components").and_then(|it| it.get(kind));
        kind.and_then(|kind| kind.get(name)).is_some()
    }

    fn check_references(&self) -> Result<(), ConfigError> {
        let mut fault = None;
        references(&self.root, Place::Object, &mut |reference| {
            let to = match reference {
                Reference::Ref { to, in_extension } if !in_extension => to,
                Reference::Mapping(to) if to.starts_with('#') => to,
                _ => return,
            };
            let is_there = match pointer(to) {
                Some(pointer) => self.root.pointer(&pointer).is_some(),
                None => !to.starts_with('#') || self.anchors.contains_key(&to[1..]),
            };
            if !is_there && fault.is_none() {
                let reason =
                    format!("`{to}` points nowhere: mend the reference, or add what it points to");
                fault = Some(ConfigError::new("$ref", reason));
            }
        });
        fault.map_or(Ok(()), Err)
    }
}

/// Replaces references into anything but components by what they point to.
fn copy_in(
    value: &mut Value,
    place: Place,
    root: &Value,
    depth: u32,
    copies: &mut u32,
) -> Result<(), ConfigError> {
    match value {
        Value::Array(items) => {
            for item in items {
                copy_in(item, place, root, depth, copies)?;
            }
        }
        Value::Object(object) if place != Place::Payload => {
            let to = object.get("$ref").and_then(Value::as_str);
            if let Some(to) = to.filter(|to| to.starts_with("#/") && component(to).is_none()) {
                let target = pointer(to).and_then(|pointer| root.pointer(&pointer));
                let Some(Value::Object(target)) = target else {
                    let reason = format!(
                        "`{to}` points nowhere: mend the reference, or add what it points to"
                    );
                    return Err(ConfigError::new("$ref", reason));
                };
                *copies += 1;
                if depth >= MAX_DEPTH || *copies > MAX_COPIES {
                    let reason =
                        format!("`{to}` leads to itself: move what it points to into `components`");
                    return Err(ConfigError::new("$ref", reason));
                }
                let mut copy = target.clone();
                // What stands beside a reference goes before what it points to.
                let beside = object.iter().filter(|(key, _)| *key != "$ref");
                copy.extend(beside.map(|(key, value)| (key.clone(), value.clone())));
                *object = copy;
                return copy_in(value, place, root, depth + 1, copies);
            }
            for (key, value) in object.iter_mut() {
                if place == Place::Object && key.starts_with("x-") {
                    continue;
                }
                let under = place.under(key, value);
                copy_in(value, under, root, depth, copies)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// The components that hold a schema with an anchor or an id.
fn anchors(root: &Value) -> BTreeMap<String, Vec<Component>> {
    let mut anchors: BTreeMap<String, Vec<Component>> = BTreeMap::new();
    let kinds = root.get("components").and_then(Value::as_object);
    for (kind, parts) in kinds.into_iter().flatten() {
        for (name, part) in parts.as_object().into_iter().flatten() {
            let mut found = BTreeSet::new();
            find_anchors(part, Place::Object, &mut found);
            for anchor in found {
                let holders = anchors.entry(anchor).or_default();
                holders.push((kind.clone(), name.clone()));
            }
        }
    }
    anchors
}

fn find_anchors(value: &Value, place: Place, found: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items
            .iter()
            .for_each(|item| find_anchors(item, place, found)),
        Value::Object(object) if place != Place::Payload => {
            for (key, value) in object {
                let is_anchor = matches!(key.as_str(), "$anchor" | "$dynamicAnchor" | "$id");
                match value.as_str() {
                    Some(name) if is_anchor && place == Place::Object => {
                        found.insert(name.trim_end_matches('#').to_owned());
                    }
                    _ => find_anchors(value, place.under(key, value), found),
                }
            }
        }
        _ => {}
    }
}

/// What an object is, as far as fields of this crate may stand in it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// Each of an object's values is a path, whatever its key.
    Items,
    Nothing,
    Operation,
    /// Each of an object's values is an operation.
    Operations,
    PathItem,
    /// Each of an object's values is a path, but for extensions.
    Paths,
    Tag,
}

impl Seen {
    fn under(self, place: Place, key: &str) -> Self {
        match (self, place, key) {
            (Self::Items | Self::Paths, ..) => Self::PathItem,
            (Self::Operations, ..) => Self::Operation,
            (Self::PathItem, Place::Object, "additionalOperations") => Self::Operations,
            (Self::PathItem, Place::Object, key) if is_method(key) => Self::Operation,
            (Self::Nothing, Place::Object, "webhooks" | "pathItems") => Self::Items,
            (Self::Nothing, Place::Object, "paths") | (_, Place::Callbacks, _) => Self::Paths,
            (Self::Nothing, Place::Object, "tags") => Self::Tag,
            _ => Self::Nothing,
        }
    }
}

const OWN: &str = "x-tollgate-";
const MOVE: &str = "it is read in a path, an operation or a tag: move it there";

/// An extension is shown as it is: a field of this crate in it would hide nothing and be shown itself.
fn check_extension(value: &Value, path: &str) -> Result<(), ConfigError> {
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                check_extension(item, &format!("{path}[{index}]"))?;
            }
        }
        Value::Object(object) => {
            for (key, value) in object {
                if key.starts_with(OWN) {
                    return Err(ConfigError::new(key, MOVE).under(path));
                }
                check_extension(value, &format!("{path}.{key}"))?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// A field of this crate that nothing reads would hide nothing.
fn check_places(value: &Value, place: Place, seen: Seen, path: &str) -> Result<(), ConfigError> {
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                check_places(item, place, seen, &format!("{path}[{index}]"))?;
            }
        }
        Value::Object(object) if place != Place::Payload => {
            let at = |error: ConfigError| error.under(path);
            let is_read = matches!(seen, Seen::Operation | Seen::PathItem | Seen::Tag);
            if is_read {
                check_fields(value).map_err(at)?;
            }
            for (key, value) in object {
                let is_keywords = place == Place::Object || seen == Seen::Paths;
                let is_extension = is_keywords && key.starts_with("x-");
                let is_own = is_extension && key.starts_with(OWN);
                if is_own && !is_read {
                    return Err(at(ConfigError::new(key, MOVE)));
                }
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                if is_extension {
                    check_extension(value, &path)?;
                    continue;
                }
                let seen = seen.under(place, key);
                check_places(value, place.under(key, value), seen, &path)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Collects the names that decide what a caller sees.
fn ask(value: &Value, place: Place, reads_security: bool, asked: &mut AskedFor) {
    match value {
        Value::Array(items) => {
            for item in items {
                ask(item, place, reads_security, asked);
            }
        }
        Value::Object(object) if place != Place::Payload => {
            let own = |field| names(value, field).map(str::to_owned);
            asked.plans.extend(own(PLANS));
            asked.features.extend(own(FEATURES));
            asked.scopes.extend(own(SCOPES));
            for (key, value) in object {
                if key == "security" && reads_security {
                    let alternatives = value.as_array().into_iter().flatten();
                    let schemes = alternatives
                        .filter_map(Value::as_object)
                        .flat_map(Map::values);
                    let scopes = schemes.filter_map(Value::as_array).flatten();
                    let scopes = scopes.filter_map(Value::as_str).map(str::to_owned);
                    asked.scopes.extend(scopes);
                } else if !FIELDS.contains(&key.as_str()) {
                    ask(value, place.under(key, value), reads_security, asked);
                }
            }
        }
        _ => {}
    }
}

/// The ids of the operations that paths have, those of their callbacks too.
pub(super) fn operation_ids(items: &Map<String, Value>, ids: &mut BTreeSet<String>) {
    for operation in items.values().flat_map(operations) {
        let id = operation.get("operationId").and_then(Value::as_str);
        ids.extend(id.map(str::to_owned));
        let callbacks = operation.get("callbacks").and_then(Value::as_object);
        for callback in callbacks.into_iter().flat_map(Map::values) {
            if let Some(items) = callback.as_object() {
                operation_ids(items, ids);
            }
        }
    }
}
