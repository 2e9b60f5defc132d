use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use tower_service::Service;

use crate::{body::FullBody, meter::Recorder};

/// Says whether the gate is well: 200, or 503 once it was shut down or while its queue of usage is full, with
/// a small JSON document of its counters. `events_undelivered` grows while the sink does not take what was offered
/// to it.
///
/// Mount it outside the gate, such as by axum's `route_service("/health", gate.health())`. It answers at once
/// and asks no store: a store that is down must not take the process out of its balancer, since the gate has a
/// policy for that.
#[derive(Clone, Debug)]
pub struct Health {
    recorder: Recorder,
}

impl Health {
    pub(super) const fn new(recorder: Recorder) -> Self {
        Self { recorder }
    }
}

impl<Q> Service<Request<Q>> for Health {
    type Response = Response<FullBody>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let counters = self.recorder.counters();
        let well = self.recorder.accepts();
        let document = serde_json::json!({
            "status": if well { "ok" } else { "unavailable" },
            "calls_open": counters.open,
            "events_queued": counters.queued,
            "events_undelivered": counters.in_flight + counters.spooled,
            "events_written": counters.acked,
            "events_dropped": counters.dropped(),
        });
        let body = match *request.method() {
            Method::HEAD => FullBody::empty(),
            _ => FullBody::full(document.to_string()),
        };
        let mut response = Response::new(body);
        if !well {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        let fields = response.headers_mut();
        fields.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        ready(Ok(response))
    }
}
