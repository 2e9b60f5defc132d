use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::held::Held;
use crate::{body::ResponseBody, span::CallSpan};

pin_project! {
    /// The body of an answer that passed a [`Tollgate`](super::Tollgate): the service's, counted and charged,
    /// or the gate's own.
    pub struct GateBody<B> {
        #[pin]
        body: ResponseBody<B>,
        // After the inner body: what a stream adds while it is dropped is still counted.
        held: Held,
        // Last: all that ends with the body ends within it.
        span: CallSpan,
    }
}

impl<B> GateBody<B> {
    pub(super) const fn new(body: ResponseBody<B>, held: Held) -> Self {
        Self {
            body,
            held,
            span: CallSpan::NONE,
        }
    }

    /// The body is part of this span, and ends it.
    pub(super) fn within(&mut self, span: CallSpan) {
        self.span = span;
    }

    /// The body of an answer that takes the place of another, of which nothing is held any more.
    pub(super) const fn instead(body: ResponseBody<B>) -> Self {
        Self::new(body, Held::NOTHING)
    }
}

impl<B> fmt::Debug for GateBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateBody").finish_non_exhaustive()
    }
}

impl<B: Body<Data = Bytes>> Body for GateBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let _entered = this.span.enter();
        this.held.before_frame();
        let polled = this.body.as_mut().poll_frame(cx);
        this.held.after_frame(&polled, || this.body.is_end_stream());
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
