use std::{
    fmt,
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{AuthRefusal, KeyRecord, ShownKey, pace::Pace};
use crate::{
    clock::Now,
    id::{KeyId, TenantId},
};

/// A refused attempt to authenticate, for those who watch for attacks.
///
/// Shows of the credential what [`ShownKey`] shows, never the credential. No field can hold a control
/// character, so none can forge a line of a log.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AuthEvent {
    /// When the attempt was refused.
    pub at: Now,
    /// Why; [`AuthRefusal::reason`] is its text.
    pub refusal: AuthRefusal,
    /// What may be shown of the credential; `None` when none could be read.
    pub credential: Option<ShownKey>,
    /// The client's address.
    pub address: Option<IpAddr>,
    /// The key's id, when the key is known but does not work.
    pub key: Option<KeyId>,
    /// Whose key it is, when the key is known but does not work.
    pub tenant: Option<TenantId>,
}

impl AuthEvent {
    /// An attempt that was refused at `at`.
    #[must_use]
    pub const fn new(refusal: AuthRefusal, at: Now) -> Self {
        Self {
            at,
            refusal,
            credential: None,
            address: None,
            key: None,
            tenant: None,
        }
    }

    /// Keeps what may be shown of the credential.
    #[must_use]
    pub fn credential(mut self, credential: &str) -> Self {
        self.credential = Some(ShownKey::of(credential));
        self
    }

    /// Keeps the client's address.
    #[must_use]
    pub fn address(mut self, address: Option<IpAddr>) -> Self {
        self.address = address;
        self
    }

    /// Keeps whose key it is.
    #[must_use]
    pub fn record(mut self, record: &KeyRecord) -> Self {
        self.key = Some(record.id.clone());
        self.tenant = Some(record.tenant.clone());
        self
    }

    /// Counts the attempt in the metric `tollgate_auth_failures_total{reason}` and tells the sink.
    pub fn emit(&self, sink: &dyn AuthEventSink) {
        metrics::counter!("tollgate_auth_failures_total", "reason" => self.refusal.reason())
            .increment(1);
        sink.auth_event(self);
    }
}

/// Hears of refused attempts to authenticate, for example to pass them to a SIEM.
///
/// # Contract
///
/// The call stands in the request's path: it must neither wait nor do I/O. Put the event into a bounded queue
/// and drop it when that is full; an attacker decides how many there are.
pub trait AuthEventSink: fmt::Debug + Send + Sync + 'static {
    /// An attempt was refused.
    fn auth_event(&self, event: &AuthEvent);
}

/// Writes refused attempts to the log under the tracing target `tollgate::auth`: 20 lines a second after a
/// burst of 100, the rest as a number in the field `suppressed` of the next line. The default.
///
/// Requests that were sent wrongly (no credential, two of them, or one of the other environment) are written
/// at the level INFO, all others at WARN.
#[derive(Debug)]
pub struct LogAuthEvents {
    pace: Pace,
    state: AtomicU64,
    suppressed: AtomicU64,
}

impl LogAuthEvents {
    /// Writes at most `per_second` lines a second after a burst of `burst`; zeros count as one.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Self {
        Self {
            pace: Pace::new(per_second, Duration::from_secs(1), burst),
            state: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }
}

impl Default for LogAuthEvents {
    fn default() -> Self {
        Self::new(20, 100)
    }
}

impl AuthEventSink for LogAuthEvents {
    fn auth_event(&self, event: &AuthEvent) {
        if !self.pace.try_take(&self.state, event.at.monotonic_micros()) {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let suppressed = self.suppressed.swap(0, Ordering::Relaxed);
        // The level of an event is a constant of its call site, so there are two.
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    target: "tollgate::auth",
                    reason = event.refusal.reason(),
                    credential = event.credential.as_ref().map(ShownKey::as_str),
                    address = event.address.map(tracing::field::display),
                    key = event.key.as_ref().map(KeyId::as_str),
                    tenant = event.tenant.as_ref().map(TenantId::as_str),
                    suppressed,
                    "authentication refused",
                )
            };
        }
        match event.refusal {
            AuthRefusal::Missing | AuthRefusal::Ambiguous | AuthRefusal::WrongEnvironment => {
                log!(info);
            }
            _ => log!(warn),
        }
    }
}
