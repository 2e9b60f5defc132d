use std::{sync::Arc, time::Duration};

use super::{Document, Health, ReloadReport, TollgateBuilder, TollgateLayer, reload::Managed};
use crate::{
    error::ConfigError,
    identity::{KeyAuthenticator, Keys, Tenants},
    limit::QuotaSnapshot,
    meter::{FlushReport, Recorder},
    plan::PlanCatalog,
};

/// The gate: every layer of this crate as one, with the handles to look after it.
///
/// Cloning gives a second handle to the same gate.
#[derive(Clone, Debug)]
pub struct Tollgate {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) layer: TollgateLayer,
    pub(super) keys: Keys,
    pub(super) known: KeyAuthenticator,
    pub(super) tenants: Tenants,
    pub(super) plans: PlanCatalog,
    pub(super) recorder: Recorder,
    pub(super) managed: Managed,
    pub(super) snapshot: Option<QuotaSnapshot>,
}

impl Tollgate {
    /// Starts with memory stores, usage in the log, and no plans.
    pub fn builder() -> TollgateBuilder {
        TollgateBuilder::new()
    }

    /// The gate as a layer, for `Router::layer` or a `ServiceBuilder`.
    pub fn layer(&self) -> TollgateLayer {
        self.shared.layer.clone()
    }

    /// Issues, rotates and revokes keys.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.shared.keys
    }

    /// Reads tenants, and changes their plan and access.
    #[must_use]
    pub fn tenants(&self) -> &Tenants {
        &self.shared.tenants
    }

    /// The plans on sale; replacing them takes effect on the next call.
    #[must_use]
    pub fn plans(&self) -> &PlanCatalog {
        &self.shared.plans
    }

    /// Makes a changed document the gate's while traffic flows; effective on the next call.
    ///
    /// - Plans are replaced as a whole. Quotas keep what was used, buckets are rescaled in proportion.
    /// - A tenant or key that is new is added. Where a line has changed, the fields that changed are taken over;
    ///   what was changed at run time in other fields stays. A revoked key stays revoked.
    /// - A tenant whose line is gone is closed, and a key whose line is gone no longer works. Tenants and keys that
    ///   no document has named, as they were made at run time, stay as they are.
    ///
    /// Reads no file and waits for nothing. Only what the gate keeps in memory can be reloaded: with stores of your
    /// own the document has plans alone.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field by its path; then nothing has changed. Beside what
    /// [`TollgateBuilder::document`] refuses, a plan must not go that a tenant, a key or the sandbox is put on at
    /// run time.
    pub fn reload(&self, document: Document) -> Result<ReloadReport, ConfigError> {
        self.shared.managed.apply(document)
    }

    /// What the gate keeps in memory, as a document: tenants and keys, those made at run time included, and the
    /// plans where they came from a document. [`Document::save`] it, and give it to the next start; keys stand in
    /// it by their digests.
    ///
    /// Looks at every key: not for the request path.
    #[must_use]
    pub fn document(&self) -> Document {
        self.shared.managed.document()
    }

    /// The file that quotas are kept in, where [`TollgateBuilder::quota_snapshot`] named one.
    #[must_use]
    pub fn quota_snapshot(&self) -> Option<&QuotaSnapshot> {
        self.shared.snapshot.as_ref()
    }

    /// The recorder of usage: its counters, and a way to wait until everything so far is written.
    #[must_use]
    pub fn usage(&self) -> &Recorder {
        &self.shared.recorder
    }

    /// A service that says whether the gate is well, to be mounted outside of it.
    #[must_use]
    pub fn health(&self) -> Health {
        Health::new(self.shared.recorder.clone())
    }

    /// Makes ready for the first request: starts the task that writes usage, where
    /// [`build`](TollgateBuilder::build) ran outside a runtime. Calling it again changes nothing.
    ///
    /// # Errors
    ///
    /// [`WarmUpError`] when usage cannot be written: outside of a tokio runtime, and after
    /// [`shutdown`](Self::shutdown).
    #[expect(
        clippy::unused_async,
        reason = "stores that are reached over a network are connected here"
    )]
    pub async fn warm_up(&self) -> Result<(), WarmUpError> {
        if self.shared.recorder.start() {
            Ok(())
        } else {
            Err(WarmUpError::UsageNotWritten)
        }
    }

    /// Waits until open calls have ended and their usage is written, at most `deadline`; says what became of
    /// it. Then hands the last uses of keys to their store, and writes the snapshot of quotas a last time, where
    /// there is one, which may take as long again, and gives its lock back. Call it after the server has stopped accepting.
    ///
    /// # Cancel safety
    ///
    /// A dropped future leaves the gate metering; call it again.
    pub async fn shutdown(&self, deadline: Duration) -> FlushReport {
        let report = self.shared.recorder.shutdown(deadline).await;
        self.shared.known.write_uses().await;
        if let Some(snapshot) = &self.shared.snapshot {
            close(snapshot.clone(), deadline.max(SHORTEST_CLOSE)).await;
        }
        report
    }
}

/// Even who waits for nothing else waits for the quotas.
const SHORTEST_CLOSE: Duration = Duration::from_secs(1);

/// The disk is waited for on a thread of its own, and not for ever. Failures are told where they happen.
async fn close(snapshot: QuotaSnapshot, limit: Duration) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        let _ = snapshot.close();
        return;
    };
    let closing = runtime.spawn_blocking(move || snapshot.close());
    if tokio::time::timeout(limit, closing).await.is_err() {
        tracing::error!(target: "tollgate::limit", ?limit, "the last snapshot of quotas takes too long");
    }
}

/// The gate is not ready for traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WarmUpError {
    /// The task that writes usage does not run: there is no tokio runtime, or the gate was shut down.
    #[error("no task writes usage: call it within a tokio runtime, before a shutdown")]
    UsageNotWritten,
}
