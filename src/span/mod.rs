//! One tracing span for each call, by OpenTelemetry's conventions for HTTP servers.
//!
//! [`SpanLayer`] makes it: the gate has one, off unless `TollgateBuilder::trace` turns it on. Who has tower-http's
//! `TraceLayer` already gives it [`make_span`]. Either way the layers of this crate fill in what they learn.
//!
//! | field | value |
//! | --- | --- |
//! | `otel.name`, `otel.kind` | `GET /v1/chat/{id}`, or the method alone where no route is known; `server` |
//! | `http.request.method` | the method; `_OTHER` for one that is not in RFC 9110 or RFC 5789 |
//! | `url.path` | the path as it was sent, up to 1,024 bytes; never the query |
//! | `url.scheme` | where the target names it, as in HTTP/2 |
//! | `http.route` | the route template |
//! | `network.protocol.version` | `1.0`, `1.1`, `2` or `3` |
//! | `user_agent.original` | up to 256 bytes |
//! | `http.response.status_code` | the status of the answer |
//! | `error.type`, `otel.status_code` | the status and `ERROR`, for an answer of 500 and above; `service_error` where the service failed without one |
//! | `trace_id`, `parent_id` | of a valid `traceparent`, as plain fields; see [`TraceContext`] |
//! | `request_id` | the call's `x-request-id` |
//! | `tollgate.tenant`, `tollgate.plan`, `tollgate.key_id` | who calls, once known |
//! | `tollgate.refused` | the code of a refusal by this crate |
//!
//! No field holds a header's value but those named, and no control character: what would forge a line of a log is
//! written as an escape. The span ends with the answer's body. To hang it under the caller's span in an exporter,
//! set the parent by your OpenTelemetry propagator, in a layer outside.
//!
//! ```
//! use http::{Request, Response};
//! use std::convert::Infallible;
//! use tollgate::span::SpanLayer;
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let service = SpanLayer::new().layer(service_fn(|_: Request<String>| async {
//!     tracing::info!("within the span of the call");
//!     Ok::<_, Infallible>(Response::new(String::new()))
//! }));
//! assert_eq!(service.oneshot(Request::new(String::new())).await?.status(), 200);
//! # Ok(())
//! # }
//! ```

mod fields;
mod layer;
mod trace_context;

pub(crate) use self::fields::{CallSpan, tell_route};
pub use self::{
    fields::make_span,
    layer::{SpanBody, SpanFuture, SpanLayer, SpanService},
    trace_context::TraceContext,
};
