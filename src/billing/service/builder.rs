use std::{fmt, sync::Arc, time::Duration};

use super::{
    super::{BillingEventHandler, EventLedger, MemoryLedger, Signature, ThinEventHandler},
    WebhookService,
    answer::{Metrics, Refusals},
};
use crate::{
    clock::{Clock, SystemClock},
    error::ConfigError,
    id::Environment,
};

const MAX_BODY_BYTES: usize = 256 * 1024;
const READ_DEADLINE: Duration = Duration::from_secs(10);
const LEASE: Duration = Duration::from_secs(60);
const HANDLER_DEADLINE: Duration = Duration::from_secs(20);
/// Stripe sends an event about so often in its three days.
const MAX_ATTEMPTS: u32 = 16;

/// Makes a [`WebhookService`].
#[must_use]
pub struct WebhookBuilder {
    account: Option<Box<str>>,
    clock: Arc<dyn Clock>,
    endpoint: Arc<str>,
    environment: Environment,
    handler_deadline: Duration,
    handlers: Vec<Arc<dyn BillingEventHandler>>,
    lease: Duration,
    ledger: Option<Arc<dyn EventLedger>>,
    max_attempts: u32,
    max_body_bytes: usize,
    read_deadline: Duration,
    signature: Signature,
    thin: Option<Arc<dyn ThinEventHandler>>,
}

/// What a service was told.
pub(super) struct Settings {
    pub(super) account: Option<Box<str>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) refusals: Refusals,
    pub(super) endpoint: Arc<str>,
    pub(super) environment: Environment,
    pub(super) handler_deadline: Duration,
    pub(super) handlers: Vec<Arc<dyn BillingEventHandler>>,
    pub(super) lease: Duration,
    pub(super) ledger: Arc<dyn EventLedger>,
    pub(super) max_attempts: u32,
    pub(super) max_body_bytes: usize,
    pub(super) metrics: Metrics,
    pub(super) read_deadline: Duration,
    pub(super) signature: Signature,
    pub(super) thin: Option<Arc<dyn ThinEventHandler>>,
}

impl WebhookBuilder {
    pub(super) fn new(signature: Signature) -> Self {
        let endpoint = match &signature {
            Signature::Paddle(_) => "paddle",
            Signature::StandardWebhooks(_) => "standard-webhooks",
            Signature::Stripe(_) => "stripe",
        };
        Self {
            account: None,
            clock: SystemClock::shared(),
            endpoint: endpoint.into(),
            environment: Environment::Live,
            handler_deadline: HANDLER_DEADLINE,
            handlers: Vec::new(),
            lease: LEASE,
            ledger: None,
            max_attempts: MAX_ATTEMPTS,
            max_body_bytes: MAX_BODY_BYTES,
            read_deadline: READ_DEADLINE,
            signature,
            thin: None,
        }
    }

    /// The endpoint's name in the ledger; the provider's unless set. Two endpoints that share a ledger need two names.
    pub fn endpoint(mut self, name: impl Into<Arc<str>>) -> Self {
        self.endpoint = name.into();
        self
    }

    /// Whether events of real money are taken, or those of the provider's test mode; real money unless set. The others are
    /// answered 400 `mode_mismatch`. Providers whose events do not say are not checked.
    pub const fn environment(mut self, environment: Environment) -> Self {
        self.environment = environment;
        self
    }

    /// Takes events of this connected account only; of any unless set. Thin events that name none are taken too.
    pub fn account(mut self, account: impl Into<Box<str>>) -> Self {
        self.account = Some(account.into());
        self
    }

    /// Remembers events here; in this process's memory unless set, where a restart forgets them.
    pub fn ledger(mut self, ledger: impl EventLedger) -> Self {
        self.ledger = Some(Arc::new(ledger));
        self
    }

    /// Adds a handler. All are asked in their order; the first that fails stops the rest.
    pub fn handler(mut self, handler: impl BillingEventHandler) -> Self {
        self.handlers.push(Arc::new(handler));
        self
    }

    /// The handler of thin events; they are ignored unless set.
    pub fn thin_handler(mut self, handler: impl ThinEventHandler) -> Self {
        self.thin = Some(Arc::new(handler));
        self
    }

    /// The clock that says how old a signature is.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The largest body that is read; 256 KiB unless set.
    pub const fn max_body_bytes(mut self, bytes: usize) -> Self {
        self.max_body_bytes = bytes;
        self
    }

    /// How long a body may take to arrive; 10 seconds unless set.
    pub const fn read_deadline(mut self, deadline: Duration) -> Self {
        self.read_deadline = deadline;
        self
    }

    /// How long all handlers together may take; 20 seconds unless set. One that takes longer is dropped, and has failed.
    pub const fn handler_deadline(mut self, deadline: Duration) -> Self {
        self.handler_deadline = deadline;
        self
    }

    /// How long an event that somebody handles is kept from others; 60 seconds unless set. After a crash, an event is
    /// handled again when this has passed.
    pub const fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// How often an event may fail before it is put aside as a dead letter; 16 times unless set. A crash counts as a
    /// failure, a store that does not answer does not.
    pub const fn max_attempts(mut self, n: u32) -> Self {
        self.max_attempts = n;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the setting that cannot work.
    pub fn build(self) -> Result<WebhookService, ConfigError> {
        if self.endpoint.is_empty() {
            return Err(ConfigError::new("endpoint", "an endpoint needs a name"));
        }
        if self.max_body_bytes == 0 {
            return Err(ConfigError::new(
                "max_body_bytes",
                "no event would be read: 262144 is usual",
            ));
        }
        if self.max_attempts == 0 {
            return Err(ConfigError::new(
                "max_attempts",
                "every event would be put aside unhandled: allow one or more",
            ));
        }
        if self.handler_deadline >= self.lease {
            return Err(ConfigError::new(
                "lease",
                "a lease must outlast the handlers, or two would handle one event at once: set it longer than \
                 `handler_deadline`",
            ));
        }
        let settings = Settings {
            account: self.account,
            clock: self.clock,
            refusals: Refusals::default(),
            endpoint: self.endpoint,
            environment: self.environment,
            handler_deadline: self.handler_deadline,
            handlers: self.handlers,
            lease: self.lease,
            ledger: self.ledger.unwrap_or_else(|| Arc::new(MemoryLedger::new())),
            max_attempts: self.max_attempts,
            max_body_bytes: self.max_body_bytes,
            metrics: Metrics::new(),
            read_deadline: self.read_deadline,
            signature: self.signature,
            thin: self.thin,
        };
        Ok(WebhookService {
            settings: Arc::new(settings),
        })
    }
}

impl fmt::Debug for WebhookBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookBuilder")
            .field("endpoint", &self.endpoint)
            .field("environment", &self.environment)
            .field("signature", &self.signature)
            .finish_non_exhaustive()
    }
}
