//! Quotas that Redis has lost, read again from where usage is kept.

use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{
    super::{compile::CompiledAlgorithm, cost::Cost, store::LimitCall},
    answer::Applied,
    inner::Inner,
    prepare::{Prepared, PreparedRule},
    wire::{Operation, PackedCall},
};
use crate::{
    clock::Timestamp,
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

impl Inner {
    /// Reads the quotas of a call from the totals, and waits until they stand in Redis or the source has failed.
    pub(super) async fn read_totals(
        self: &Arc<Self>,
        call: &LimitCall<'_>,
        applied: &[Applied<'_>],
        now: Timestamp,
    ) {
        let owner = call.set.owner();
        for rule in applied
            .iter()
            .filter(|rule| rule.has_count && rule.rule.is_fixed_by_owner())
        {
            let CompiledAlgorithm::Quota(quota) = rule.rule.compiled() else {
                continue;
            };
            let period = quota.bounds(now, owner.billing_anchor);
            let start = period.start.as_unix_micros();
            let prepared = Prepared::of(call.set, &self.space, self.totals.is_some());
            let (Some(totals), Some((key, field))) = (
                &self.totals,
                prepared
                    .rule(rule.index)
                    .and_then(PreparedRule::fixed_place),
            ) else {
                continue;
            };
            let key = (key, field, start);
            let (mut done, begins) = self.reading.join(&key);
            if let Some(begins) = begins {
                let lost = LostQuota {
                    tenant: owner.tenant.clone(),
                    environment: owner.environment,
                    key: owner.key.clone(),
                    rule: Arc::clone(&rule.rule.rule().name),
                    scope: rule.rule.scope().clone(),
                    unit: rule.rule.unit().clone(),
                    period,
                };
                let (inner, totals) = (Arc::clone(self), Arc::clone(totals));
                let (call, index) = (call.to_owned(), rule.index);
                // A task of its own: whoever asked may leave before the answer is there.
                tokio::spawn(async move {
                    match totals.used(&lost).await {
                        Ok(units) => inner.seed(&call.as_call(), index, start, units, now).await,
                        Err(error) => {
                            tracing::warn!(target: "tollgate::redis", error = &*error as &dyn std::error::Error, "the totals of a lost quota are not known");
                        }
                    }
                    inner.reading.end(&key);
                    begins.send_replace(true);
                });
            }
            // A task that has panicked ends the wait as well.
            let _ = done.wait_for(|done| *done).await;
        }
    }

    /// Puts into Redis what is known to have been used, unless more is counted there already.
    pub(super) async fn seed(
        &self,
        call: &LimitCall<'_>,
        index: usize,
        start: u64,
        units: u64,
        now: Timestamp,
    ) {
        let prepared = Prepared::of(call.set, &self.space, self.totals.is_some());
        let values = (start, units.min(Cost::MAX), Some(0));
        let packed = call.set.rules().get(index).and_then(|rule| {
            let prepared = prepared.rule(index)?;
            prepared.pack(&self.space, call.set, rule, call.scopes, values, now, 0)
        });
        let call = PackedCall {
            operation: Operation::Seed,
            time: self.time_of(call),
            rules: packed.into_iter().collect(),
        };
        if let Err(error) = self.ask(self.shard_of(&call), call, None).await {
            tracing::debug!(target: "tollgate::redis", error = &error as &dyn std::error::Error, "a quota was not begun");
        }
    }
}
