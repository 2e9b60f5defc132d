//! What a tenant bought.
//!
//! 1. A [`Plan`] is rules, features, allowances, APIs and the address where more can be bought; written in
//!    code, or read from a [`PlanDocument`] in JSON, TOML or any other form that serde reads.
//! 2. A [`PlanCatalog`] checks the plans and compiles their rules once. A fault is a `ConfigError` that names
//!    the field and what to write instead; nothing of a faulty set is taken.
//! 3. The catalog is replaced as a whole while traffic flows. The next call of every tenant is under the new
//!    plan: quotas keep what was used, buckets are rescaled in proportion. With the feature `redis`, a `RedisPlans`
//!    does so in every process.
//!
//! ```
//! use tollgate::{id::PlanName, plan::{PlanCatalog, PlanDocument}};
//!
//! let document = PlanDocument::from_json(r#"{ "plans": [
//!     { "name": "free", "rules": [{ "kind": "rate", "limit": 5, "per": "second", "burst": 10 }] },
//!     { "name": "pro", "features": ["export"], "allowances": { "seats": 5 } }
//! ] }"#)?;
//! let catalog = PlanCatalog::from_document(&document)?;
//! let pro = catalog.find(&PlanName::new("pro")?).expect("a plan of the document");
//! assert!(pro.entitlements().has_feature("export"));
//! assert!(pro.rules().is_empty());
//!
//! let fault = r#"{ "plans": [{ "name": "pro", "featurs": ["export"] }] }"#;
//! let error = PlanDocument::from_json(fault).unwrap_err();
//! assert_eq!(error.path(), "plans[0].featurs");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod catalog;
mod document;
mod entitlement;
#[expect(
    clippy::module_inception,
    reason = "the room is named after its main type"
)]
mod plan;
#[cfg(feature = "redis")]
mod redis_plans;

#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use self::redis_plans::{PublishedPlans, RedisPlans, RedisPlansError};
pub use self::{
    catalog::PlanCatalog,
    document::PlanDocument,
    entitlement::Entitlements,
    plan::{CompiledPlan, Plan},
};
pub(crate) use self::{
    catalog::{Names, check_scopes, check_units},
    document::PlanEntry,
    plan::PlansByName,
};
