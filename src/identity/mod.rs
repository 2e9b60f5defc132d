//! Key, tenant, plan and compiled rules, resolved once and cached together.
//!
//! 1. [`AuthLayer`] finds the credential, has it judged by an [`Authenticate`], and puts the [`Identity`] into
//!    the request's extensions. Nothing that a client says of itself stays in the request.
//! 2. [`KeyAuthenticator`] judges API keys: one hash and one look-up in memory for a key seen before, one trip
//!    for any number of requests for a key not seen before. Every hit checks expiry, revocation, environment,
//!    the plans and the tenant, so that a change takes effect on the next call.
//! 3. [`TenantLayer`] lets a tenant do what its payments and its plan allow.
//! 4. [`RequireScope`], [`RequireFeature`] and [`IpAllowLayer`] guard single routes; [`DeprecationLayer`] tells that a
//!    version comes to its end.
//! 5. [`Keys`] and [`Tenants`] are for those who administer: issue, rotate, revoke, move, suspend.
//!
//! A refused request never reaches the service. It is answered with a problem document, which also travels in
//! the response's extensions: 401 for whoever has no valid credential, with one answer for every credential
//! that does not work; 403 for whoever may not do this; 402 for whoever must pay first; 503 when nobody can
//! tell, because a store does not answer. A service that lacks a layer is answered 500, naming it.
//!
//! # Deployment
//!
//! Keys travel in the clear unless TLS ends in front of this. Behind a proxy, tell [`AuthLayer::client_addr`]
//! whom to believe.
//!
//! # Example
//!
//! ```
//! use std::{convert::Infallible, sync::Arc};
//! use http::{Request, Response};
//! use tollgate::auth::MemoryKeyStore;
//! use tollgate::clock::SystemClock;
//! use tollgate::identity::{AuthLayer, Identity, KeyAuthenticator, Keys, NewKey, TenantLayer};
//! use tollgate::plan::{Plan, PlanCatalog};
//! use tollgate::tenant::MemoryTenantStore;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let keys = Arc::new(MemoryKeyStore::new());
//! let tenants = Arc::new(MemoryTenantStore::new());
//! let plans = PlanCatalog::new([Plan::new("free")])?;
//! let admin = Keys::new(keys.clone(), tenants.clone(), plans.clone(), SystemClock::shared());
//! let issued = admin.issue(NewKey::for_tenant("acme").plan("free")).await?;
//!
//! let service = ServiceBuilder::new()
//!     .layer(AuthLayer::new(KeyAuthenticator::builder(keys, tenants, plans).build()?))
//!     .layer(TenantLayer::new())
//!     .service(service_fn(async |request: Request<String>| {
//!         let tenant = request.extensions().get::<Identity>().map(|identity| identity.tenant().id().to_string());
//!         assert_eq!(tenant.as_deref(), Some("acme"));
//!         Ok::<_, Infallible>(Response::new("hello".to_owned()))
//!     }));
//!
//! let valid = Request::builder().header("x-api-key", issued.key.expose()).body(String::new())?;
//! assert_eq!(service.clone().oneshot(valid).await?.status(), 200);
//!
//! let refused = service.oneshot(Request::new(String::new())).await?;
//! assert_eq!(refused.status(), 401);
//! assert!(refused.headers().contains_key("www-authenticate"));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

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
#[cfg(feature = "jwt")]
mod jwt;
mod keys;
mod layer;
mod own_headers;
mod preflight;
mod public_path;
mod resolver;
mod service;
mod span;
mod tenants;
mod twice;

#[cfg(feature = "axum")]
pub use self::extract::MissingIdentity;
#[cfg(feature = "jwt")]
#[cfg_attr(docsrs, doc(cfg(feature = "jwt")))]
pub use self::jwt::{
    ClaimMapping, ClaimsToIdentity, JwtAuthenticator, JwtAuthenticatorBuilder, TokenGrant,
};
#[cfg(feature = "jwt")]
use self::resolver::Terms;
pub(crate) use self::{
    access::tell as tell_access,
    layer::{Caller, Verdict},
};
pub use self::{
    access::{AccessFuture, TenantAccess, TenantLayer},
    authenticate::{Attempt, Authenticate, IdentityLookup},
    cache::CacheSettings,
    future::AuthFuture,
    guard::{
        Deprecated, DeprecationFuture, DeprecationLayer, Guard, Guarded, IpAllowLayer,
        RequireFeature, RequireScope,
    },
    identity::{Grant, Identity},
    keys::{IssuedKey, Keys, KeysError, NewKey},
    layer::AuthLayer,
    public_path::{PathSet, PublicPath},
    resolver::{KeyAuthenticator, KeyAuthenticatorBuilder},
    service::Auth,
    tenants::{Tenants, TenantsError},
};
