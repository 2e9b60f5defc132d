use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use super::{body::MeterBody, guard::Guard};

pin_project! {
    /// The future of [`Metered`](super::Metered). Dropped before it is ready, it reports the call as aborted.
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        // After the inner future: what a service adds while it is dropped is still counted.
        guard: Option<Guard>,
    }

    impl<F> PinnedDrop for ResponseFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            if let Some(guard) = this.project().guard {
                guard.ending();
            }
        }
    }
}

impl<F> ResponseFuture<F> {
    pub(super) const fn new(inner: F, guard: Option<Guard>) -> Self {
        Self { inner, guard }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes>,
{
    type Output = Result<Response<MeterBody<B>>, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(guard) = this.guard.as_mut() {
            guard.enter();
        }
        let poll = this.inner.poll(cx);
        if let Some(guard) = this.guard.as_mut() {
            guard.leave();
        }
        let result = ready!(poll);
        let mut guard = this.guard.take();
        Poll::Ready(match result {
            Ok(mut response) => {
                if let Some(guard) = &mut guard {
                    guard.answered(&mut response);
                }
                Ok(response.map(|body| MeterBody::new(body, guard)))
            }
            Err(error) => {
                if let Some(guard) = &mut guard {
                    guard.failed();
                }
                Err(error)
            }
        })
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
