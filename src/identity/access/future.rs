use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderValue, Response};
use pin_project_lite::pin_project;
use tokio::task::futures::TaskLocalFuture;

use super::layer::tell;
use crate::{body::ResponseBody, tenant::Tenant};

pin_project! {
    /// The answer of [`TenantAccess`](super::TenantAccess): the inner service's, or a refusal.
    pub struct AccessFuture<F, B> {
        #[pin]
        kind: Kind<F, B>,
    }
}

pin_project! {
    #[project = KindProjection]
    enum Kind<F, B> {
        Called { #[pin] future: F, mark: Option<HeaderValue> },
        Scoped { #[pin] future: TaskLocalFuture<Tenant, F>, mark: Option<HeaderValue> },
        Refused { response: Option<Box<Response<ResponseBody<B>>>> },
    }
}

impl<F, B> AccessFuture<F, B> {
    pub(in crate::identity) const fn called(future: F, mark: Option<HeaderValue>) -> Self {
        let kind = Kind::Called { future, mark };
        Self { kind }
    }

    pub(super) const fn scoped(
        future: TaskLocalFuture<Tenant, F>,
        mark: Option<HeaderValue>,
    ) -> Self {
        let kind = Kind::Scoped { future, mark };
        Self { kind }
    }

    pub(in crate::identity) fn refused(response: Response<ResponseBody<B>>) -> Self {
        let response = Some(Box::new(response));
        Self {
            kind: Kind::Refused { response },
        }
    }
}

impl<F, B, E> Future for AccessFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (response, mark) = match self.project().kind.project() {
            KindProjection::Called { future, mark } => (ready!(future.poll(cx)), mark),
            KindProjection::Scoped { future, mark } => (ready!(future.poll(cx)), mark),
            KindProjection::Refused { response } => {
                return response
                    .take()
                    .map_or(Poll::Pending, |response| Poll::Ready(Ok(*response)));
            }
        };
        let mut response = response?.map(ResponseBody::inner);
        if let Some(mark) = mark.take() {
            tell(mark, response.headers_mut());
        }
        Poll::Ready(Ok(response))
    }
}

impl<F, B> fmt::Debug for AccessFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessFuture").finish_non_exhaustive()
    }
}
