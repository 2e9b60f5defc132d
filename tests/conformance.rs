//! The stores of this crate pass the suites that it publishes.

use tollgate::{auth::MemoryKeyStore, conformance, tenant::MemoryTenantStore};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_store_in_memory_keeps_the_contract() {
    conformance::key_store(|| async { MemoryKeyStore::new() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tenant_store_in_memory_keeps_the_contract() {
    conformance::tenant_store(|| async { MemoryTenantStore::new() }).await;
}
