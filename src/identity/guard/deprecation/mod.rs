//! A version of the API that comes to its end: told to those who call it.

mod future;
mod layer;
mod service;

pub use self::{future::DeprecationFuture, layer::DeprecationLayer, service::Deprecated};
