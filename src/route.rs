//! The route template of a request: what may stand in a label or a count, unlike the path, of which clients
//! can make any number.

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

    /// The template as shared text; allocates where it was not shared text before.
    #[must_use]
    pub fn to_shared(&self) -> Arc<str> {
        match &self.0 {
            Kind::Shared(text) => Arc::clone(text),
            _ => Arc::from(self.as_str()),
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
/// `None` leaves the route open: [`Meter::set_route`](crate::meter::Meter::set_route) may name it later, else the
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

impl<T: RouteOf + ?Sized> RouteOf for Arc<T> {
    fn route_of(&self, head: &RequestHead<'_>) -> Option<RouteTemplate> {
        (**self).route_of(head)
    }
}

/// The default: axum's `MatchedPath` where the `axum` feature is on and the router has matched already (a layer
/// of the router, not one around it), else a [`RouteTemplate`] that an outer layer put into the request's
/// extensions.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct MatchedRoute;

impl RouteOf for MatchedRoute {
    fn route_of(&self, head: &RequestHead<'_>) -> Option<RouteTemplate> {
        #[cfg(feature = "axum")]
        if let Some(path) = head.extensions().get::<axum::extract::MatchedPath>() {
            return Some(path.clone().into());
        }
        head.extensions().get::<RouteTemplate>().cloned()
    }
}
