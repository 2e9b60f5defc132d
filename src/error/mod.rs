//! One JSON form for every error (RFC 9457).
//!
//! A "no" of this crate is a [`Problem`]: a stable [`ErrorCode`], a status, a `detail`, extension members and
//! header fields. [`ProblemLayer`] gives the rest of a service's errors the same form, so that a client needs
//! one way to read them:
//!
//! 1. A refusal of this crate, or a [`Problem`] that a handler returned, gets the request id.
//! 2. JSON that the service made itself passes untouched.
//! 3. Everything else from status 400 on, such as the empty 405 of a router, becomes a problem whose code
//!    follows from the status.
//! 4. A panic, behind [`catch_panic`], becomes `internal`. Nothing of a failing service's words leaves it.
//!
//! A gRPC call is told the same in [gRPC's form](crate::guide::grpc), with the feature `grpc`.
//!
//! The page [`guide::errors`](crate::guide::errors) lists the codes. A service with a form of its own writes a
//! [`RenderError`] hook.
//!
//! # Deployment
//!
//! Put [`RequestIdLayer`](crate::request_id::RequestIdLayer) outside [`ProblemLayer`]: without it a problem has
//! no `instance`, and nobody can find the log line that belongs to a customer's complaint.
//!
//! ```
//! use axum::{Router, body::Body, http::Request, routing::get};
//! use tollgate::{error::{ErrorCode, Problem, ProblemLayer, catch_panic}, request_id::RequestIdLayer};
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! async fn widget() -> Result<&'static str, Problem> {
//!     Err(Problem::new(ErrorCode::Conflict).detail("the widget has changed"))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let app = ServiceBuilder::new()
//!     .layer(RequestIdLayer::new())
//!     .layer(ProblemLayer::new())
//!     .layer(catch_panic())
//!     .service(Router::new().route("/fine", get(|| async { "fine" })).route("/widget", get(widget)));
//!
//! let fine = app.clone().oneshot(Request::get("/fine").body(Body::empty())?).await?;
//! assert_eq!(fine.status(), 200);
//!
//! let refused = app.oneshot(Request::post("/fine").body(Body::empty())?).await?;
//! assert_eq!(refused.status(), 405);
//! assert_eq!(refused.headers()["content-type"], "application/problem+json");
//! assert_eq!(refused.headers()["allow"], "GET,HEAD");
//! # Ok(())
//! # }
//! ```

mod code;
mod config;
mod future;
#[cfg(feature = "grpc")]
mod grpc;
mod json;
mod layer;
mod panic;
mod problem;
mod render;
mod response;
mod service;

pub use self::{
    code::ErrorCode,
    config::ConfigError,
    future::ResponseFuture,
    json::DEFAULT_TYPE_BASE,
    layer::ProblemLayer,
    panic::{CatchPanic, CatchPanicLayer, PanicFuture, catch_panic},
    problem::Problem,
    render::{ErrorContext, ProblemJson, RenderError, Rendered},
    service::ProblemService,
};
pub(crate) use self::{
    future::{Reading, Replaced, passes, replace},
    panic::{caught, panicked},
    service::RequestFacts,
};
