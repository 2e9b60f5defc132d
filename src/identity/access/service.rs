use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use super::{AccessFuture, layer::AccessRules};
use crate::{
    body::ResponseBody,
    error::{ErrorCode, Problem},
    head::RequestHead,
    identity::{Identity, PublicPath},
    meter::Meter,
    tenant::CURRENT,
};

/// The service of [`TenantLayer`](super::TenantLayer).
#[derive(Clone, Debug)]
pub struct TenantAccess<S> {
    inner: S,
    rules: Arc<AccessRules>,
}

impl<S> TenantAccess<S> {
    pub(super) const fn new(inner: S, rules: Arc<AccessRules>) -> Self {
        Self { inner, rules }
    }
}

impl<S, ReqB, B> Service<Request<ReqB>> for TenantAccess<S>
where
    S: Service<Request<ReqB>, Response = Response<B>>,
{
    type Response = Response<ResponseBody<B>>;
    type Error = S::Error;
    type Future = AccessFuture<S::Future, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<ReqB>) -> Self::Future {
        let extensions = request.extensions();
        let Some(identity) = extensions.get::<Identity>() else {
            if extensions.get::<PublicPath>().is_some() {
                return AccessFuture::called(self.inner.call(request), None);
            }
            let problem = Problem::new(ErrorCode::LayerMissing).detail(
                "TenantLayer found no Identity: put AuthLayer outside of it, or use a whole gate",
            );
            return AccessFuture::refused(problem.into_response(request.method()));
        };
        let now = match extensions.get::<Meter>() {
            Some(meter) => {
                meter.identify_once(identity);
                meter.started()
            }
            None => self.rules.now(),
        };
        match self
            .rules
            .judge(identity, &RequestHead::from(&request), now)
        {
            Err(problem) => AccessFuture::refused(problem.into_response(request.method())),
            Ok(mark) if self.rules.task_local => {
                let tenant = identity.tenant().clone();
                let future = CURRENT.sync_scope(tenant.clone(), || self.inner.call(request));
                AccessFuture::scoped(CURRENT.scope(tenant, future), mark)
            }
            Ok(mark) => AccessFuture::called(self.inner.call(request), mark),
        }
    }
}
