use std::sync::Arc;

use super::{TollgateBuilder, Usage};
use crate::{
    clock::Clock,
    error::ConfigError,
    meter::{AbortPolicy, CostRates, Durability, GeoResolver, Recorder},
    sink::UsageSink,
};

/// What is reported.
impl TollgateBuilder {
    /// Where usage goes; the log, at target `tollgate::usage`, unless set.
    pub fn usage(mut self, sink: impl UsageSink) -> Self {
        self.usage = Usage::Sink(Arc::new(sink));
        self
    }

    /// What usage events survive until the sink has given its last word; [`Durability::Memory`] unless set. A
    /// [`recorder`](Self::recorder) has its own.
    pub fn usage_durability(mut self, durability: Durability) -> Self {
        self.usage_durability = Some(durability);
        self
    }

    /// A recorder with settings of its own, in place of [`usage`](Self::usage). It keeps its own clock.
    pub fn recorder(mut self, recorder: Recorder) -> Self {
        self.usage = Usage::Recorder(recorder);
        self
    }

    /// What a call pays whose client leaves before the end; what was delivered unless set.
    /// [`Meter::set_abort_policy`](crate::meter::Meter::set_abort_policy) changes it for one call.
    pub const fn abort_policy(mut self, policy: AbortPolicy) -> Self {
        self.abort_policy = policy;
        self
    }

    /// The API's name, in usage events and in plans that include some APIs only; `default` unless set.
    pub fn api(mut self, name: impl Into<Arc<str>>) -> Self {
        let name = name.into();
        if name.is_empty() {
            let reason = "an API without a name could be in no plan: name it or leave it out";
            self.faults.push(ConfigError::new("api", reason));
        }
        self.api = Some(name);
        self
    }

    /// The quantities that handlers add to a call, such as `tokens`. Where they are named, a rule that counts another
    /// one is an error, as it would count nothing; several calls add up.
    pub fn quantities<N: Into<Arc<str>>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        let known = self.quantities.get_or_insert_default();
        known.extend(names.into_iter().map(Into::into));
        self
    }

    /// What resources cost you: each usage event then says what its call cost; nothing is priced unless set. See
    /// [`CostRates`].
    pub fn cost_rates(self, rates: CostRates) -> Self {
        self.meter(|layer| layer.cost_rates(rates))
    }

    /// Tells the country of each call by the client's address, as the gate's `client_addr` knows it; nobody is asked
    /// unless set. See [`MeterLayer::countries`](crate::MeterLayer::countries).
    pub fn countries(mut self, resolver: impl GeoResolver) -> Self {
        self.countries = Some(Arc::new(resolver));
        self
    }

    /// Whether answers carry `X-Request-Latency`, in whole milliseconds; off unless set. See
    /// [`MeterLayer::latency_header`](crate::MeterLayer::latency_header).
    pub fn latency_header(self, on: bool) -> Self {
        self.meter(move |layer| layer.latency_header(on))
    }

    /// Whether answers to known callers carry `X-Compute-Cost`, in whole billionths of the currency's unit; off
    /// unless set, as it tells callers what they cost you. See
    /// [`MeterLayer::cost_header`](crate::MeterLayer::cost_header).
    pub fn cost_header(self, on: bool) -> Self {
        self.meter(move |layer| layer.cost_header(on))
    }
}

impl Usage {
    pub(super) fn recorder(
        &self,
        clock: &Arc<dyn Clock>,
        durability: Option<&Durability>,
    ) -> Result<Recorder, ConfigError> {
        match self {
            Self::Recorder(_) if durability.is_some() => Err(ConfigError::new(
                "usage_durability",
                "the recorder has a durability of its own: set it on its builder instead",
            )),
            Self::Recorder(recorder) => Ok(recorder.clone()),
            Self::Sink(sink) => Recorder::builder(Arc::clone(sink))
                .clock(Arc::clone(clock))
                .durability(durability.cloned().unwrap_or_default())
                .build()
                .map_err(|error| error.under("usage")),
        }
    }
}
