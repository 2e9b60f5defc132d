//! What a service may say about its limits.

use std::{
    fmt::{self, Debug},
    sync::Arc,
};

use async_trait::async_trait;

use super::decision::Crossing;
use crate::{head::RequestHead, id::TenantId};

/// Says what a call counts under: a team, a model, a header's value. A closure works.
///
/// `None` means that the call is not counted.
pub trait LimitKey: Send + Sync + 'static {
    /// The text that calls of the same count share. Must not be a secret: it stands in stores.
    fn limit_key(&self, head: &RequestHead<'_>) -> Option<Arc<str>>;
}

impl<F, T> LimitKey for F
where
    F: Fn(&RequestHead<'_>) -> Option<T> + Send + Sync + 'static,
    T: Into<Arc<str>>,
{
    fn limit_key(&self, head: &RequestHead<'_>) -> Option<Arc<str>> {
        self(head).map(Into::into)
    }
}

/// A tenant has used up a share of one of its limits.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ThresholdEvent {
    /// Who.
    pub tenant: TenantId,
    /// The rule's name.
    pub rule: Arc<str>,
    /// How much, and of what.
    pub crossing: Crossing,
}

/// Hears once per rule and period that a threshold was reached, for example to write to the customer.
///
/// Runs in a task of its own: a slow sink delays no request.
#[async_trait]
pub trait ThresholdSink: Debug + Send + Sync + 'static {
    /// A threshold was reached for the first time in its period.
    async fn threshold_reached(&self, event: ThresholdEvent);
}

/// Writes a line to the log, at target `tollgate::limit`.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct LogThresholds;

#[async_trait]
impl ThresholdSink for LogThresholds {
    async fn threshold_reached(&self, event: ThresholdEvent) {
        let Crossing {
            percent,
            used,
            limit,
            ..
        } = event.crossing;
        tracing::info!(
            target: "tollgate::limit",
            tenant = %event.tenant,
            rule = %event.rule,
            percent,
            used,
            limit,
            "threshold reached"
        );
    }
}

/// In the response's extensions when a store gave no answer and a rule's policy decided instead.
///
/// So that "unlimited" and "store down" are never the same answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitDegraded {
    /// The call may have been charged by the store as well.
    pub indeterminate: bool,
}

/// A hook that settings can print and share.
pub(crate) struct Hook<T: ?Sized>(pub(crate) Arc<T>);

impl<T: ?Sized> Debug for Hook<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

impl<T: ?Sized> Clone for Hook<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}
