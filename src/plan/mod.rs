//! What a tenant bought.

mod catalog;
mod document;
mod entitlement;
#[expect(
    clippy::module_inception,
    reason = "the room is named after its main type"
)]
mod plan;

pub use self::{
    catalog::PlanCatalog,
    document::PlanDocument,
    entitlement::Entitlements,
    plan::{CompiledPlan, Plan},
};
