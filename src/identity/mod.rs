//! Key, tenant, plan and compiled rules, resolved once and cached together.

mod access;
mod authenticate;
mod cache;
#[cfg(feature = "axum")]
mod extract;
mod future;
mod guard;
#[expect(
    clippy::module_inception,
    reason = "the room is named after its main type"
)]
mod identity;
mod keys;
mod layer;
mod own_headers;
mod public_path;
mod resolver;
mod service;
mod tenants;

#[cfg(feature = "axum")]
pub use self::extract::MissingIdentity;
pub use self::{
    access::{AccessFuture, TenantAccess, TenantLayer},
    authenticate::{Attempt, Authenticate, IdentityLookup},
    cache::CacheSettings,
    future::AuthFuture,
    guard::{Guard, Guarded, IpAllowLayer, RequireFeature, RequireScope},
    identity::{Grant, Identity},
    keys::{IssuedKey, Keys, KeysError, NewKey},
    layer::AuthLayer,
    public_path::{PathSet, PublicPath},
    resolver::{KeyAuthenticator, KeyAuthenticatorBuilder},
    service::Auth,
    tenants::{Tenants, TenantsError},
};
