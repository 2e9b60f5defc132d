use std::{num::NonZeroU32, sync::Arc, time::Duration};

use http::StatusCode;

use super::{TollgateBuilder, no_refusal};
use crate::{
    error::ConfigError,
    gate::stores,
    limit::{CostOf, HeaderStyle, LimitKey, LimitStore, Rule, ThresholdSink},
};

/// How much is allowed.
impl TollgateBuilder {
    /// Where limits are counted; in memory unless set.
    pub fn limits(mut self, store: impl LimitStore) -> Self {
        self.stores.limits = stores::limits(store);
        self
    }

    /// A rule over all tenants together, such as what the service can bear; decided before a tenant's own.
    pub fn ceiling(mut self, rule: impl Into<Rule>) -> Self {
        self.ceiling.push(rule.into());
        self
    }

    /// A rule over all CORS preflights that pass, in place of the ceiling; several calls add up. Nobody is known
    /// who sends one, so count by address: `Rate::per_second(5).scope(Scope::Address)`.
    pub fn preflight_limit(mut self, rule: impl Into<Rule>) -> Self {
        self.preflight_limit.push(rule.into());
        self
    }

    /// Says what a call takes; one request and its `Content-Length` in bytes unless set.
    pub fn cost(self, hook: impl CostOf) -> Self {
        self.limit(|layer| layer.cost(hook))
    }

    /// Gives the values of a custom scope, for rules of `Scope::Custom(name)`.
    pub fn scope(mut self, name: impl Into<Arc<str>>, hook: impl LimitKey) -> Self {
        let name = name.into();
        self.scopes.push(Arc::clone(&name));
        self.limit(|layer| layer.scope(name, hook))
    }

    /// The form of the header fields that tell of limits; `RateLimit` (IETF draft 11) unless set.
    pub fn headers(self, style: HeaderStyle) -> Self {
        self.limit(move |layer| layer.headers(style))
    }

    /// The status of an exceeded quota; 429 unless set, 400 to 499.
    pub fn quota_status(mut self, status: StatusCode) -> Self {
        self.faults.extend(no_refusal("quota_status", status));
        self.limit(move |layer| layer.quota_status(status))
    }

    /// Who hears that a tenant has reached a threshold; the log unless set.
    pub fn thresholds(self, sink: Arc<dyn ThresholdSink>) -> Self {
        self.limit(|layer| layer.thresholds(sink))
    }

    /// How long a decision may take before the rules' failure policy decides; 50 ms unless set.
    pub fn limit_deadline(mut self, deadline: Duration) -> Self {
        if deadline.is_zero() {
            let reason = "no decision could be made in no time: write 50 ms or so";
            self.faults.push(ConfigError::new("limit_deadline", reason));
        }
        self.limit(move |layer| layer.deadline(deadline))
    }

    /// How many processes share a limit store; while it is down each allows its share. One unless set.
    pub const fn processes(mut self, n: NonZeroU32) -> Self {
        self.processes = n;
        self
    }
}
