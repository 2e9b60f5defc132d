use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use smallvec::SmallVec;

use super::event::EventId;
use crate::{clock::Now, identity::Identity};

/// The most quantities that one call may name; further names are dropped and logged once.
pub const MAX_QUANTITIES: usize = 16;

/// The handle through which a handler says what its call used, also while the response streams.
///
/// Cloning gives a second handle to the same call. What is added after the call was settled (its response body
/// ended or was dropped) is ignored.
#[derive(Clone)]
pub struct Meter(Arc<Call>);

/// Everything that is known of one call while it runs.
pub(crate) struct Call {
    pub(crate) id: EventId,
    pub(crate) started: Now,
    identity: OnceLock<Identity>,
    quantities: Mutex<SmallVec<[(Arc<str>, u64); 2]>>,
    overage: AtomicBool,
    deprecated: AtomicBool,
}

impl Meter {
    /// A meter for one call that started at `started`.
    #[must_use]
    pub fn new(id: EventId, started: Now) -> Self {
        Self(Arc::new(Call {
            id,
            started,
            identity: OnceLock::new(),
            quantities: Mutex::new(SmallVec::new()),
            overage: AtomicBool::new(false),
            deprecated: AtomicBool::new(false),
        }))
    }

    /// Adds to a named quantity, such as `tokens`; the sum stays at `u64::MAX` when it would overflow.
    ///
    /// A call may name up to [`MAX_QUANTITIES`] quantities.
    pub fn add(&self, name: impl Into<Arc<str>>, n: u64) {
        let name = name.into();
        let mut quantities = self
            .0
            .quantities
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((_, sum)) = quantities.iter_mut().find(|(known, _)| *known == name) {
            *sum = sum.saturating_add(n);
        } else if quantities.len() < MAX_QUANTITIES {
            quantities.push((name, n));
        }
    }

    /// The sum of a named quantity so far.
    #[must_use]
    pub fn quantity(&self, name: &str) -> u64 {
        let quantities = self
            .0
            .quantities
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        quantities
            .iter()
            .find(|(known, _)| &**known == name)
            .map_or(0, |(_, sum)| *sum)
    }

    /// When the call reached the meter: the reading of the clock that every layer of the call shares.
    #[must_use]
    pub fn started(&self) -> Now {
        self.0.started
    }

    /// Says who calls; the first word stands. `AuthLayer` does it; whoever has authentication of their own
    /// does it instead.
    pub fn identify(&self, identity: &Identity) {
        let _ = self.0.identity.set(identity.clone());
    }

    /// Who calls, once known.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.0.identity.get()
    }

    /// Marks the call as overage.
    pub fn mark_overage(&self) {
        self.0.overage.store(true, Ordering::Relaxed);
    }

    /// Marks the call as one to a deprecated version.
    pub fn mark_deprecated(&self) {
        self.0.deprecated.store(true, Ordering::Relaxed);
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter")
            .field("id", &self.0.id)
            .finish_non_exhaustive()
    }
}
