//! What a call used.
//!
//! [`MeterLayer`] puts a [`Meter`] into each request and reports every call to a [`Recorder`], which writes
//! [`UsageEvent`]s to a [sink](crate::sink):
//!
//! 1. The call gets its event id and its time when it reaches the layer. Both stay, whatever is retried later.
//! 2. [`Meter::identify`] opens the call: from here on it makes exactly one event.
//! 3. The service and its streams add quantities through the [`Meter`], until the response body ends.
//! 4. The call is settled when its response body is dropped, or its future where there is no response: every
//!    call gets there, served, refused, failed, aborted or panicked. One that somebody holds is settled when the
//!    last hold is dropped.
//! 5. The recorder's background task makes an event of it and offers it to the sink until the sink has given
//!    its last word.
//!
//! A client that leaves pays by an [`AbortPolicy`]. A [`MeterHold`] keeps the call open while an upgraded connection
//! lives. A [`MeasureLayer`] reads quantities from the answer, a [`CountRequestBodyLayer`] counts the request. The
//! [guide](crate::guide::streaming) has a page on all of it.
//!
//! Calls that nobody was identified for make no event. They are counted by status, so that events and counters
//! together are every call: see [`Counters`].
//!
//! # Deployment
//!
//! Events wait in memory: a kill loses at most the queue. A [`Durability`] in the recorder's settings keeps them on
//! the disk instead, and the [guide](crate::guide::metering) says what is lost and what is doubled. Call
//! [`Recorder::shutdown`] after the server has stopped. A response that was handed to the connection counts as delivered; whether the client read it,
//! nobody can know.
//!
//! ```
//! use axum::{Router, body::Body, http::Request, routing::get};
//! use http_body_util::BodyExt;
//! use std::{sync::Arc, time::Duration};
//! use tollgate::{
//!     id::TenantId,
//!     identity::{Grant, Identity},
//!     meter::{Meter, MeterLayer, Recorder},
//!     plan::Plan,
//!     sink::MemorySink,
//!     tenant::{Tenant, TenantRecord},
//! };
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! async fn chat(meter: Meter) -> &'static str {
//!     meter.add("tokens", 812);
//!     "hello"
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let plan = Arc::new(Plan::new("pro").compile()?);
//! let acme = TenantRecord::new(TenantId::new("acme")?, plan.name().clone());
//! let acme = Identity::new(Tenant::new(Arc::new(acme)), plan, Grant::default())?;
//!
//! let usage = MemorySink::new();
//! let recorder = Recorder::new(usage.clone())?;
//! let layers = ServiceBuilder::new()
//!     .layer(MeterLayer::new(recorder.clone()))
//!     // Your own authentication, or `AuthLayer`, says who calls.
//!     .map_request(move |request: Request<Body>| {
//!         if let Some(meter) = request.extensions().get::<Meter>()
//!             && request.headers().contains_key("authorization")
//!         {
//!             meter.identify(&acme);
//!         }
//!         request
//!     });
//! let app = Router::new().route("/chat/{room}", get(chat)).layer(layers);
//!
//! let call = Request::get("/chat/7").header("authorization", "Bearer acme").body(Body::empty())?;
//! app.clone().oneshot(call).await?.into_body().collect().await?;
//! app.oneshot(Request::get("/chat/7").body(Body::empty())?).await?.into_body().collect().await?;
//!
//! let report = recorder.shutdown(Duration::from_secs(5)).await;
//! assert_eq!((report.acked, report.dropped), (1, 0));
//! let event = &usage.events()[0];
//! assert_eq!((event.tenant.as_str(), &*event.route), ("acme", "/chat/{room}"));
//! assert_eq!(event.quantities["tokens"], 812);
//! assert_eq!(recorder.counters().unidentified(200), 1);
//! # Ok(())
//! # }
//! ```

mod abort;
mod batch;
mod body;
mod config;
mod cost;
mod counters;
mod country;
mod dead_letters;
mod durability;
mod encode;
mod event;
mod export;
#[cfg(feature = "axum")]
mod extract;
mod flush;
mod future;
mod guard;
mod head_fields;
mod hold;
mod inner;
mod layer;
mod losses;
mod measure;
#[expect(
    clippy::module_inception,
    reason = "the room is named after its main type"
)]
mod meter;
mod open_call;
mod quantities;
mod rates;
mod recorder;
mod replay;
mod report;
mod request_body;
mod secure;
mod service;
mod spool;
mod stats;
mod step;

use self::event::forges_a_line;
pub use self::{
    abort::AbortPolicy,
    body::MeterBody,
    config::RecorderBuilder,
    cost::{ComputeTimer, CostScope},
    counters::Counters,
    country::{Country, GeoResolver, NotACountry},
    dead_letters::DeadLetter,
    durability::{Durability, SpoolDir},
    event::{CallOutcome, EventId, UsageEvent},
    future::ResponseFuture,
    hold::MeterHold,
    layer::MeterLayer,
    losses::{Loss, LossReason},
    measure::{
        Measure, MeasureBody, MeasureFuture, MeasureLayer, Measured, TokenUsage, TokenUsageReader,
    },
    meter::{MAX_QUANTITIES, MAX_QUANTITY_NAME_BYTES, Meter},
    open_call::{CallMeter, OpenCall},
    rates::{CallCost, CostRates},
    recorder::{FlushReport, Recorder},
    request_body::{CountRequestBodyLayer, CountedRequestBody, CountingRequests},
    service::Metered,
};
pub(crate) use self::{abort::Billed, event::printable, guard::Guard};
