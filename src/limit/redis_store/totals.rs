//! Quotas that Redis has lost, read again from where usage is kept.

use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{
    id::{Environment, KeyId, TenantId},
    limit::{PeriodBounds, Scope, Unit},
};

/// Which quota is asked for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LostQuota {
    /// The tenant.
    pub tenant: TenantId,
    /// Live or test.
    pub environment: Environment,
    /// The key, for a rule that counts for each key.
    pub key: Option<KeyId>,
    /// The rule's name.
    pub rule: Arc<str>,
    /// For whom the rule counts: the tenant or a key.
    pub scope: Scope,
    /// What the rule counts.
    pub unit: Unit,
    /// The period that is counted.
    pub period: PeriodBounds,
}

/// Knows what was used, from usage events for example.
///
/// # Contract
///
/// Asked once for a quota that Redis does not know although its counts may be older: the epoch key in the server is
/// younger than the period, or is gone. The answer may be late, but should not leave out what was acknowledged
/// before Redis lost it. Asked at most once at a time for one quota; the calls that need it wait within their
/// deadline, and their rule's failure policy decides until the answer is there.
#[async_trait]
pub trait QuotaTotals: Debug + Send + Sync + 'static {
    /// Units used in the period so far.
    ///
    /// # Errors
    ///
    /// Any error: the quota stays unknown, and is asked for again by the next call.
    async fn used(
        &self,
        quota: &LostQuota,
    ) -> Result<u64, Box<dyn std::error::Error + Send + Sync>>;
}

/// The quotas that are being read.
#[derive(Debug, Default)]
pub(super) struct Reading(Mutex<HashMap<ReadingKey, watch::Receiver<bool>>>);

/// A key, a field and the start of a period.
pub(super) type ReadingKey = (crate::redis_support::Key, crate::redis_support::Key, u64);

impl Reading {
    /// Joins the reading of a quota that is under way, or begins one.
    pub(super) fn join(
        &self,
        key: &ReadingKey,
    ) -> (watch::Receiver<bool>, Option<watch::Sender<bool>>) {
        let mut reading = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(done) = reading.get(key) {
            return (done.clone(), None);
        }
        let (sender, done) = watch::channel(false);
        reading.insert(key.clone(), done.clone());
        (done, Some(sender))
    }

    pub(super) fn end(&self, key: &ReadingKey) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
    }
}
