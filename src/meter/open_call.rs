//! Calls that come by no HTTP request.

use std::{fmt, sync::Arc, thread};

use http::{Method, StatusCode};

use super::{
    event::CallOutcome,
    hold::Verdict,
    layer::{MeterLayer, Shared},
    meter::{Call, Meter},
    recorder::Recorder,
};
use crate::clock::Now;

/// Meters calls that come by no HTTP request, such as a job, a message of a queue or a frame of a WebSocket.
///
/// [`MeterLayer`](super::MeterLayer) does it for requests. Cloning gives a second handle to the same recorder.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use tollgate::{clock::{Clock, SystemClock}, id::TenantId, identity::Identity, meter::{CallMeter, Recorder}};
/// use tollgate::{plan::Plan, sink::MemorySink};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let acme = Identity::of_tenant(TenantId::new("acme")?, Arc::new(Plan::new("pro").compile()?));
/// let (clock, usage) = (SystemClock::new(), MemorySink::new());
/// let recorder = Recorder::new(usage.clone())?;
/// let jobs = CallMeter::new(recorder.clone(), "jobs");
///
/// let job = jobs.open(clock.now());
/// job.meter().identify(&acme);
/// job.meter().set_route("resize-image");
/// job.meter().add("pixels", 480_000);
/// job.end(http::StatusCode::OK);
///
/// let _ = recorder.shutdown(Duration::from_secs(5)).await;
/// let event = &usage.events()[0];
/// assert_eq!((&*event.api, &*event.route, event.quantities["pixels"]), ("jobs", "resize-image", 480_000));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct CallMeter {
    shared: Arc<Shared>,
    method: Method,
}

impl CallMeter {
    /// Reports to `recorder`, under this name of an API. The method in its events is `_OTHER`, OpenTelemetry's
    /// word for none of HTTP's.
    pub fn new(recorder: Recorder, api: impl AsRef<str>) -> Self {
        Self {
            shared: MeterLayer::new(recorder).api(api).shared,
            method: Method::from_bytes(b"_OTHER").unwrap_or_default(),
        }
    }

    /// A call that starts at `now`, a reading of the recorder's clock. Starts the recorder's background task
    /// where none runs.
    pub fn open(&self, now: Now) -> OpenCall {
        let recorder = &self.shared.recorder;
        recorder.ensure_started();
        let site = Arc::clone(&self.shared.site);
        let mut call = Call::new(recorder.next_id(), now, Some(site));
        call.method = self.method.clone();
        OpenCall {
            meter: Meter(Arc::new(call)),
            shared: Arc::clone(&self.shared),
            status: None,
        }
    }
}

impl fmt::Debug for CallMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallMeter")
            .field("api", &self.shared.site.api)
            .finish_non_exhaustive()
    }
}

/// A call that has not ended, made by [`CallMeter::open`].
///
/// It makes one event when it ends, if [`Meter::identify`] has said who calls; without that it is counted by
/// status. Dropped without [`end`](Self::end) it was aborted with status 499, or panicked with 500 while its
/// thread does. A [`MeterHold`](super::MeterHold) that lives longer ends it.
#[must_use = "dropping it ends the call as aborted"]
pub struct OpenCall {
    meter: Meter,
    shared: Arc<Shared>,
    status: Option<StatusCode>,
}

impl OpenCall {
    /// The handle that says who calls and what the call used.
    #[must_use]
    pub const fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Ends the call as an HTTP answer of this status would: failed from 500 on, else served; refused where
    /// [`Meter::refused`] said so.
    ///
    /// Neither waits nor allocates, and wakes nobody.
    pub fn end(mut self, status: StatusCode) {
        self.status = Some(status);
    }

    fn outcome(&self) -> (u16, CallOutcome) {
        match self.status {
            Some(status) if self.meter.0.refused().is_some() => {
                (status.as_u16(), CallOutcome::Refused)
            }
            Some(status) if status.is_server_error() => (status.as_u16(), CallOutcome::Failed),
            Some(status) => (status.as_u16(), CallOutcome::Served),
            None if thread::panicking() => (500, CallOutcome::Panicked),
            None => (499, CallOutcome::Aborted),
        }
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        let (status, outcome) = self.outcome();
        Verdict {
            status,
            outcome,
            reason: self.meter.0.refused(),
            response_bytes: 0,
            grpc_status: None,
        }
        .reach(&self.meter.0, &self.shared);
    }
}

impl fmt::Debug for OpenCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenCall")
            .field("id", &self.meter.event_id())
            .finish_non_exhaustive()
    }
}
