//! A service that remembers what reached it, and calls to it.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use tollgate::{
    error::{ErrorCode, Problem},
    identity::{AuthLayer, Identity},
};
use tower::{Service, ServiceExt};

use super::fake::Far;

/// What reached the inner service.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inner {
    seen: Arc<Mutex<Vec<http::request::Parts>>>,
}

impl Inner {
    pub(crate) fn n_calls(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(crate) fn last(&self) -> http::request::Parts {
        self.seen.lock().unwrap().last().unwrap().clone()
    }

    pub(crate) fn identity(&self) -> Option<Identity> {
        self.last().extensions.get().cloned()
    }
}

impl Service<Request<Empty<Bytes>>> for Inner {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Empty<Bytes>>) -> Self::Future {
        self.seen.lock().unwrap().push(request.into_parts().0);
        std::future::ready(Ok(Response::new(Full::from("served"))))
    }
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) problem: Option<Problem>,
}

impl Answer {
    pub(crate) fn code(&self) -> Option<ErrorCode> {
        self.problem.as_ref().map(Problem::code)
    }
}

pub(crate) async fn send<S, B>(service: S, request: Request<Empty<Bytes>>) -> Answer
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let response = service.oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: body.collect().await.unwrap().to_bytes(),
        problem: parts.extensions.get().cloned(),
    }
}

pub(crate) fn request(headers: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    to("GET", "/v1/hello", headers)
}

pub(crate) fn to(method: &str, target: &str, headers: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let mut builder = Request::builder().method(method).uri(target);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Empty::new()).unwrap()
}

/// The layer with the clock of the test.
pub(crate) fn layer(far: &Far) -> AuthLayer {
    AuthLayer::new(far.auth.clone()).clock(Arc::new(far.clock.clone()))
}
