use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use super::{InvoiceSink, InvoiceSinkError, Issued};
use crate::{
    id::TenantId,
    pricing::{BillingPeriod, InvoiceDraft},
};

/// Keeps drafts in memory: for tests, and for services that read them from here.
///
/// Cloning gives a second handle to the same drafts.
#[derive(Clone, Debug, Default)]
pub struct MemoryInvoices {
    drafts: Arc<Mutex<Drafts>>,
}

/// By tenant, period and version.
type Drafts = BTreeMap<(TenantId, BillingPeriod, u32), InvoiceDraft>;

impl MemoryInvoices {
    /// No drafts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// All drafts, in the order of tenant, period and version.
    #[must_use]
    pub fn drafts(&self) -> Vec<InvoiceDraft> {
        self.locked().values().cloned().collect()
    }

    /// The last version of a tenant's period: what the next one corrects.
    #[must_use]
    pub fn latest(&self, tenant: &TenantId, period: BillingPeriod) -> Option<InvoiceDraft> {
        let versions = (tenant.clone(), period, 0)..=(tenant.clone(), period, u32::MAX);
        let drafts = self.locked();
        drafts
            .range(versions)
            .next_back()
            .map(|(_, draft)| draft.clone())
    }

    fn locked(&self) -> MutexGuard<'_, Drafts> {
        self.drafts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl InvoiceSink for MemoryInvoices {
    async fn issue(&self, draft: &InvoiceDraft) -> Result<Issued, InvoiceSinkError> {
        let key = (draft.tenant.clone(), draft.period, draft.version);
        let mut drafts = self.locked();
        match drafts.get(&key) {
            None => {
                drafts.insert(key, draft.clone());
                Ok(Issued::Now)
            }
            Some(known) if known == draft => Ok(Issued::Already),
            Some(_) => Err(InvoiceSinkError::Conflict),
        }
    }
}
