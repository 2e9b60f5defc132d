//! What a tenant bought.

mod catalog;
mod entitlement;
#[expect(
    clippy::module_inception,
    reason = "the room is named after its main type"
)]
mod plan;

pub use self::{
    catalog::PlanCatalog,
    entitlement::Entitlements,
    plan::{CompiledPlan, Plan},
};
