//! The API's OpenAPI document, of which each caller sees what they may use.
//!
//! 1. An [`OpenApiDocument`] is a document that was checked. Paths, operations and tags say by `x-tollgate-plans`,
//!    `x-tollgate-features` and `x-tollgate-scopes` who sees them; scopes that an operation's `security` asks for count
//!    as well.
//! 2. [`OpenApiDocument::for_caller`] leaves out the rest, and all that only the rest needs: nothing in the result
//!    points to something that is gone, or names it.
//! 3. [`OpenApiService`] serves it to whoever calls, with an `ETag`.
//! 4. [`problem_components`] describe this crate's errors for the document.
//!
//! What is not shown is not refused: that is the part of [`RequireFeature`](crate::identity::RequireFeature),
//! [`RequireScope`](crate::identity::RequireScope) and the plan's APIs.
//!
//! ```
//! use axum::{Router, body::Body, http::Request};
//! use serde_json::json;
//! use tollgate::{openapi::{OpenApiDocument, OpenApiService}, prelude::*};
//! use tower::ServiceExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let gate = Tollgate::builder().plans([Plan::new("free"), Plan::new("pro").feature("export")]).build()?;
//! let document = OpenApiDocument::new(json!({
//!     "openapi": "3.1.0",
//!     "info": { "title": "Shop", "version": "1" },
//!     "paths": { "/exports": { "x-tollgate-features": ["export"], "post": { "responses": {} } } },
//! }))?;
//! let app: Router = Router::new().route_service("/openapi.json", OpenApiService::new(document)).layer(gate.layer());
//!
//! let shown = async |plan: &str| {
//!     let issued = gate.keys().issue(NewKey::for_tenant(format!("{plan}-tenant")).plan(plan)).await?;
//!     let request = Request::get("/openapi.json").header("x-api-key", issued.key.expose()).body(Body::empty())?;
//!     let body = app.clone().oneshot(request).await?.into_body();
//!     let text = axum::body::to_bytes(body, 10_000).await?;
//!     Ok::<_, Box<dyn std::error::Error>>(String::from_utf8_lossy(&text).contains("/exports"))
//! };
//! assert!(shown("pro").await?);
//! assert!(!shown("free").await?);
//! # Ok(())
//! # }
//! ```

mod access;
mod document;
mod filter;
mod problem;
mod prune;
mod service;
mod walk;

pub use self::{
    access::DocumentAccess,
    document::OpenApiDocument,
    problem::{problem_components, problem_schema},
    service::OpenApiService,
};
