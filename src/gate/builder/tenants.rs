use std::sync::Arc;

use http::StatusCode;

use super::{TollgateBuilder, no_refusal};
use crate::{gate::stores::Kept, head::RequestHead, tenant::TenantStore};

/// What a tenant may do.
impl TollgateBuilder {
    /// Where tenants are kept; in memory unless set.
    pub fn tenants(mut self, store: impl TenantStore) -> Self {
        self.stores.tenants = Kept::given(Arc::new(store));
        self
    }

    /// Makes `tenant::current_tenant` answer inside the service; off unless set.
    pub fn task_local_tenant(self, on: bool) -> Self {
        self.tenant(move |layer| layer.task_local(on))
    }

    /// The status of a refused change in read-only access; 402 unless set, 400 to 499.
    pub fn read_only_status(mut self, status: StatusCode) -> Self {
        self.faults.extend(no_refusal("read_only_status", status));
        self.tenant(move |layer| layer.read_only_status(status))
    }

    /// Decides what only reads, in place of the method, for tenants in read-only access: every gRPC call is a
    /// POST, for example.
    pub fn reads(self, hook: impl Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.tenant(move |layer| layer.reads(hook))
    }
}
