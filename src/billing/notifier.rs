use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    clock::Timestamp,
    id::{KeyId, PlanName, TenantId},
};

/// Something worth telling the people of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Notice {
    /// Whom it concerns.
    pub tenant: TenantId,
    /// What happened.
    pub kind: NoticeKind,
    /// When it was found out.
    pub at: Timestamp,
}

/// What happened to a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum NoticeKind {
    /// A payment failed; everything passes until then.
    GraceStarted {
        /// When grace ends.
        until: Timestamp,
    },
    /// A key was issued for a checkout. The key itself is not told: the buyer's page asks for it.
    KeyIssued {
        /// The checkout.
        checkout: Box<str>,
        /// The key's name.
        key: KeyId,
    },
    /// The tenant is on another plan.
    PlanChanged {
        /// The plan before.
        from: PlanName,
        /// The plan from now on.
        to: PlanName,
    },
    /// The tenant may only read.
    ReadOnlyStarted {
        /// When access is suspended; never when absent.
        suspend_at: Option<Timestamp>,
    },
    /// Everything passes again.
    Restored,
    /// The subscription goes on after all.
    Resumed,
    /// Access is suspended.
    Suspended,
    /// The subscription ends then.
    WillEnd {
        /// When.
        at: Timestamp,
    },
}

/// A notice was not taken.
#[derive(Debug, thiserror::Error)]
#[error("the notice was not taken")]
pub struct NotifyError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl NotifyError {
    /// A notice was not taken, because of this.
    #[must_use]
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }
}

/// Tells people what happened to their tenant: by mail, in a portal, in a chat.
///
/// # Contract
///
/// - A notice comes at least once: again after an error, and after a crash right after it. It is kept until it was taken.
/// - What time alone brings about, the end of grace and the suspension after it, makes no notice of its own: the notice
///   before it holds the time.
#[async_trait]
pub trait Notifier: Debug + Send + Sync + 'static {
    /// Takes one notice.
    ///
    /// # Errors
    ///
    /// [`NotifyError`]: the event is not handled, and the provider is told to send it again.
    async fn notify(&self, notice: &Notice) -> Result<(), NotifyError>;
}

/// A shared handle is a notifier, so that the same one can be given to a provisioner and kept.
#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: Notifier + ?Sized> Notifier for Arc<T> {
    async fn notify(&self, notice: &Notice) -> Result<(), NotifyError> {
        (**self).notify(notice).await
    }
}

/// Writes each notice to the log, at the level `info`, under the target `tollgate::billing`.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "it has no settings")]
pub struct LogNotices;

#[async_trait]
impl Notifier for LogNotices {
    async fn notify(&self, notice: &Notice) -> Result<(), NotifyError> {
        tracing::info!(target: "tollgate::billing", tenant = %notice.tenant, kind = ?notice.kind, "a notice");
        Ok(())
    }
}
