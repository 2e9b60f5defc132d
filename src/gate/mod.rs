//! Everything as one layer.
//!
//! A [`Tollgate`] is built once, checked when it is built, and shared: its [`layer`](Tollgate::layer) wraps a
//! service in every layer of this crate, in the order that
//! [`guide::layer_order`](crate::guide::layer_order) explains. It is a composition of those layers, not a
//! second implementation: each layer is a step before the call and one after it, and the gate takes the same
//! steps one after the other, in one service instead of seven nested ones.
//!
//! A request that comes in
//!
//! 1. gets a request id;
//! 2. is answered in one JSON form whatever goes wrong, a panic included;
//! 3. is metered, with every outcome;
//! 4. is identified by its key, or refused with 401;
//! 5. is placed in its tenant, and refused with 402 where a payment is due;
//! 6. is decided under the gate's ceiling and then under the rules of its plan, or refused with 429.
//!
//! ```
//! use http::{Request, Response, StatusCode};
//! use std::convert::Infallible;
//! use tollgate::{Tollgate, identity::NewKey, limit::Rate, plan::Plan};
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let gate = Tollgate::builder()
//!     .plans([Plan::new("free").rule(Rate::per_minute(1))])
//!     .build()?;
//! let issued = gate.keys().issue(NewKey::for_tenant("acme").plan("free")).await?;
//!
//! let hello = service_fn(|_: Request<String>| async {
//!     Ok::<_, Infallible>(Response::new("hello".to_owned()))
//! });
//! let service = gate.layer().layer(hello);
//! let request = || Request::get("/").header("x-api-key", issued.key.expose()).body(String::new());
//!
//! assert_eq!(service.clone().oneshot(request()?).await?.status(), StatusCode::OK);
//! assert_eq!(service.clone().oneshot(request()?).await?.status(), StatusCode::TOO_MANY_REQUESTS);
//! let no_key = Request::get("/").body(String::new())?;
//! assert_eq!(service.oneshot(no_key).await?.status(), StatusCode::UNAUTHORIZED);
//! # Ok(())
//! # }
//! ```

mod body;
mod builder;
mod document;
mod future;
mod health;
mod held;
mod layer;
mod merge;
mod reload;
mod steps;
mod stores;
mod tollgate;

pub use crate::series::describe_metrics;

pub use self::{
    body::GateBody,
    builder::TollgateBuilder,
    document::Document,
    future::GateFuture,
    health::Health,
    layer::{GateService, TollgateLayer},
    reload::{Changes, ReloadReport},
    tollgate::{Tollgate, WarmUpError},
};
