//! Which usage is asked for.

use std::{sync::Arc, time::Duration};

use super::UsageMinute;
use crate::{
    clock::Timestamp,
    id::{Environment, TenantId},
};

/// Which usage is asked for: a time, and whose.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct UsageFilter {
    pub(super) from: Timestamp,
    pub(super) until: Timestamp,
    pub(super) tenant: Option<TenantId>,
    pub(super) api: Option<Arc<str>>,
    pub(super) environment: Option<Environment>,
}

impl UsageFilter {
    /// The live usage of all tenants in the minutes from `from` on and before `until`, both rounded down to a minute.
    pub const fn new(from: Timestamp, until: Timestamp) -> Self {
        Self {
            from: UsageMinute::start_of(from),
            until: UsageMinute::start_of(until),
            tenant: None,
            api: None,
            environment: Some(Environment::Live),
        }
    }

    /// That of one tenant.
    pub fn tenant(mut self, tenant: TenantId) -> Self {
        self.tenant = Some(tenant);
        self
    }

    /// That of one API.
    pub fn api(mut self, api: impl Into<Arc<str>>) -> Self {
        self.api = Some(api.into());
        self
    }

    /// That of one environment, or of all of them; live usage unless set.
    pub fn environment(mut self, environment: impl Into<Option<Environment>>) -> Self {
        self.environment = environment.into();
        self
    }

    /// How long the time is.
    #[must_use]
    pub const fn duration(&self) -> Duration {
        self.until.saturating_since(self.from)
    }

    /// The same usage in the time of the same length before.
    pub fn before(&self) -> Self {
        let mut before = self.clone();
        before.until = self.from;
        before.from = self.from.saturating_sub(self.duration());
        before
    }

    /// Whether the usage of a minute is asked for.
    #[must_use]
    pub fn matches(&self, minute: &UsageMinute) -> bool {
        let key = &minute.key;
        (self.from..self.until).contains(&minute.minute)
            && self
                .tenant
                .as_ref()
                .is_none_or(|tenant| *tenant == key.tenant)
            && self.api.as_ref().is_none_or(|api| *api == key.api)
            && self.environment.is_none_or(|it| it == key.environment)
    }
}
