use std::sync::Arc;

use super::{AccessState, TenantRecord};
use crate::id::{PlanName, TenantId};

/// The tenant of a request: a cheap handle to its record.
#[derive(Clone, Debug)]
pub struct Tenant(Arc<TenantRecord>);

impl Tenant {
    /// A handle to a record.
    #[must_use]
    pub const fn new(record: Arc<TenantRecord>) -> Self {
        Self(record)
    }

    /// The tenant's name.
    #[must_use]
    pub fn id(&self) -> &TenantId {
        &self.0.id
    }

    /// The plan that the tenant bought; a key may have another one, see `Identity::plan`.
    #[must_use]
    pub fn plan(&self) -> &PlanName {
        &self.0.plan
    }

    /// The state of the tenant's access as it was last written; [`AccessState::at`] brings it up to date.
    #[must_use]
    pub fn access(&self) -> AccessState {
        self.0.access
    }

    /// The whole record.
    #[must_use]
    pub const fn record(&self) -> &Arc<TenantRecord> {
        &self.0
    }
}
