//! One call of Stripe's API: what is sent, what its answer says, and what is remembered when the answer leaves it open.

use std::{
    collections::HashMap,
    error::Error,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use serde::Deserialize;

use super::unit::Charge;
use crate::{
    clock::Timestamp,
    http_send::{HttpSend, HttpSendError},
    sink::answer::{Said, Shut, retry_after, said},
};

/// Identifiers and idempotency keys are told apart for a day at least. An hour is left for the clocks.
pub(super) const SURE_FOR: Duration = Duration::from_secs(23 * 60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How many answers that Stripe repeats are read over in one attempt.
const MAX_REPLAYS: u32 = 8;
/// Above this many open calls, those of which nothing can be known any more are forgotten.
const MANY_OPEN: usize = 16_384;

/// What became of one charge.
#[derive(Debug)]
pub(super) enum Outcome {
    Accepted,
    /// An earlier attempt had arrived.
    Duplicate,
    Refused(&'static str),
    Later(Duration),
    Failed(Box<dyn Error + Send + Sync>),
}

/// How charges are sent.
pub(super) struct Caller {
    pub(super) client: Arc<dyn HttpSend>,
    pub(super) url: Uri,
    pub(super) authorization: HeaderValue,
    pub(super) version: HeaderValue,
    open: Mutex<HashMap<String, Open>>,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller")
            .field("host", &self.url.host())
            .field("version", &self.version)
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

/// A charge that may or may not have arrived.
#[derive(Clone, Copy, Debug)]
struct Open {
    since: Timestamp,
    /// How often the answer was a 500, which Stripe repeats for the same idempotency key.
    n_failures: u32,
}

/// An error in Stripe's form.
#[derive(Debug, Default, Deserialize)]
struct Body {
    #[serde(default)]
    error: Fault,
}

#[derive(Debug, Default, Deserialize)]
struct Fault {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

impl Caller {
    pub(super) fn new(
        client: Arc<dyn HttpSend>,
        url: Uri,
        authorization: HeaderValue,
        version: HeaderValue,
    ) -> Self {
        Self {
            client,
            url,
            authorization,
            version,
            open: Mutex::default(),
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a charge. Cut off, it may have been sent.
    pub(super) async fn send(
        &self,
        charge: &Charge,
        event_name: &str,
        customer: &str,
        time: Timestamp,
        now: Timestamp,
    ) -> Outcome {
        let known = self.open().get(&charge.identifier).copied();
        if known.is_some_and(|open| now.saturating_since(open.since) > SURE_FOR) {
            // Stripe would take it as a new one.
            self.open().remove(&charge.identifier);
            return Outcome::Refused("unknown_for_a_day");
        }
        let mut n_failures = known.map_or(0, |open| open.n_failures);
        for _ in 0..MAX_REPLAYS {
            let request = self.request(charge, event_name, customer, time, n_failures);
            // Noted before: a future that is dropped leaves it open as well.
            self.note(&charge.identifier, now, n_failures);
            let answer = match self.client.send(request).await {
                Ok(answer) => answer,
                Err(error) => {
                    if matches!(error, HttpSendError::NotSent(_)) && known.is_none() {
                        self.open().remove(&charge.identifier);
                    }
                    return Outcome::Failed(error.into());
                }
            };
            if answer.status().is_server_error() {
                n_failures = n_failures.saturating_add(1);
                self.note(&charge.identifier, now, n_failures);
                // An answer from before this process began says nothing of now.
                if answer.headers().contains_key("idempotent-replayed") {
                    continue;
                }
                return read(&answer, now);
            }
            let outcome = read(&answer, now);
            let is_final = !matches!(outcome, Outcome::Later(_) | Outcome::Failed(_));
            if is_final || known.is_none() {
                self.open().remove(&charge.identifier);
            }
            return outcome;
        }
        Outcome::Later(Duration::ZERO)
    }

    fn note(&self, identifier: &str, now: Timestamp, n_failures: u32) {
        let mut open = self.open();
        if let Some(known) = open.get_mut(identifier) {
            known.n_failures = n_failures;
            return;
        }
        if open.len() >= MANY_OPEN {
            open.retain(|_, known| now.saturating_since(known.since) < DAY);
        }
        let since = now;
        open.insert(identifier.to_owned(), Open { since, n_failures });
    }

    fn request(
        &self,
        charge: &Charge,
        event_name: &str,
        customer: &str,
        time: Timestamp,
        n_failures: u32,
    ) -> Request<Bytes> {
        let (identifier, value) = (&charge.identifier, charge.value);
        let body = form_urlencoded::Serializer::new(String::new())
            .append_pair("event_name", event_name)
            .append_pair("payload[stripe_customer_id]", customer)
            .append_pair("payload[value]", &value.to_string())
            .append_pair("identifier", identifier)
            .append_pair("timestamp", &time.as_unix_seconds().to_string())
            .finish();
        let mut request = Request::new(Bytes::from(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        let headers = request.headers_mut();
        headers.insert(header::AUTHORIZATION, self.authorization.clone());
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
        headers.insert("stripe-version", self.version.clone());
        // Another key after each 500, as Stripe repeats the answer to a key it knows. The identifier keeps it from
        // counting twice.
        let key = format!("{identifier}:{value}:{n_failures}");
        // Always visible ASCII of less than 255 characters.
        if let Ok(key) = HeaderValue::from_str(&key) {
            headers.insert("idempotency-key", key);
        }
        request
    }
}

/// What an answer says.
fn read(answer: &Response<Bytes>, now: Timestamp) -> Outcome {
    let status = answer.status();
    let fault = || -> Fault {
        let body: Body = serde_json::from_slice(answer.body()).unwrap_or_default();
        body.error
    };
    // A key whose first call still runs, or an object that another call holds.
    if status == StatusCode::CONFLICT {
        return Outcome::Later(retry_after(answer.headers(), now));
    }
    match said(status, answer.headers(), now) {
        Said::Accepted => Outcome::Accepted,
        Said::Later(after) => Outcome::Later(after),
        Said::Closed => Outcome::Failed(Shut(status).into()),
        Said::Refused(_) => {
            let fault = fault();
            let says = |text: &str| fault.message.as_ref().is_some_and(|it| it.contains(text));
            match fault.code.as_deref() {
                Some("duplicate_meter_event") => Outcome::Duplicate,
                // The documentation names the message only.
                _ if says("already exists with identifier") => Outcome::Duplicate,
                Some("resource_missing" | "meter_event_customer_not_found") => {
                    Outcome::Refused("no_such_customer")
                }
                Some("timestamp_too_far_in_past") => Outcome::Refused("older_than_35_days"),
                Some("timestamp_in_future") => Outcome::Refused("ahead_of_time"),
                Some("archived_meter" | "no_meter") => Outcome::Refused("no_such_meter"),
                _ => Outcome::Refused("refused_by_stripe"),
            }
        }
    }
}
