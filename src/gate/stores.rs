use std::{any::Any, fmt, sync::Arc};

use crate::{
    auth::{KeyStore, MemoryKeyStore},
    limit::{LimitStore, MemoryLimits},
    tenant::{MemoryTenantStore, TenantStore},
};

/// Where a gate keeps keys, tenants and counts: in memory, or in what the user gave.
pub(super) struct Stores {
    pub(super) keys: Kept<dyn KeyStore, MemoryKeyStore>,
    pub(super) tenants: Kept<dyn TenantStore, MemoryTenantStore>,
    pub(super) limits: Kept<dyn LimitStore, MemoryLimits>,
}

/// A store, and the same as the one in memory where it is that.
pub(super) struct Kept<S: ?Sized, M> {
    pub(super) store: Arc<S>,
    pub(super) memory: Option<Arc<M>>,
}

impl Stores {
    pub(super) fn in_memory() -> Self {
        let keys = Arc::new(MemoryKeyStore::new());
        let tenants = Arc::new(MemoryTenantStore::new());
        let limits = Arc::new(MemoryLimits::new());
        Self {
            keys: Kept {
                store: Arc::<MemoryKeyStore>::clone(&keys),
                memory: Some(keys),
            },
            tenants: Kept {
                store: Arc::<MemoryTenantStore>::clone(&tenants),
                memory: Some(tenants),
            },
            limits: Kept {
                store: Arc::<MemoryLimits>::clone(&limits),
                memory: Some(limits),
            },
        }
    }
}

impl<S: ?Sized, M> Kept<S, M> {
    /// A store of the user's, which the gate only asks.
    pub(super) fn given(store: Arc<S>) -> Self {
        Self {
            store,
            memory: None,
        }
    }
}

/// A limit store that the user gave, which may be the one in memory with settings of its own.
pub(super) fn limits<S: LimitStore>(store: S) -> Kept<dyn LimitStore, MemoryLimits> {
    let store = Arc::new(store);
    let any: Arc<dyn Any + Send + Sync> = Arc::<S>::clone(&store);
    let memory = match any.downcast::<MemoryLimits>() {
        Ok(memory) => Some(memory),
        Err(any) => any
            .downcast_ref::<Arc<MemoryLimits>>()
            .map(Arc::<MemoryLimits>::clone),
    };
    Kept { store, memory }
}

impl<S: ?Sized + fmt::Debug, M> fmt::Debug for Kept<S, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}
