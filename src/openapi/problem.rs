use serde_json::{Value, json};

use crate::error::{DEFAULT_TYPE_BASE, ErrorCode};

/// The JSON Schema of the problem documents of this crate (RFC 9457), for the `components` of your document or for
/// tools that make clients.
///
/// The codes of this version are told as `examples` and not as an `enum`, as a later version may have more; so are
/// members beside the standard ones allowed.
///
/// ```
/// let schema = tollgate::openapi::problem_schema();
/// assert_eq!(schema["required"], serde_json::json!(["type", "title", "status", "code"]));
/// ```
#[must_use]
pub fn problem_schema() -> Value {
    let codes: Vec<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
    json!({
        "type": "object",
        "title": "Problem",
        "description": "Why a request was not served (RFC 9457).",
        "required": ["type", "title", "status", "code"],
        "properties": {
            "type": {
                "type": "string",
                "format": "uri-reference",
                "description": "A page that explains the code.",
                "examples": [format!("{DEFAULT_TYPE_BASE}{}", ErrorCode::RateLimited.as_str())],
            },
            "title": { "type": "string", "description": "The same sentence for every occurrence of the code." },
            "status": { "type": "integer", "minimum": 400, "maximum": 599, "description": "The status of the answer." },
            "code": {
                "type": "string",
                "pattern": "^[a-z][a-z0-9_]*$",
                "description": "The stable reason, to branch on. Later versions may have more.",
                "examples": codes,
            },
            "detail": { "type": "string", "description": "What was wrong with this request." },
            "instance": { "type": "string", "format": "uri-reference", "description": "The id of the request." },
        },
        "additionalProperties": true,
    })
}

/// The schema, and a response that is such a document, as parts of an OpenAPI 3.1 document's `components`: refer to
/// `#/components/responses/Problem`.
///
/// ```
/// let components = tollgate::openapi::problem_components();
/// let content = &components["responses"]["Problem"]["content"];
/// assert_eq!(content["application/problem+json"]["schema"]["$ref"], "#/components/schemas/Problem");
/// ```
#[must_use]
pub fn problem_components() -> Value {
    json!({
        "schemas": { "Problem": problem_schema() },
        "responses": {
            "Problem": {
                "description": "The request was not served; `code` says why.",
                "headers": {
                    "X-Request-Id": { "description": "The id of the request.", "schema": { "type": "string" } },
                    "Retry-After": {
                        "description": "Seconds to wait before the next attempt, where waiting helps.",
                        "schema": { "type": "integer", "minimum": 1 },
                    },
                },
                "content": {
                    "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } },
                },
            },
        },
    })
}
