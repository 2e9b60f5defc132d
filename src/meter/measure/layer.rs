use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::{Measure, MeasureBody, MeasureFuture};
use crate::meter::Meter;

/// Reads quantities from the responses of a service by a [`Measure`], such as [`TokenUsage`](super::TokenUsage).
///
/// Stands inside of the [`MeterLayer`](crate::meter::MeterLayer) or the gate, for a whole service or, with axum's
/// `route_layer`, for some routes. Frames pass as they come; none is held back or copied. Outside of a meter it
/// passes everything unread. A layer that compresses belongs outside of it: a compressed stream cannot be read.
///
/// ```
/// use axum::{Router, body::Body, http::Request, routing::get};
/// use http_body_util::BodyExt;
/// use tollgate::{meter::{Meter, MeasureLayer, TokenUsage}, meter::EventId, clock::Now};
/// use tower::ServiceExt;
///
/// const ANSWER: &str = "data: {\"choices\":[]}\n\ndata: {\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":812}}\n\n";
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let app: Router = Router::new()
///     .route("/v1/chat", get(|| async { ([("content-type", "text/event-stream")], ANSWER) }))
///     .layer(MeasureLayer::new(TokenUsage::new()));
///
/// // Under a gate the meter is there already.
/// let meter = Meter::new(EventId::new(0, 0), Now::default());
/// let request = Request::get("/v1/chat").extension(meter.clone()).body(Body::empty())?;
/// app.oneshot(request).await?.into_body().collect().await?;
/// assert_eq!((meter.quantity("input_tokens"), meter.quantity("output_tokens")), (7, 812));
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct MeasureLayer<M> {
    measure: Arc<M>,
}

impl<M: Measure> MeasureLayer<M> {
    /// Reads responses by `measure`.
    pub fn new(measure: M) -> Self {
        Self {
            measure: Arc::new(measure),
        }
    }
}

impl<M> Clone for MeasureLayer<M> {
    fn clone(&self) -> Self {
        Self {
            measure: Arc::clone(&self.measure),
        }
    }
}

impl<M> fmt::Debug for MeasureLayer<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeasureLayer").finish_non_exhaustive()
    }
}

impl<S, M> Layer<S> for MeasureLayer<M> {
    type Service = Measured<S, M>;

    fn layer(&self, inner: S) -> Self::Service {
        Measured {
            inner,
            measure: Arc::clone(&self.measure),
        }
    }
}

/// The service of [`MeasureLayer`].
pub struct Measured<S, M> {
    inner: S,
    measure: Arc<M>,
}

impl<S: Clone, M> Clone for Measured<S, M> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            measure: Arc::clone(&self.measure),
        }
    }
}

impl<S, M> fmt::Debug for Measured<S, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Measured").finish_non_exhaustive()
    }
}

impl<S, M, B, ReqB> Service<Request<ReqB>> for Measured<S, M>
where
    S: Service<Request<ReqB>, Response = Response<B>>,
    M: Measure,
{
    type Response = Response<MeasureBody<B, M>>;
    type Error = S::Error;
    type Future = MeasureFuture<S::Future, M>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqB>) -> Self::Future {
        let meter = request.extensions().get::<Meter>().cloned();
        let future = self.inner.call(request);
        MeasureFuture::new(
            future,
            meter.map(|meter| (meter, Arc::clone(&self.measure))),
        )
    }
}
