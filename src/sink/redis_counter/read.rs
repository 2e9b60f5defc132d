//! What the counters say.

use std::{collections::BTreeMap, sync::Arc};

use jiff::civil::Date;

use super::day_text;
use crate::{
    id::{Environment, TenantId},
    redis_support::{DayUsage, Foreign, Key, Redis},
};

/// Reads what a [`RedisCounterSink`](super::RedisCounterSink) has added up.
///
/// Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct RedisCounters {
    redis: Redis,
    environment: Environment,
}

/// What a tenant used of an API on one day; all zero where nothing was counted, or the counters are gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DayCounters {
    /// Calls, however they ended.
    pub calls: u64,
    /// Calls that failed: a 5xx, a panic, a body that ended with an error.
    pub errors: u64,
    /// Calls that the gate refused.
    pub refused: u64,
    /// Bytes of request content.
    pub request_bytes: u64,
    /// Bytes of response content.
    pub response_bytes: u64,
    /// Named quantities.
    pub quantities: BTreeMap<Arc<str>, u64>,
}

/// Counters were not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisCountersError {
    /// Redis cannot be reached or does not serve now.
    #[error("the counters in Redis are unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Something else stands where counters belong.
    #[error("Redis holds counters that cannot be read")]
    Corrupt(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl RedisCounters {
    /// Reads counters of live calls over a handle that is connected already.
    #[must_use]
    pub fn new(redis: &Redis) -> Self {
        Self {
            redis: redis.clone(),
            environment: Environment::Live,
        }
    }

    /// Reads those of another environment.
    #[must_use]
    pub const fn environment(mut self, environment: Environment) -> Self {
        self.environment = environment;
        self
    }

    /// What a tenant used of an API on a day (UTC).
    ///
    /// # Errors
    ///
    /// [`RedisCountersError`] when Redis does not answer or holds something else.
    pub async fn read(
        &self,
        tenant: &TenantId,
        api: &str,
        day: Date,
    ) -> Result<DayCounters, RedisCountersError> {
        let usage = DayUsage::Api(api);
        let key = self
            .redis
            .usage(tenant.as_str(), self.environment, &day_text(day), usage);
        let mut get = redis::cmd("HGETALL");
        get.arg(&*key);
        let value = self.redis.read(&get).await.map_err(|fault| {
            if fault.is_foreign_value() {
                RedisCountersError::Corrupt(fault.into())
            } else {
                RedisCountersError::Unavailable(fault.into())
            }
        })?;
        let fields: BTreeMap<String, String> =
            redis::from_redis_value(value).map_err(|_| foreign(&key))?;
        DayCounters::of(fields).ok_or_else(|| foreign(&key))
    }
}

fn foreign(key: &Key) -> RedisCountersError {
    RedisCountersError::Corrupt(Foreign::at(key).into())
}

impl DayCounters {
    /// A field that is not known is one of a newer version of this crate.
    fn of(fields: BTreeMap<String, String>) -> Option<Self> {
        let mut counters = Self::default();
        for (name, amount) in fields {
            let amount = amount.parse().ok()?;
            match &*name {
                "calls" => counters.calls = amount,
                "errors" => counters.errors = amount,
                "refused" => counters.refused = amount,
                "request_bytes" => counters.request_bytes = amount,
                "response_bytes" => counters.response_bytes = amount,
                name => {
                    if let Some(quantity) = name.strip_prefix("q:") {
                        counters.quantities.insert(Arc::from(quantity), amount);
                    }
                }
            }
        }
        Some(counters)
    }
}
