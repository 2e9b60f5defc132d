use std::{fmt, sync::Arc};

use tower_layer::Layer;

use super::{
    abort::AbortPolicy,
    country::{Countries, GeoResolver},
    head_fields::HeadFields,
    meter::Site,
    rates::CostRates,
    recorder::Recorder,
    service::Metered,
    stats::CallStats,
};
use crate::{
    auth::ClientAddr,
    clock::Clock,
    route::{MatchedRoute, RouteOf},
};

/// Puts a [`Meter`](super::Meter) into each request and reports the call, however it ends, to a [`Recorder`].
///
/// Outside of it belong the layers that turn a panic into an answer and that set `x-request-id`; inside of it
/// everything that may refuse a call. A second `MeterLayer` around the same call leaves the call to the outer
/// one, so that it is counted once.
#[derive(Clone)]
#[must_use]
pub struct MeterLayer<R = MatchedRoute> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) route_of: R,
}

/// What the services and calls of one layer share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(super) recorder: Recorder,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) fields: HeadFields,
    pub(super) site: Arc<Site>,
    pub(super) stats: Arc<CallStats>,
}

impl MeterLayer {
    /// Reports to `recorder`, as the API `default`, with the route that [`MatchedRoute`] finds.
    pub fn new(recorder: Recorder) -> Self {
        Self {
            shared: Arc::new(Shared::new(recorder)),
            route_of: MatchedRoute,
        }
    }
}

impl<R> MeterLayer<R> {
    /// Names the API in the events, where one recorder serves several. `default` unless set.
    pub fn api(self, name: impl AsRef<str>) -> Self {
        self.with(|site| site.api = Arc::from(&*super::printable(name.as_ref())))
    }

    /// What a call pays whose client leaves before the end; [`AbortPolicy::Delivered`] unless set.
    /// [`Meter::set_abort_policy`](super::Meter::set_abort_policy) changes it for one call.
    pub fn abort_policy(self, policy: AbortPolicy) -> Self {
        self.with(|site| site.on_abort = policy)
    }

    fn with(mut self, change: impl FnOnce(&mut Site)) -> Self {
        change(Arc::make_mut(&mut self.shared_mut().site));
        self
    }

    fn shared_mut(&mut self) -> &mut Shared {
        Arc::make_mut(&mut self.shared)
    }

    /// What resources cost whoever runs the service: each event then says what its call cost, see
    /// [`UsageEvent::cost`](super::UsageEvent::cost). Nothing is priced unless set.
    pub fn cost_rates(self, rates: CostRates) -> Self {
        self.with(|site| site.rates = Some(Arc::new(rates)))
    }

    /// Tells the country of each call by the client's address, for [`UsageEvent::country`](super::UsageEvent::country);
    /// nobody is asked unless set. The address itself is not kept.
    ///
    /// Behind a proxy, `client_addr` is [`TrustedProxies`](crate::auth::TrustedProxies); else
    /// [`PeerAddr`](crate::auth::PeerAddr) will do.
    pub fn countries(self, resolver: impl GeoResolver, client_addr: impl ClientAddr) -> Self {
        self.with(|site| {
            site.countries = Some(Countries {
                resolver: Arc::new(resolver),
                client_addr: Arc::new(client_addr),
            });
        })
    }

    /// Whether an answer carries `X-Request-Latency`: whole milliseconds from the call's arrival at this layer to
    /// the head of its answer, rounded down; off unless set.
    ///
    /// Milliseconds, as proxies tell them: a finer figure would help those who learn secrets from times.
    pub fn latency_header(mut self, on: bool) -> Self {
        self.shared_mut().fields.latency = on;
        self
    }

    /// Whether the answer to a known caller carries `X-Compute-Cost`: what the call cost until the head of its
    /// answer, in whole billionths (10^-9) of the currency's unit, see [`cost_rates`](Self::cost_rates). Off unless
    /// set, as it tells callers what they cost you.
    ///
    /// The bytes of the answer, and whatever a stream adds later, are in the usage event alone.
    pub fn cost_header(mut self, on: bool) -> Self {
        self.shared_mut().fields.cost = on;
        self
    }

    /// Finds the route template of a request; needed outside of axum, or where the layer stands around the
    /// router. A closure works:
    ///
    /// ```
    /// # use tollgate::{head::RequestHead, meter::{MeterLayer, Recorder}, route::RouteTemplate, sink::MemorySink};
    /// # let recorder = Recorder::new(MemorySink::new())?;
    /// let layer = MeterLayer::new(recorder).route_of(|head: &RequestHead<'_>| {
    ///     let template = if head.uri().path().starts_with("/v1/chat/") { "/v1/chat/{id}" } else { return None };
    ///     Some(RouteTemplate::from(template))
    /// });
    /// # let _ = layer;
    /// # Ok::<(), tollgate::error::ConfigError>(())
    /// ```
    pub fn route_of<N: RouteOf>(self, route_of: N) -> MeterLayer<N> {
        MeterLayer {
            shared: self.shared,
            route_of,
        }
    }
}

impl Shared {
    fn new(recorder: Recorder) -> Self {
        let site = Site {
            api: Arc::from("default"),
            tally: Arc::clone(recorder.tally()),
            clock: Arc::clone(recorder.clock()),
            on_abort: AbortPolicy::default(),
            rates: None,
            watchlist: recorder.watchlist().cloned(),
            countries: None,
        };
        Self {
            clock: Arc::clone(recorder.clock()),
            fields: HeadFields::default(),
            site: Arc::new(site),
            stats: Arc::new(CallStats::new()),
            recorder,
        }
    }
}

impl<S, R: Clone> Layer<S> for MeterLayer<R> {
    type Service = Metered<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        Metered::new(inner, Arc::clone(&self.shared), self.route_of.clone())
    }
}

impl<R> fmt::Debug for MeterLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeterLayer")
            .field("api", &self.shared.site.api)
            .finish_non_exhaustive()
    }
}
