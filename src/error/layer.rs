use std::{fmt, sync::Arc};

use tower_layer::Layer;

use super::{ProblemJson, ProblemService, RenderError};

/// Gives every error answer one form: problem+json with the request id.
///
/// What it does with an answer, by the first line that fits:
///
/// 1. A status below 400, or an answer that is gRPC itself: passes untouched.
/// 2. A [`Problem`](super::Problem) in the response extensions: is rendered again, now with the request id and
///    by this layer's hook.
/// 3. A body that is JSON already (`application/json`, `application/*+json`): the service has spoken, passes
///    untouched.
/// 4. Anything else (the empty 405 of a router, a 413 of a limit layer, a bare 500): the body is replaced.
///    Below 500 a short `text/plain` body becomes the `detail`, as axum explains a rejected request that way;
///    from 500 on nothing of the body is kept.
///
/// A gRPC call (a POST with `content-type: application/grpc`, or gRPC-Web) is told its error in
/// [gRPC's form](crate::guide::grpc) with the feature `grpc`, whatever the hook; without the feature its answers
/// pass untouched.
///
/// Header fields stay, but for those that describe the replaced body (`Content-Type`, `Content-Length`, `ETag`
/// and their like). An answer that says nothing about caching gets `Cache-Control: no-store`.
///
/// # Placement
///
/// Inside [`RequestIdLayer`](crate::request_id::RequestIdLayer), which makes the id, and outside everything
/// that may fail. [`catch_panic`](super::catch_panic()) goes directly inside it. A layer for compression goes
/// outside.
///
/// # Cost
///
/// A call that succeeds costs a few reference counts and no allocation.
#[must_use]
pub struct ProblemLayer<R: ?Sized = ProblemJson> {
    render: Arc<R>,
}

impl ProblemLayer {
    /// RFC 9457 problems whose `type` is [`DEFAULT_TYPE_BASE`](super::DEFAULT_TYPE_BASE) and the code.
    pub fn new() -> Self {
        Self::shared(Arc::new(ProblemJson::new()))
    }
}

impl Default for ProblemLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<R: ?Sized> ProblemLayer<R> {
    /// Renders by a hook that is chosen at run time or used elsewhere too.
    pub const fn shared(render: Arc<R>) -> Self {
        Self { render }
    }

    pub(crate) fn hook(&self) -> &R {
        &self.render
    }

    /// Renders by this hook instead, such as a [`ProblemJson`] with another `type` or a closure.
    pub fn render<H: RenderError>(self, hook: H) -> ProblemLayer<H> {
        ProblemLayer::shared(Arc::new(hook))
    }
}

impl<R: ?Sized> Clone for ProblemLayer<R> {
    fn clone(&self) -> Self {
        Self::shared(Arc::clone(&self.render))
    }
}

impl<R: ?Sized> fmt::Debug for ProblemLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProblemLayer").finish_non_exhaustive()
    }
}

impl<S, R: ?Sized> Layer<S> for ProblemLayer<R> {
    type Service = ProblemService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        ProblemService::new(inner, Arc::clone(&self.render))
    }
}
