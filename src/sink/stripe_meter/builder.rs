use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex},
};

use http::HeaderValue;

use super::{StripeCustomers, StripeMeter, StripeMeterSink, call::Caller, unit::Grouping};
use crate::{
    clock::{Clock, SystemClock},
    error::ConfigError,
    http_send::HttpSend,
    sink::address,
};

/// The version of Stripe's API that this crate was written for.
const API_VERSION: &str = "2026-10-28.endive";
const BASE_URL: &str = "https://api.stripe.com";
const PATH: &str = "/v1/billing/meter_events";
const MAX_CALLS: usize = 8;

/// Settings of a [`StripeMeterSink`]; made by [`StripeMeterSink::builder`].
#[must_use]
pub struct StripeMeterSinkBuilder {
    client: Arc<dyn HttpSend>,
    secret: Box<str>,
    customers: Arc<dyn StripeCustomers>,
    meters: Vec<StripeMeter>,
    base_url: Box<str>,
    api_version: Box<str>,
    max_calls: usize,
    grouping: Grouping,
    backfills: bool,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for StripeMeterSinkBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StripeMeterSinkBuilder")
            .field("meters", &self.meters)
            .field("customers", &self.customers)
            .finish_non_exhaustive()
    }
}

impl StripeMeterSinkBuilder {
    pub(super) fn new(
        client: Arc<dyn HttpSend>,
        secret: Box<str>,
        customers: Arc<dyn StripeCustomers>,
    ) -> Self {
        Self {
            client,
            secret,
            customers,
            meters: Vec::new(),
            base_url: Box::from(BASE_URL),
            api_version: Box::from(API_VERSION),
            max_calls: MAX_CALLS,
            grouping: Grouping::Minute,
            backfills: false,
            clock: SystemClock::shared(),
        }
    }

    /// Adds a meter. There must be one at least, and no two may have the same name.
    pub fn meter(mut self, meter: StripeMeter) -> Self {
        self.meters.push(meter);
        self
    }

    /// Sends every event by itself, under its own id.
    ///
    /// Then the identifiers do not depend on how events were put into batches, at the price of a call for each event
    /// and meter. For few and costly events, and for recorders that put events into other batches after a crash.
    pub const fn each_event(mut self) -> Self {
        self.grouping = Grouping::Event;
        self
    }

    /// Sends usage that is older than a day and from before this sink was made, too.
    ///
    /// Only for what was certainly never sent, such as dead letters of a tenant who had no customer: what an earlier
    /// process has sent counts again, as Stripe no longer knows its identifiers.
    pub const fn backfill(mut self) -> Self {
        self.backfills = true;
        self
    }

    /// How many calls may run at the same time, each for another customer or meter; 8 unless set, 1 at least.
    pub const fn max_calls(mut self, max_calls: usize) -> Self {
        self.max_calls = max_calls;
        self
    }

    /// The `Stripe-Version` of the calls; `2026-10-28.endive` unless set.
    pub fn api_version(mut self, version: impl Into<Box<str>>) -> Self {
        self.api_version = version.into();
        self
    }

    /// Where Stripe is; `https://api.stripe.com` unless set.
    pub fn base_url(mut self, url: impl Into<Box<str>>) -> Self {
        self.base_url = url.into();
        self
    }

    /// Reads the time from a clock.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Checks the settings; nothing is sent.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when there is no meter, two meters have one name, the secret key or the version is empty or
    /// holds what no header field can, or the base URL is none.
    pub fn build(self) -> Result<StripeMeterSink, ConfigError> {
        if self.meters.is_empty() {
            return Err(ConfigError::new(
                "meters",
                "there is none: add one with `meter`",
            ));
        }
        for (place, meter) in self.meters.iter().enumerate() {
            let others = self.meters.iter().take(place);
            if others
                .map(StripeMeter::event_name)
                .any(|it| it == meter.event_name())
            {
                let reason = "has the name of another: count both in one with `StripeMeter::by`";
                return Err(ConfigError::new(format!("meters[{place}]"), reason));
            }
        }
        let url = format!("{}{PATH}", self.base_url.trim_end_matches('/'));
        let url = address::read("base_url", &url)?;
        let mut authorization = field("secret", &self.secret, &format!("Bearer {}", self.secret))?;
        authorization.set_sensitive(true);
        let version = field("api_version", &self.api_version, &self.api_version)?;
        Ok(StripeMeterSink {
            caller: Caller::new(self.client, url, authorization, version),
            customers: self.customers,
            meters: self.meters,
            max_calls: self.max_calls.max(1),
            grouping: self.grouping,
            since: (!self.backfills).then(|| self.clock.now().wall()),
            clock: self.clock,
            corrections: Mutex::new(VecDeque::new()),
            one_at_a_time: tokio::sync::Mutex::new(()),
        })
    }
}

fn field(path: &str, value: &str, whole: &str) -> Result<HeaderValue, ConfigError> {
    if value.is_empty() {
        return Err(ConfigError::new(path, "is empty"));
    }
    // The value may be a secret, and the error would say no more than this.
    HeaderValue::from_str(whole)
        .map_err(|_| ConfigError::new(path, "holds what no header field can: use visible ASCII"))
}
