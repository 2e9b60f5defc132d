//! How an OpenAPI document is read: where names stand, where references do, and what is somebody's data.

use std::borrow::Cow;

use serde_json::{Map, Value};

/// What the keys of an object are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Names of callbacks.
    Callbacks,
    /// Names of somebody's choice, such as of properties.
    Names,
    /// Keywords of the specification.
    Object,
    /// Somebody's data, such as an example: no key in it means anything.
    Payload,
}

impl Place {
    /// The place of what stands under a key.
    pub(super) fn under(self, key: &str, value: &Value) -> Self {
        let is_data = match key {
            "const" | "default" | "enum" | "example" | "value" => true,
            // Of a schema a list of data, elsewhere named objects.
            "examples" => value.is_array(),
            _ => false,
        };
        match self {
            Self::Callbacks => Self::Names,
            Self::Object if is_data => Self::Payload,
            Self::Object if key == "callbacks" => Self::Callbacks,
            Self::Object if NAMED.contains(&key) && value.is_object() => Self::Names,
            Self::Names | Self::Object => Self::Object,
            Self::Payload => Self::Payload,
        }
    }
}

/// The keywords under which names stand, where they hold an object.
const NAMED: [&str; 21] = [
    "$defs",
    "additionalOperations",
    "content",
    "definitions",
    "dependentSchemas",
    "encoding",
    "examples",
    "headers",
    "links",
    "mediaTypes",
    "parameters",
    "pathItems",
    "paths",
    "patternProperties",
    "properties",
    "requestBodies",
    "responses",
    "schemas",
    "securitySchemes",
    "variables",
    "webhooks",
];

/// Something that names another part of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reference<'a> {
    /// `$dynamicRef`, which a schema with that anchor anywhere may answer.
    Dynamic(&'a str),
    /// A value of a discriminator's mapping: a reference or the name of a schema.
    Mapping(&'a str),
    /// `$ref`; whether it stands in an extension, where it may mean anything.
    Ref { to: &'a str, in_extension: bool },
    /// A scheme of a security requirement.
    Security { scheme: &'a str, scopes: &'a Value },
}

/// Tells every reference of a part of the document.
pub(super) fn references<'a>(value: &'a Value, place: Place, tell: &mut impl FnMut(Reference<'a>)) {
    walk(value, place, false, tell);
}

fn walk<'a>(
    value: &'a Value,
    place: Place,
    in_extension: bool,
    tell: &mut impl FnMut(Reference<'a>),
) {
    match value {
        Value::Array(items) => {
            for item in items {
                walk(item, place, in_extension, tell);
            }
        }
        Value::Object(object) if place != Place::Payload => {
            for (key, value) in object {
                let in_extension =
                    in_extension || (place == Place::Object && key.starts_with("x-"));
                match (key.as_str(), value) {
                    ("$ref", Value::String(to)) => tell(Reference::Ref { to, in_extension }),
                    ("$dynamicRef", Value::String(to)) if place == Place::Object => {
                        tell(Reference::Dynamic(to));
                    }
                    ("discriminator", Value::Object(_)) if place == Place::Object => {
                        mapping(value, tell);
                    }
                    ("security", Value::Array(alternatives)) if place == Place::Object => {
                        security(alternatives, tell);
                    }
                    _ => walk(value, place.under(key, value), in_extension, tell),
                }
            }
        }
        _ => {}
    }
}

fn mapping<'a>(discriminator: &'a Value, tell: &mut impl FnMut(Reference<'a>)) {
    let mapping = discriminator.get("mapping").and_then(Value::as_object);
    for to in mapping.into_iter().flat_map(Map::values) {
        if let Some(to) = to.as_str() {
            tell(Reference::Mapping(to));
        }
    }
    // OpenAPI 3.2 names the schema of values without a mapping.
    if let Some(to) = discriminator.get("defaultMapping").and_then(Value::as_str) {
        tell(Reference::Mapping(to));
    }
}

fn security<'a>(alternatives: &'a [Value], tell: &mut impl FnMut(Reference<'a>)) {
    for (scheme, scopes) in alternatives.iter().filter_map(Value::as_object).flatten() {
        tell(Reference::Security { scheme, scopes });
    }
}

/// A place in the document's components: kind and name.
pub(super) type Component = (String, String);

/// The component that a local reference points to or into.
pub(super) fn component(reference: &str) -> Option<Component> {
    let mut steps = reference.strip_prefix("#/components/")?.split('/');
    let kind = decoded(steps.next()?)?;
    let name = decoded(steps.next()?)?;
    Some((kind, name))
}

/// A step of a JSON pointer in a URI fragment (RFC 6901 sections 4 and 6).
fn decoded(step: &str) -> Option<String> {
    let step = percent_decoded(step)?;
    Some(step.replace("~1", "/").replace("~0", "~"))
}

/// The JSON pointer of a local reference; `None` for an anchor or another document.
pub(super) fn pointer(reference: &str) -> Option<Cow<'_, str>> {
    let fragment = reference.strip_prefix('#')?;
    if !fragment.is_empty() && !fragment.starts_with('/') {
        return None;
    }
    percent_decoded(fragment)
}

fn percent_decoded(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(rest.next())?, digit(rest.next())?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

/// The methods that a path may have.
const METHODS: [&str; 9] = [
    "delete", "get", "head", "options", "patch", "post", "put", "query", "trace",
];

pub(super) fn is_method(key: &str) -> bool {
    METHODS.contains(&key)
}

/// The operations of a path, those of OpenAPI 3.2's further methods too.
pub(super) fn operations(item: &Value) -> impl Iterator<Item = &Value> {
    let own = item.as_object().into_iter().flatten();
    let own = own
        .filter(|(key, _)| is_method(key))
        .map(|(_, value)| value);
    let more = item.get("additionalOperations").and_then(Value::as_object);
    own.chain(more.into_iter().flat_map(Map::values))
}
