//! What a known caller may do by its payments and its plan.

mod future;
mod layer;
mod service;

pub(crate) use self::layer::tell;
pub(super) use self::layer::with_upgrade_url;
pub use self::{future::AccessFuture, layer::TenantLayer, service::TenantAccess};
