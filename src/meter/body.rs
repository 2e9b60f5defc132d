use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::guard::Guard;

pin_project! {
    /// A response body that counts its bytes and reports its call when it is dropped.
    ///
    /// Passes frames, size and end on untouched.
    pub struct MeterBody<B> {
        #[pin]
        inner: B,
        // After the inner body: what a stream adds while it is dropped is still counted.
        guard: Option<Guard>,
    }

    impl<B> PinnedDrop for MeterBody<B> {
        fn drop(this: Pin<&mut Self>) {
            if let Some(guard) = this.project().guard {
                guard.ending();
            }
        }
    }
}

impl<B> MeterBody<B> {
    pub(super) const fn new(inner: B, guard: Option<Guard>) -> Self {
        Self { inner, guard }
    }
}

impl<B> Body for MeterBody<B>
where
    B: Body<Data = Bytes>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let Some(guard) = this.guard else {
            return this.inner.poll_frame(cx);
        };
        guard.before_frame();
        let polled = this.inner.as_mut().poll_frame(cx);
        guard.after_frame(&polled, || this.inner.is_end_stream());
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B> fmt::Debug for MeterBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeterBody").finish_non_exhaustive()
    }
}
