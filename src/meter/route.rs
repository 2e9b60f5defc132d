use std::{fmt, sync::Arc};

use crate::head::RequestHead;

/// The label of calls whose route is not known.
pub const UNMATCHED: &str = "unmatched";

/// A route template, such as `/v1/chat/{id}`: the path as it was registered, never as it was called, so that
/// the number of different templates is bounded by the service and not by its callers.
///
/// Cloning does not allocate.
#[derive(Clone)]
pub struct RouteTemplate(Kind);

#[derive(Clone)]
enum Kind {
    Static(&'static str),
    Shared(Arc<str>),
    #[cfg(feature = "axum")]
    Matched(axum::extract::MatchedPath),
}

impl RouteTemplate {
    /// The template as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Kind::Static(text) => text,
            Kind::Shared(text) => text,
            #[cfg(feature = "axum")]
            Kind::Matched(path) => path.as_str(),
        }
    }
}

impl From<&'static str> for RouteTemplate {
    fn from(text: &'static str) -> Self {
        Self(Kind::Static(text))
    }
}

impl From<Arc<str>> for RouteTemplate {
    fn from(text: Arc<str>) -> Self {
        Self(Kind::Shared(text))
    }
}

#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl From<axum::extract::MatchedPath> for RouteTemplate {
    fn from(path: axum::extract::MatchedPath) -> Self {
        Self(Kind::Matched(path))
    }
}

impl fmt::Debug for RouteTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Says which route a request belongs to, before it is served. A closure works.
///
/// `None` leaves the route open: [`Meter::set_route`](super::Meter::set_route) may name it later, else the
/// event says [`UNMATCHED`].
pub trait RouteOf: Send + Sync + 'static {
    /// The template of the request's route.
    fn route_of(&self, head: &RequestHead<'_>) -> Option<RouteTemplate>;
}

impl<F> RouteOf for F
where
    F: Fn(&RequestHead<'_>) -> Option<RouteTemplate> + Send + Sync + 'static,
{
    fn route_of(&self, head: &RequestHead<'_>) -> Option<RouteTemplate> {
        self(head)
    }
}

/// The default: axum's `MatchedPath` where the `axum` feature is on and the router has matched already (a layer
/// of the router, not one around it); else no route.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct MatchedRoute;

impl RouteOf for MatchedRoute {
    fn route_of(&self, head: &RequestHead<'_>) -> Option<RouteTemplate> {
        #[cfg(feature = "axum")]
        {
            head.extensions()
                .get::<axum::extract::MatchedPath>()
                .cloned()
                .map(RouteTemplate::from)
        }
        #[cfg(not(feature = "axum"))]
        {
            let _ = head;
            None
        }
    }
}
