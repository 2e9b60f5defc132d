use std::{fmt, ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};

use super::{
    CloudEvents, SinkError, UsageSink, Verdict, Verdicts, address,
    answer::{Said, Shut, said},
    isolate::{Deliver, Sent, isolate, unsettled},
};
use crate::{
    clock::{Clock, SystemClock},
    error::ConfigError,
    http_send::HttpSend,
    meter::UsageEvent,
};

/// What intermediaries pass on of one event at least (CloudEvents 1.0, "Size Limits").
const MAX_EVENT_BYTES: usize = 64 * 1024;
const MAX_REQUEST_BYTES: usize = 1024 * 1024;

/// Reads verdicts from a receiver's answer; see [`CloudEventsHttpSink::read_answer`].
type ReadAnswer = dyn Fn(&Response<Bytes>, &[UsageEvent]) -> Option<Vec<Verdict>> + Send + Sync;

/// Sends usage as CloudEvents over HTTP, to OpenMeter or whatever else takes them.
///
/// 1. A 2xx is the only word that an event is there; 207 alone is none, as it tells of each event apart.
/// 2. 408, 425, 429 and 5xx: all is offered again, not before a `Retry-After` that came along.
/// 3. 400, 409, 413, 422 and other statuses that may be one event's fault: the batch is halved until the event stands
///    alone, which is then rejected. Its neighbours are delivered.
/// 4. 3xx, 401, 403, 404 and others that would meet any event: nothing is rejected and all is offered again, until
///    somebody mends the address or the token. The log tells.
/// 5. An event that is encoded in more than 64 KiB is rejected unsent, as intermediaries need not pass it on.
///
/// Idempotent as far as the receiver is: `source` and `id` together name an event for ever, and a batch that is offered
/// again is the same bytes. OpenMeter tells repeated events for 32 days. A receiver that stored half of a batch before
/// it refused gets that half again.
///
/// ```
/// use std::sync::Arc;
///
/// use async_trait::async_trait;
/// use bytes::Bytes;
/// use http::{Request, Response, StatusCode};
/// use tollgate::{
///     clock::Timestamp,
///     http_send::{HttpSend, HttpSendError},
///     id::{PlanName, TenantId},
///     meter::{EventId, UsageEvent},
///     sink::{CloudEvents, CloudEventsHttpSink, UsageSink, Verdicts},
/// };
///
/// /// Takes what it is sent.
/// #[derive(Debug)]
/// struct Receiver;
///
/// #[async_trait]
/// impl HttpSend for Receiver {
///     async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpSendError> {
///         assert_eq!(request.headers()["content-type"], CloudEvents::BATCH_CONTENT_TYPE);
///         let mut answer = Response::new(Bytes::new());
///         *answer.status_mut() = StatusCode::NO_CONTENT;
///         Ok(answer)
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let sink = CloudEventsHttpSink::new(Receiver, "https://openmeter.example/api/v1/events")?
///     .bearer("from the environment")?;
/// let time = Timestamp::from_unix_seconds(1_768_478_400);
/// let event = UsageEvent::new(EventId::new(1, 1), time, TenantId::new("acme")?, PlanName::new("pro")?);
/// assert_eq!(sink.write(&[event]).await?, Verdicts::AllAccepted);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct CloudEventsHttpSink {
    client: Arc<dyn HttpSend>,
    url: Uri,
    encoder: CloudEvents,
    fields: Vec<(HeaderName, HeaderValue)>,
    is_single: bool,
    max_event_bytes: usize,
    max_request_bytes: usize,
    read_answer: Option<Arc<ReadAnswer>>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for CloudEventsHttpSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The address may hold a query, and the fields are credentials.
        f.debug_struct("CloudEventsHttpSink")
            .field("host", &self.url.host())
            .field("path", &self.url.path())
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

impl CloudEventsHttpSink {
    /// Sends batches to a URL, such as `https://openmeter.cloud/api/v1/events`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when it is no URL with `http` or `https` and a host, or has a user and a password in it.
    pub fn new(client: impl HttpSend, url: &str) -> Result<Self, ConfigError> {
        Ok(Self {
            client: Arc::new(client),
            url: address::read("url", url)?,
            encoder: CloudEvents::new(),
            fields: Vec::new(),
            is_single: false,
            max_event_bytes: MAX_EVENT_BYTES,
            max_request_bytes: MAX_REQUEST_BYTES,
            read_answer: None,
            clock: SystemClock::shared(),
        })
    }

    /// Sends `Authorization: Bearer` with each request. Neither `Debug` nor an error shows the token.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when the token is empty or holds what no header field can.
    pub fn bearer(self, token: impl AsRef<str>) -> Result<Self, ConfigError> {
        let token = token.as_ref();
        if token.is_empty() {
            return Err(ConfigError::new(
                "token",
                "is empty: give the receiver's token",
            ));
        }
        self.header(header::AUTHORIZATION, format!("Bearer {token}"))
    }

    /// Sends a header field with each request, for receivers that read their token elsewhere. It is treated as a secret.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when the value holds what no header field can.
    pub fn header(mut self, name: HeaderName, value: impl AsRef<str>) -> Result<Self, ConfigError> {
        // The cause would quote nothing, and there is no more to say.
        let mut value = HeaderValue::from_str(value.as_ref()).map_err(|_| {
            ConfigError::new(
                name.as_str(),
                "holds what no header field can: use visible ASCII",
            )
        })?;
        value.set_sensitive(true);
        self.fields.push((name, value));
        Ok(self)
    }

    /// How events are encoded; [`CloudEvents::new`] unless set.
    pub fn encoder(mut self, encoder: CloudEvents) -> Self {
        self.encoder = encoder;
        self
    }

    /// Sends every event in a request of its own, one after the other, for receivers that take no batches.
    pub const fn single(mut self) -> Self {
        self.is_single = true;
        self
    }

    /// How long one event may be, encoded; 65,536 bytes unless set. A longer one is rejected.
    pub const fn max_event_bytes(mut self, max_bytes: usize) -> Self {
        self.max_event_bytes = max_bytes;
        self
    }

    /// How long one request may be; 1 MiB unless set. A longer batch is sent in several. An event that is longer goes
    /// alone.
    pub const fn max_request_bytes(mut self, max_bytes: usize) -> Self {
        self.max_request_bytes = max_bytes;
        self
    }

    /// Reads what a receiver says of each event apart, in an answer with a 2xx status: one verdict for each event of
    /// the request, in their order. Events without a verdict are offered again. `None` leaves it to the status.
    ///
    /// Without it a 207 is an error, as it may hold anything.
    pub fn read_answer(
        mut self,
        read: impl Fn(&Response<Bytes>, &[UsageEvent]) -> Option<Vec<Verdict>> + Send + Sync + 'static,
    ) -> Self {
        self.read_answer = Some(Arc::new(read));
        self
    }

    /// Reads the time from a clock, for `Retry-After` with a date.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The parts of a batch that go in one request each.
    fn parts(&self, encoded: &[Vec<u8>]) -> Vec<Range<usize>> {
        let mut parts: Vec<Range<usize>> = Vec::new();
        let mut n_bytes = 0;
        for (place, event) in encoded.iter().enumerate() {
            if event.len() > self.max_event_bytes {
                continue;
            }
            match parts.last_mut() {
                Some(part)
                    if !self.is_single
                        && part.end == place
                        && n_bytes + event.len() < self.max_request_bytes =>
                {
                    part.end = place + 1;
                }
                _ => {
                    parts.push(place..place + 1);
                    n_bytes = "[]".len();
                }
            }
            n_bytes += event.len() + ",".len();
        }
        parts
    }

    fn request(&self, body: Vec<u8>) -> Request<Bytes> {
        let content_type = if self.is_single {
            CloudEvents::CONTENT_TYPE
        } else {
            CloudEvents::BATCH_CONTENT_TYPE
        };
        let mut request = Request::new(Bytes::from(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.extend(self.fields.iter().cloned());
        request
    }
}

#[derive(Debug, thiserror::Error)]
#[error(
    "the receiver answered 207, which tells of each event apart: give the sink a `read_answer`"
)]
struct Unread;

/// A batch on its way.
struct Sending<'a> {
    sink: &'a CloudEventsHttpSink,
    batch: &'a [UsageEvent],
    encoded: Vec<Vec<u8>>,
}

impl Sending<'_> {
    fn body(&self, part: Range<usize>) -> Vec<u8> {
        let events = self.encoded.get(part).unwrap_or_default();
        if let ([event], true) = (events, self.sink.is_single) {
            return event.clone();
        }
        let mut body = Vec::from(*b"[");
        body.extend(events.join(&b','));
        body.push(b']');
        body
    }
}

#[async_trait]
impl Deliver for Sending<'_> {
    async fn deliver(&self, part: Range<usize>) -> Sent {
        let sink = self.sink;
        let request = sink.request(self.body(part.clone()));
        let answer = match sink.client.send(request).await {
            Ok(answer) => answer,
            Err(error) => return Sent::Failed(error.into()),
        };
        match said(answer.status(), answer.headers(), sink.clock.now().wall()) {
            Said::Accepted => {
                let events = self.batch.get(part).unwrap_or_default();
                let read = sink.read_answer.as_ref();
                match read.and_then(|read| read(&answer, events)) {
                    Some(verdicts) => Sent::Each(verdicts.into_iter().take(events.len()).collect()),
                    None if answer.status() == StatusCode::MULTI_STATUS => {
                        Sent::Failed(Unread.into())
                    }
                    None => Sent::Accepted,
                }
            }
            Said::Later(after) => Sent::Later(after),
            Said::Refused(reason) => Sent::Refused(reason),
            Said::Closed => Sent::Failed(Shut(answer.status()).into()),
        }
    }
}

#[async_trait]
impl UsageSink for CloudEventsHttpSink {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        let mut verdicts = unsettled(batch.len());
        let mut encoded = Vec::with_capacity(batch.len());
        for (event, verdict) in batch.iter().zip(&mut verdicts) {
            let event =
                serde_json::to_vec(&self.encoder.one(event)).map_err(SinkError::unavailable)?;
            if event.len() > self.max_event_bytes {
                *verdict = Verdict::Rejected {
                    reason: "event_too_large",
                };
            }
            encoded.push(event);
        }
        let parts = self.parts(&encoded);
        let sending = Sending {
            sink: self,
            batch,
            encoded,
        };
        isolate(&sending, parts, verdicts).await
    }
}
