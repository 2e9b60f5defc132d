use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::Measure;
use crate::meter::Meter;

pin_project! {
    /// The future of [`Measured`](super::Measured).
    pub struct MeasureFuture<F, M> {
        #[pin]
        inner: F,
        measure: Option<(Meter, Arc<M>)>,
    }
}

impl<F, M> MeasureFuture<F, M> {
    pub(super) const fn new(inner: F, measure: Option<(Meter, Arc<M>)>) -> Self {
        Self { inner, measure }
    }
}

impl<F, M, B, E> Future for MeasureFuture<F, M>
where
    F: Future<Output = Result<Response<B>, E>>,
    M: Measure,
{
    type Output = Result<Response<MeasureBody<B, M>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let (parts, inner) = ready!(this.inner.poll(cx))?.into_parts();
        let reading = this.measure.take().and_then(|(meter, measure)| {
            let state = measure.begin(&parts)?;
            Some(Reading {
                meter,
                measure,
                state,
            })
        });
        let body = MeasureBody { inner, reading };
        Poll::Ready(Ok(Response::from_parts(parts, body)))
    }
}

impl<F, M> fmt::Debug for MeasureFuture<F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeasureFuture").finish_non_exhaustive()
    }
}

pin_project! {
    /// A response body whose data frames are read on their way; frames, size and end pass untouched.
    pub struct MeasureBody<B, M: Measure> {
        #[pin]
        inner: B,
        reading: Option<Reading<M>>,
    }
}

/// The reading of one response; gone at its end.
struct Reading<M: Measure> {
    meter: Meter,
    measure: Arc<M>,
    state: M::State,
}

impl<B, M> Body for MeasureBody<B, M>
where
    B: Body<Data = Bytes>,
    M: Measure,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        let Some(reading) = this.reading else {
            return Poll::Ready(frame);
        };
        let Reading {
            meter,
            measure,
            state,
        } = reading;
        let has_ended = match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    measure.data(state, data, meter);
                }
                // A server need not ask for the end after this.
                frame.is_trailers() || this.inner.is_end_stream()
            }
            Some(Err(_)) => false,
            None => true,
        };
        if has_ended {
            measure.end(state, meter);
            *this.reading = None;
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

impl<B, M: Measure> fmt::Debug for MeasureBody<B, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeasureBody").finish_non_exhaustive()
    }
}
