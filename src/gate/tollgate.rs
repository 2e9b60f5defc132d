use std::{sync::Arc, time::Duration};

use super::{Health, TollgateBuilder, TollgateLayer};
use crate::{
    identity::{Keys, Tenants},
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
    pub(super) tenants: Tenants,
    pub(super) plans: PlanCatalog,
    pub(super) recorder: Recorder,
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
    /// it. Call it after the server has stopped accepting.
    ///
    /// # Cancel safety
    ///
    /// A dropped future leaves the gate metering; call it again.
    pub async fn shutdown(&self, deadline: Duration) -> FlushReport {
        self.shared.recorder.shutdown(deadline).await
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
