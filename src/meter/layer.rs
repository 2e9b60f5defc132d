use std::{fmt, sync::Arc};

use tower_layer::Layer;

use super::{abort::AbortPolicy, meter::Site, recorder::Recorder, service::Metered};
use crate::{
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
pub(crate) struct Shared {
    pub(super) recorder: Recorder,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) site: Arc<Site>,
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
        let mut site = Site::clone(&self.shared.site);
        change(&mut site);
        self.shared = Arc::new(Shared {
            recorder: self.shared.recorder.clone(),
            clock: Arc::clone(&self.shared.clock),
            site: Arc::new(site),
        });
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
            watchlist: recorder.watchlist().cloned(),
        };
        Self {
            clock: Arc::clone(recorder.clock()),
            site: Arc::new(site),
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
