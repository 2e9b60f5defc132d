use std::sync::Arc;

use super::TollgateBuilder;
use crate::{
    auth::ClientAddr,
    clock::Clock,
    error::{ProblemLayer, RenderError},
    request_id::{RequestIdLayer, TrustInbound},
    route::RouteOf,
};

/// How a call is seen.
impl TollgateBuilder {
    /// How the client's address is told; the connection's peer unless set. Behind a proxy set
    /// [`TrustedProxies`](crate::auth::TrustedProxies).
    pub fn client_addr(mut self, hook: impl ClientAddr) -> Self {
        self.client_addr = Arc::new(hook);
        self
    }

    /// How the route template is found; axum's `MatchedPath` unless set.
    pub fn route_of(mut self, hook: impl RouteOf) -> Self {
        self.route_of = Arc::new(hook);
        self
    }

    /// Whose `x-request-id` is kept; nobody's unless set.
    pub fn trust_request_ids(mut self, hook: impl TrustInbound) -> Self {
        self.request_id = RequestIdLayer::new().trust_shared(Arc::new(hook));
        self
    }

    /// The form of errors; `application/problem+json` unless set.
    pub fn render_errors(mut self, hook: impl RenderError) -> Self {
        self.problems = ProblemLayer::shared(Arc::new(hook));
        self
    }

    /// Whether the request carries its [`Identity`](crate::identity::Identity) and its
    /// [`Meter`](crate::meter::Meter) to the service, which costs two allocations; on unless set. Off, for a
    /// service that asks for neither: extractors and route layers, such as
    /// [`RequireScope`](crate::identity::RequireScope), then answer 500 as if the gate were missing.
    pub const fn extensions(mut self, on: bool) -> Self {
        self.extensions = on;
        self
    }

    /// Puts each call into a tracing span by OpenTelemetry's conventions, see [`span`](crate::span); off unless
    /// set.
    pub const fn trace(mut self, on: bool) -> Self {
        self.trace = on;
        self
    }

    /// The source of time; the operating system's unless set.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }
}
