//! Who is calling: the tenant, its plan's name and the state of its payments.

mod access;
mod document;
mod memory_store;
mod record;
mod store;
mod task_local;
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
    task_local::{current_tenant, with_tenant},
    tenant::Tenant,
};

pub(crate) use self::task_local::CURRENT;
