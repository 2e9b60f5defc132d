//! Who is calling: the tenant, its plan's name and the state of its payments.

mod access;
mod document;
mod memory_store;
mod record;
mod store;
#[expect(
    clippy::module_inception,
    reason = "the room is named after its main type"
)]
mod tenant;

pub use self::{
    access::{Access, AccessState},
    document::TenantDocument,
    memory_store::MemoryTenantStore,
    record::TenantRecord,
    store::{TenantListener, TenantStore, TenantStoreError},
    tenant::Tenant,
};
