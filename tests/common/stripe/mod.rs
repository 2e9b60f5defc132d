//! A small Stripe on `127.0.0.1`: form requests, idempotency keys, meter events, and faults on command.
//!
//! What it says is what the official clients and the documentation say. Another resource is a module with its state in
//! [`Books`] and one arm in [`Books::act`]: keys, faults and the list of calls are there for all of them.

mod invoice_items;
mod meter_events;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    convert::Infallible,
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tollgate::clock::{Clock, Timestamp};
use tower::service_fn;

pub(crate) use self::{invoice_items::InvoiceItem, meter_events::MeterEvent};
use self::{invoice_items::InvoiceItems, meter_events::MeterEvents};
use super::http_server::{Server, serve};

/// The only secret that the emulator takes.
pub(crate) const SECRET: &str = "the-emulators-own-secret";

/// How long an idempotency key is remembered (docs.stripe.com/api/idempotent_requests).
const KEY_HOURS: u64 = 24;

/// The fields of a form by their names as sent, such as `payload[value]`.
pub(crate) type Form = BTreeMap<String, String>;

/// A request as it came, with the status that it was answered with; 0 where there was no answer.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) form: Form,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) status: u16,
    /// The answer was that of an earlier call with the same idempotency key.
    pub(crate) is_replay: bool,
}

/// What happens to a call instead of its answer. Upsets are used up in their order, one for each call.
#[derive(Clone, Debug)]
pub(crate) enum Upset {
    /// Nothing.
    None,
    /// Not acted upon, and not remembered under its key: what stands before the API answers.
    Refuse {
        status: u16,
        retry_after: Option<u64>,
    },
    /// Not acted upon; the 500 is remembered under its key.
    FailBefore,
    /// Acted upon; the 500 is remembered under its key.
    FailAfter,
    /// Not acted upon; the connection ends.
    CutBefore,
    /// Acted upon; the connection ends.
    CutAfter,
    /// Acted upon; no answer ever comes.
    Hang,
}

/// An answer of a resource.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Value,
}

impl Reply {
    pub(crate) const fn ok(body: Value) -> Self {
        Self {
            status: StatusCode::OK,
            body,
        }
    }

    /// An error in Stripe's form.
    pub(crate) fn error(status: u16, code: &str, message: &str) -> Self {
        let kind = match status {
            401 => "authentication_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        };
        Self {
            status: StatusCode::from_u16(status).expect("a status"),
            body: json!({"error": {"type": kind, "code": code, "message": message}}),
        }
    }
}

/// What the emulator knows.
#[derive(Debug)]
struct Books {
    clock: Arc<dyn Clock>,
    calls: Vec<Call>,
    upsets: VecDeque<Upset>,
    keys: HashMap<String, Remembered>,
    delay: Duration,
    invoice_items: InvoiceItems,
    meter_events: MeterEvents,
}

/// The first call under an idempotency key.
#[derive(Clone, Debug)]
struct Remembered {
    at: Timestamp,
    path: String,
    form: Form,
    /// Nothing while the call runs.
    reply: Option<Reply>,
}

impl Books {
    /// The resources.
    fn act(&mut self, method: &Method, path: &str, form: &Form) -> Reply {
        let now = self.clock.now().wall();
        match (method, path) {
            (&Method::POST, "/v1/billing/meter_events") => self.meter_events.create(form, now),
            (&Method::POST, "/v1/invoiceitems") => self.invoice_items.create(form, now),
            (&Method::GET, "/v1/invoiceitems") => self.invoice_items.list(form),
            _ => Reply::error(404, "resource_missing", "Unrecognized request URL"),
        }
    }

    /// What calls may not do at the same time; nothing for what may.
    fn lock_of(method: &Method, path: &str, form: &Form) -> Option<String> {
        match (method, path) {
            (&Method::POST, "/v1/billing/meter_events") => Some(MeterEvents::lock_of(form)),
            _ => None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct StripeServer {
    server: Server,
    books: Arc<Mutex<Books>>,
    locks: Arc<Locks>,
}

/// What runs now, and how much of it there was at most.
#[derive(Debug, Default)]
struct Locks {
    running: Mutex<HashMap<String, u32>>,
    seen: Mutex<Seen>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    overlaps: u32,
    most_at_once: usize,
}

/// Holds a lock until it is dropped, also when the client leaves.
struct Held<'a>(&'a Locks, String);

impl Locks {
    fn take(&self, name: String) -> Result<Held<'_>, ()> {
        let mut running = self.running.lock().expect("no panic holds the lock");
        let mut seen = self.seen.lock().expect("no panic holds the lock");
        let count = running.entry(name.clone()).or_default();
        *count += 1;
        let is_second = *count > 1;
        seen.most_at_once = seen.most_at_once.max(running.len());
        seen.overlaps += u32::from(is_second);
        drop((running, seen));
        let held = Held(self, name);
        if is_second { Err(()) } else { Ok(held) }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut running = self.0.running.lock().expect("no panic holds the lock");
        if let Some(count) = running.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.1);
            }
        }
    }
}

impl StripeServer {
    /// A server that reads this clock.
    pub(crate) async fn start(clock: Arc<dyn Clock>) -> Self {
        let books = Arc::new(Mutex::new(Books {
            clock,
            calls: Vec::new(),
            upsets: VecDeque::new(),
            keys: HashMap::new(),
            delay: Duration::ZERO,
            invoice_items: InvoiceItems::default(),
            meter_events: MeterEvents::default(),
        }));
        let locks = Arc::new(Locks::default());
        let (of_books, of_locks) = (Arc::clone(&books), Arc::clone(&locks));
        let server = serve(service_fn(move |request: Request<Incoming>| {
            let (books, locks) = (Arc::clone(&of_books), Arc::clone(&of_locks));
            async move { Ok::<_, Infallible>(answer(&books, &locks, request).await) }
        }))
        .await;
        Self {
            server,
            books,
            locks,
        }
    }

    /// The base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.server.addr)
    }

    pub(crate) const fn port(&self) -> u16 {
        self.server.addr.port()
    }

    /// What happens to the next calls, one after the other.
    pub(crate) fn upset(&self, upsets: impl IntoIterator<Item = Upset>) {
        self.books().upsets.extend(upsets);
    }

    /// How long each call takes.
    pub(crate) fn set_delay(&self, delay: Duration) {
        self.books().delay = delay;
    }

    /// Forgets every idempotency key, as Stripe does after a day.
    pub(crate) fn forget_keys(&self) {
        self.books().keys.clear();
    }

    /// Every call so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.books().calls.clone()
    }

    /// The meter events that count.
    pub(crate) fn meter_events(&self) -> Vec<MeterEvent> {
        self.books().meter_events.accepted.clone()
    }

    /// The invoice items that were made, oldest first.
    pub(crate) fn invoice_items(&self) -> Vec<InvoiceItem> {
        self.books().invoice_items.made.clone()
    }

    /// The sum of a customer's meter.
    pub(crate) fn meter_total(&self, customer: &str, event_name: &str) -> u128 {
        let books = self.books();
        let own = books.meter_events.accepted.iter();
        own.filter(|event| event.customer == customer && event.event_name == event_name)
            .map(|event| u128::from(event.value))
            .sum()
    }

    /// Calls that came while one ran that excludes them, such as two for one customer and meter.
    pub(crate) fn overlaps(&self) -> u32 {
        self.locks
            .seen
            .lock()
            .expect("no panic holds the lock")
            .overlaps
    }

    /// The most calls that ran at the same time, of those that lock something.
    pub(crate) fn most_at_once(&self) -> usize {
        self.locks
            .seen
            .lock()
            .expect("no panic holds the lock")
            .most_at_once
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().expect("no panic holds the lock")
    }
}

/// A header field as text.
fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

async fn answer(books: &Mutex<Books>, locks: &Locks, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        return Response::new(Body::empty());
    };
    let query = parts.uri.query().unwrap_or_default();
    let body = body.to_bytes();
    let fields = form_urlencoded::parse(query.as_bytes()).chain(form_urlencoded::parse(&body));
    let form: Form = fields
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    let call = Call {
        method: parts.method,
        path: parts.uri.path().to_owned(),
        form,
        idempotency_key: text(&parts.headers, "idempotency-key"),
        version: text(&parts.headers, "stripe-version"),
        status: 0,
        is_replay: false,
    };
    let (place, delay, upset) = {
        let mut books = books.lock().expect("no panic holds the lock");
        books.calls.push(call.clone());
        let upset = books.upsets.pop_front().unwrap_or(Upset::None);
        (books.calls.len() - 1, books.delay, upset)
    };
    let finish = |reply: Reply, is_replay: bool| {
        let mut books = books.lock().expect("no panic holds the lock");
        books.calls[place].status = reply.status.as_u16();
        books.calls[place].is_replay = is_replay;
        let mut response = rendered(&reply, None);
        if is_replay {
            let replayed = HeaderValue::from_static("true");
            response
                .headers_mut()
                .insert("idempotent-replayed", replayed);
        }
        response
    };
    if text(&parts.headers, "authorization") != Some(format!("Bearer {SECRET}")) {
        return finish(Reply::error(401, "", "Invalid API Key provided"), false);
    }
    match upset {
        Upset::Refuse {
            status,
            retry_after,
        } => {
            let reply = Reply::error(status, "rate_limit", "Refused on command");
            books.lock().expect("no panic holds the lock").calls[place].status = status;
            return rendered(&reply, retry_after);
        }
        Upset::CutBefore => return cut(),
        _ => {}
    }
    let _held = match Books::lock_of(&call.method, &call.path, &call.form).map(|it| locks.take(it))
    {
        None => None,
        Some(Ok(held)) => Some(held),
        Some(Err(())) => {
            let message = "This object cannot be accessed right now";
            return finish(Reply::error(429, "lock_timeout", message), false);
        }
    };
    if delay > Duration::ZERO {
        tokio::time::sleep(delay).await;
    }
    let (reply, is_replay) = keyed(books, &call, &upset);
    match upset {
        Upset::CutAfter => cut(),
        Upset::Hang => std::future::pending().await,
        _ => finish(reply, is_replay),
    }
}

/// Acts on a call under its idempotency key: the first result is the result of every later call, a 500 too.
fn keyed(books: &Mutex<Books>, call: &Call, upset: &Upset) -> (Reply, bool) {
    let mut books = books.lock().expect("no panic holds the lock");
    let now = books.clock.now().wall();
    if let Some(key) = &call.idempotency_key {
        assert!(
            key.len() <= 255,
            "an idempotency key has up to 255 characters"
        );
        let life = Duration::from_secs(KEY_HOURS * 3600);
        let known = books.keys.get(key);
        if let Some(known) = known.filter(|known| now.saturating_since(known.at) < life) {
            let (path, form, reply) = (&known.path, &known.form, known.reply.clone());
            if (path, form) != (&call.path, &call.form) {
                let message =
                    "Keys for idempotent requests can only be used with the same parameters";
                let mut reply = Reply::error(400, "", message);
                reply.body["error"]["type"] = json!("idempotency_error");
                return (reply, false);
            }
            let in_use = || Reply::error(409, "idempotency_key_in_use", "The first call runs");
            return (reply.unwrap_or_else(in_use), true);
        }
    }
    let failed = || Reply::error(500, "", "Failed on command");
    let reply = match upset {
        Upset::FailBefore => failed(),
        Upset::FailAfter => {
            let _ = books.act(&call.method, &call.path, &call.form);
            failed()
        }
        _ => books.act(&call.method, &call.path, &call.form),
    };
    if let Some(key) = &call.idempotency_key {
        let remembered = Remembered {
            at: now,
            path: call.path.clone(),
            form: call.form.clone(),
            reply: Some(reply.clone()),
        };
        books.keys.insert(key.clone(), remembered);
    }
    (reply, false)
}

fn rendered(reply: &Reply, retry_after: Option<u64>) -> Response<Body> {
    let mut response = Response::builder()
        .status(reply.status)
        .header(header::CONTENT_TYPE, "application/json");
    if let Some(seconds) = retry_after {
        response = response.header(header::RETRY_AFTER, seconds);
    }
    response
        .body(Body::from(reply.body.to_string()))
        .expect("a valid response")
}

/// An answer that breaks off, as far as a server can break one off.
fn cut() -> Response<Body> {
    let broken = futures_util::stream::once(async { Err::<Bytes, _>(io::Error::other("cut")) });
    Response::new(Body::from_stream(broken))
}
