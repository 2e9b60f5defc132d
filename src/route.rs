//! The route template of a request, such as `/v1/chat/{id}`: what may stand in a label or a count, unlike the
//! path, of which clients can make any number.

use std::{fmt, sync::Arc};

use crate::head::RequestHead;

/// The template that stands for every path that no route matched.
pub const UNMATCHED: &str = "unmatched";

/// A route template. Cloning is one atomic increment at most.
#[derive(Clone)]
pub struct Route(Kind);

#[derive(Clone)]
enum Kind {
    Shared(Arc<str>),
    #[cfg(feature = "axum")]
    Matched(axum::extract::MatchedPath),
}

impl Route {
    /// The template as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Kind::Shared(text) => text,
            #[cfg(feature = "axum")]
            Kind::Matched(path) => path.as_str(),
        }
    }

    /// The template as shared text; allocates where a framework keeps it in a form of its own.
    #[must_use]
    pub fn to_shared(&self) -> Arc<str> {
        match &self.0 {
            Kind::Shared(text) => Arc::clone(text),
            #[cfg(feature = "axum")]
            Kind::Matched(path) => Arc::from(path.as_str()),
        }
    }
}

impl<T: Into<Arc<str>>> From<T> for Route {
    fn from(text: T) -> Self {
        Self(Kind::Shared(text.into()))
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Finds the route template of a request. A closure works.
pub trait RouteOf: Send + Sync + 'static {
    /// The template, or `None` when no route matched. Must come from a bounded set.
    fn route_of(&self, head: &RequestHead<'_>) -> Option<Route>;
}

impl<F> RouteOf for F
where
    F: Fn(&RequestHead<'_>) -> Option<Route> + Send + Sync + 'static,
{
    fn route_of(&self, head: &RequestHead<'_>) -> Option<Route> {
        self(head)
    }
}

/// The default: axum's `MatchedPath` under the feature `axum`, else a [`Route`] that an outer layer put into
/// the request's extensions.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct MatchedRoute;

impl RouteOf for MatchedRoute {
    fn route_of(&self, head: &RequestHead<'_>) -> Option<Route> {
        #[cfg(feature = "axum")]
        if let Some(path) = head.extensions().get::<axum::extract::MatchedPath>() {
            return Some(Route(Kind::Matched(path.clone())));
        }
        head.extensions().get::<Route>().cloned()
    }
}
