//! gRPC behind the gate.
//!
//! A gRPC call is known by its `content-type`, `application/grpc`. For it, and for gRPC-Web, the same layers do what
//! they do for every call, with three differences:
//!
//! 1. **Errors** leave as gRPC's: [`ProblemLayer`](crate::error::ProblemLayer), outermost in the gate, turns a
//!    refusal, a panic or any other plain HTTP error into an answer of status 200 without messages, with
//!    `grpc-status`, `grpc-message` and `grpc-status-details-bin`. [`GrpcCode::from_http`] has the table. Other
//!    fields stay as metadata: `x-request-id`, `retry-after`, `ratelimit`, `www-authenticate`.
//! 2. **Metering** reads `grpc-status` from the trailers: an event carries it as
//!    [`grpc_status`](crate::meter::UsageEvent::grpc_status), and the codes that [`GrpcCode::is_failure`] names make
//!    the call a failed one, also for the limits: it is given back to quotas, as after a 5xx, and never to rates. A
//!    call that ends without a status is `UNKNOWN`.
//! 3. **Routes**: [`GrpcRoutes`] lists the methods, for routes and for what a read-only tenant may call.
//!
//! What a service answers by itself, with `grpc-status`, is not touched. The deadline of a call (`grpc-timeout`)
//! is the service's affair.
//!
//! # Deployment
//!
//! The gate is a layer of tonic's `Server::builder().layer(gate.layer())`, or of an axum `Router`. tonic keeps the
//! peer's address in an extension of its own: put it into a [`PeerAddress`](crate::head::PeerAddress) outside of the
//! gate, as `examples/grpc_service.rs` does, or every failed attempt counts for one address. Layers that translate
//! gRPC-Web (`tonic-web`) may stand on either side.
//!
//! ```
//! use axum::{body::Body, http::Request};
//! use tollgate::{Tollgate, grpc::{GrpcCode, GrpcRoutes}, plan::Plan};
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let gate = Tollgate::builder()
//!     .plans([Plan::new("free")])
//!     .route_of(GrpcRoutes::new(["/shop.Orders/Place"])?)
//!     .public(["/grpc.health.v1.Health/*"])
//!     .build()?;
//! let orders = ServiceBuilder::new().layer(gate.layer()).service(tonic::service::Routes::default());
//!
//! let call = |path: &str| Request::post(path).header("content-type", "application/grpc").body(Body::empty());
//! let refused = orders.clone().oneshot(call("/shop.Orders/Place")?).await?;
//! assert_eq!(refused.status(), 200);
//! assert_eq!(refused.headers()["grpc-status"], GrpcCode::Unauthenticated.as_u8().to_string());
//!
//! // Public, and so answered by the service; which serves no such method here.
//! let passed = orders.oneshot(call("/grpc.health.v1.Health/Check")?).await?;
//! assert_eq!(passed.headers()["grpc-status"], "12");
//! # Ok(())
//! # }
//! ```

mod code;
mod kind;
mod routes;
mod watch;
mod web;

pub use self::{code::GrpcCode, routes::GrpcRoutes};
pub(crate) use self::{
    kind::GrpcKind,
    watch::{GRPC_STATUS, Watch},
    web::TRAILERS,
};
