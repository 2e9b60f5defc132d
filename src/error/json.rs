//! The JSON form of a problem.

use bytes::Bytes;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::Problem;

/// Where the `type` of a problem points unless a setting says otherwise; the code follows as the fragment.
pub const DEFAULT_TYPE_BASE: &str =
    "https://docs.rs/tollgate/latest/tollgate/guide/errors/index.html#";

/// The members that this crate writes: an extension member of such a name is not taken.
pub(super) const RESERVED: [&str; 6] = ["type", "title", "status", "code", "detail", "instance"];

/// What is left to say should a problem ever fail to serialise.
const FALLBACK: &[u8] = br#"{"type":"about:blank","title":"Internal error","code":"internal"}"#;

/// RFC 9457 section 3: the standard members first, then the extension members in the order of their names.
pub(super) fn problem_json(problem: &Problem, type_base: &str, instance: Option<&str>) -> Bytes {
    let document = Document {
        problem,
        type_base,
        instance,
    };
    serde_json::to_vec(&document).map_or(Bytes::from_static(FALLBACK), Bytes::from)
}

struct Document<'a> {
    problem: &'a Problem,
    type_base: &'a str,
    instance: Option<&'a str>,
}

impl Serialize for Document<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let problem = self.problem;
        let code = problem.code();
        let mut members = serializer.serialize_map(None)?;
        members.serialize_entry("type", &TypeUri(self.type_base, code.as_str()))?;
        members.serialize_entry("title", code.title())?;
        members.serialize_entry("status", &problem.status_code().as_u16())?;
        members.serialize_entry("code", code.as_str())?;
        if let Some(detail) = problem.detail_text() {
            members.serialize_entry("detail", detail)?;
        }
        if let Some(instance) = self.instance {
            members.serialize_entry("instance", instance)?;
        }
        for (name, value) in problem.extensions() {
            members.serialize_entry(name, value)?;
        }
        members.end()
    }
}

struct TypeUri<'a>(&'a str, &'a str);

impl Serialize for TypeUri<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}{}", self.0, self.1))
    }
}
