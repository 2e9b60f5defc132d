//! What a caller gets when the service panics.

use std::{
    any::Any,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use http::{Method, Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{ErrorCode, Problem};
use crate::body::ResponseBody;

/// The longest panic message that is logged, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024;

/// A layer that answers a panic of the service with the problem `internal`.
///
/// Without it the caller sees a closed connection. It goes directly inside
/// [`ProblemLayer`](super::ProblemLayer), which adds the request id. It catches a panic up to the response's
/// head; one in a streaming body still ends the connection. Needs `panic = "unwind"`, the default of Cargo's
/// profiles.
///
/// The panic's message never reaches the caller. It is logged at error level under the target
/// `tollgate::panic`, escaped and cut to 1024 bytes, without anything of the request.
///
/// Unlike tower-http's layer of this name it neither boxes the body nor erases its error.
pub const fn catch_panic() -> CatchPanicLayer {
    CatchPanicLayer(())
}

/// The layer of [`catch_panic`].
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct CatchPanicLayer(());

impl<S> Layer<S> for CatchPanicLayer {
    type Service = CatchPanic<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CatchPanic { inner }
    }
}

/// The service of [`catch_panic`].
#[derive(Clone, Copy, Debug)]
pub struct CatchPanic<S> {
    inner: S,
}

impl<S, Q, B> Service<Request<Q>> for CatchPanic<S>
where
    S: Service<Request<Q>, Response = Response<B>>,
{
    type Response = Response<ResponseBody<B>>;
    type Error = S::Error;
    type Future = PanicFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let method = request.method().clone();
        // What the service shares may be half changed after a panic. That is its own affair: its locks are
        // poisoned, and without this layer the server would go on in the same way.
        let state = match caught(|| self.inner.call(request)) {
            Some(future) => State::Calling { future },
            None => State::Panicked,
        };
        PanicFuture { state, method }
    }
}

pin_project! {
    /// The future of [`CatchPanic`].
    #[derive(Debug)]
    pub struct PanicFuture<F> {
        #[pin]
        state: State<F>,
        method: Method,
    }
}

pin_project! {
    #[project = StateProjection]
    #[derive(Debug)]
    enum State<F> {
        Calling { #[pin] future: F },
        Panicked,
    }
}

impl<F, B, E> Future for PanicFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let polled = caught(|| {
            let mut calling = DropOnUnwind(this.state);
            let poll = calling.poll(cx);
            std::mem::forget(calling);
            poll
        });
        match polled {
            Some(Some(poll)) => poll.map_ok(|response| response.map(ResponseBody::inner)),
            Some(None) | None => Poll::Ready(Ok(panicked(this.method))),
        }
    }
}

/// Drops the service's future while its panic unwinds, so that what it holds can tell a panic from a client
/// that left (`std::thread::panicking`).
struct DropOnUnwind<'a, F>(Pin<&'a mut State<F>>);

impl<F: Future> DropOnUnwind<'_, F> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Option<Poll<F::Output>> {
        match self.0.as_mut().project() {
            StateProjection::Calling { future } => Some(future.poll(cx)),
            StateProjection::Panicked => None,
        }
    }
}

impl<F> Drop for DropOnUnwind<'_, F> {
    fn drop(&mut self) {
        self.0.set(State::Panicked);
    }
}

/// Runs code of the service; `None` after a panic, which the log is told of.
#[inline]
pub(crate) fn caught<T>(run: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(value) => Some(value),
        Err(payload) => {
            log(&*payload);
            None
        }
    }
}

/// The answer to a call whose service has panicked.
pub(crate) fn panicked<B>(method: &Method) -> Response<ResponseBody<B>> {
    Problem::new(ErrorCode::Internal).into_response(method)
}

#[cold]
fn log(payload: &(dyn Any + Send)) {
    tracing::error!(
        target: "tollgate::panic",
        // `Debug` of a string escapes what could forge a line of the log.
        panic = ?message(payload),
        "the service panicked"
    );
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("(not a text)");
    let end = (0..=MAX_MESSAGE_BYTES.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    end.and_then(|end| text.get(..end)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_two_characters() {
        let payload: Box<dyn Any + Send> = Box::new("x".to_owned() + &"é".repeat(2_000));
        let cut = message(&*payload);
        assert_eq!(cut.len(), 1023);
        assert!(cut.ends_with('é'));
        assert_eq!(message(&"short"), "short");
        assert_eq!(message(&7_u8), "(not a text)");
    }
}
