//! The bytes of requests, counted as they are read.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::Meter;

/// Counts the bytes of request bodies as the service reads them, chunked ones too.
///
/// Stands inside of the [`MeterLayer`](super::MeterLayer) or the gate. Behind it
/// [`UsageEvent::request_bytes`](super::UsageEvent::request_bytes) says what was read, which is less than the
/// `Content-Length` where the service stopped early; and a limit that counts
/// [`Unit::Bytes`](crate::limit::Unit::Bytes), which can only charge the `Content-Length` before the call, settles
/// what was read when the call ends. A chunked body so passes while anything of its limit is left, and what it
/// takes beyond that is owed.
///
/// Not a part of the gate, because it changes the type of the request: the service behind it is called with
/// `Request<CountedRequestBody<B>>`. axum's routers take any body, so `.layer(CountRequestBodyLayer::new())`
/// before `.layer(gate.layer())` is all.
///
/// ```
/// use axum::{Router, body::Body, http::Request, routing::post};
/// use tollgate::{prelude::*, meter::CountRequestBodyLayer, sink::MemorySink};
/// use tower::ServiceExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let usage = MemorySink::new();
/// let gate = Tollgate::builder().plans([Plan::new("free")]).usage(usage.clone()).build()?;
/// let key = gate.keys().issue(NewKey::for_tenant("acme").plan("free")).await?.key;
/// let app: Router = Router::new()
///     .route("/", post(|body: String| async move { body.len().to_string() }))
///     .layer(CountRequestBodyLayer::new())
///     .layer(gate.layer());
///
/// // A stream: nobody knows its length before.
/// let chunks = tokio_stream::iter([Ok::<_, std::io::Error>("ten bytes."), Ok("and more")]);
/// let call = Request::post("/").header("x-api-key", key.expose()).body(Body::from_stream(chunks))?;
/// drop(app.oneshot(call).await?);
///
/// gate.usage().flush().await;
/// assert_eq!(usage.events()[0].request_bytes, 18);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct CountRequestBodyLayer {
    _private: (),
}

impl CountRequestBodyLayer {
    /// Counts the data of every request that has a meter.
    pub const fn new() -> Self {
        Self { _private: () }
    }
}

impl<S> Layer<S> for CountRequestBodyLayer {
    type Service = CountingRequests<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CountingRequests { inner }
    }
}

/// The service of [`CountRequestBodyLayer`].
#[derive(Clone, Debug)]
pub struct CountingRequests<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for CountingRequests<S>
where
    S: Service<Request<CountedRequestBody<B>>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let meter = request.extensions().get::<Meter>();
        // A second layer within the first would count the same bytes again.
        let meter = meter.filter(|meter| meter.receive()).cloned();
        let counted = |inner| CountedRequestBody { inner, meter };
        self.inner.call(request.map(counted))
    }
}

pin_project! {
    /// A request body whose data is counted as it is read; frames, size and end pass untouched.
    pub struct CountedRequestBody<B> {
        #[pin]
        inner: B,
        meter: Option<Meter>,
    }
}

impl<B: Body> Body for CountedRequestBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(cx));
        if let (Some(meter), Some(Ok(frame))) = (this.meter, &frame)
            && let Some(data) = frame.data_ref()
        {
            meter.received(data.remaining() as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B> fmt::Debug for CountedRequestBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CountedRequestBody").finish_non_exhaustive()
    }
}
