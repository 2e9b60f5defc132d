use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::Response;
use pin_project_lite::pin_project;

use super::layer::Terms;
use crate::{body::ResponseBody, error::Problem};

pin_project! {
    /// The answer of [`Deprecated`](super::Deprecated): the service's with what it is told, or a 410.
    pub struct DeprecationFuture<F, B> {
        #[pin]
        kind: Kind<F, B>,
    }
}

pin_project! {
    #[project = KindProjection]
    enum Kind<F, B> {
        Called { #[pin] future: F, terms: Arc<Terms> },
        Refused { response: Option<Box<Response<ResponseBody<B>>>> },
    }
}

impl<F, B> DeprecationFuture<F, B> {
    pub(super) const fn called(future: F, terms: Arc<Terms>) -> Self {
        let kind = Kind::Called { future, terms };
        Self { kind }
    }

    pub(super) fn refused(response: Response<ResponseBody<B>>) -> Self {
        let response = Some(Box::new(response));
        Self {
            kind: Kind::Refused { response },
        }
    }
}

impl<F, B, E> Future for DeprecationFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().kind.project() {
            KindProjection::Called { future, terms } => {
                let mut response = ready!(future.poll(cx))?.map(ResponseBody::inner);
                // A refusal says nothing of the version.
                let problem = response.extensions().get::<Problem>();
                if problem.is_none_or(|problem| !problem.code().is_refusal()) {
                    terms.tell(response.headers_mut());
                }
                Poll::Ready(Ok(response))
            }
            KindProjection::Refused { response } => response
                .take()
                .map_or(Poll::Pending, |response| Poll::Ready(Ok(*response))),
        }
    }
}

impl<F, B> fmt::Debug for DeprecationFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeprecationFuture").finish_non_exhaustive()
    }
}
