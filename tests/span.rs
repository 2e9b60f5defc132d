//! One span for each call, with the fields of OpenTelemetry's conventions.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode, Uri},
    routing::{get, post},
};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use tollgate::{prelude::*, sink::MemorySink, span};
use tower::{ServiceExt as _, service_fn};
use tower_http::trace::TraceLayer;
use tracing::{
    Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt as _},
    registry::LookupSpan,
};

type Fields = BTreeMap<&'static str, String>;

/// Keeps the fields of all spans of calls, and the spans in which events were said.
#[derive(Clone, Default)]
struct Seen {
    spans: Arc<Mutex<HashMap<u64, Fields>>>,
    closed: Arc<Mutex<Vec<Fields>>>,
    said_within: Arc<Mutex<Vec<Option<&'static str>>>>,
}

struct Texts<'a>(&'a mut Fields);

impl Visit for Texts<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Seen {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        if attributes.metadata().target() == "tollgate::call" {
            let mut fields = Fields::new();
            attributes.record(&mut Texts(&mut fields));
            self.spans.lock().unwrap().insert(id.into_u64(), fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        if let Some(fields) = self.spans.lock().unwrap().get_mut(&id.into_u64()) {
            values.record(&mut Texts(fields));
        }
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        if event.metadata().target() == "handler" {
            let span = context
                .lookup_current()
                .map(|span| span.metadata().target());
            self.said_within.lock().unwrap().push(span);
        }
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        if let Some(fields) = self.spans.lock().unwrap().remove(&id.into_u64()) {
            self.closed.lock().unwrap().push(fields);
        }
    }
}

fn gate(trace: bool) -> Tollgate {
    Tollgate::builder()
        .plans([Plan::new("free").rule(Rate::per_hour(3))])
        .usage(MemorySink::new())
        .trace(trace)
        .build()
        .expect("a gate")
}

fn routes() -> Router {
    Router::new()
        .route(
            "/v1/chat/{room}",
            get(async || {
                tracing::info!(target: "handler", "within");
                "hi"
            }),
        )
        .route("/v1/fails", get(async || StatusCode::BAD_GATEWAY))
        .route("/v1/ask", post(async || ()))
}

/// Calls a gate within a subscriber and gives the fields of the spans that have ended.
async fn spans(
    gate: &Tollgate,
    requests: impl IntoIterator<Item = Request<Body>>,
) -> (Vec<Fields>, Seen) {
    let seen = Seen::default();
    let _guard =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(seen.clone()));
    let app = routes().layer(gate.layer());
    for request in requests {
        let answer = app.clone().oneshot(request).await.expect("an answer");
        let before = seen.closed.lock().unwrap().len();
        answer.into_body().collect().await.expect("a body");
        let n_ended = seen.closed.lock().unwrap().len() - before;
        assert!(n_ended <= 1);
    }
    let ended = seen.closed.lock().unwrap().clone();
    (ended, seen)
}

async fn key(gate: &Tollgate) -> String {
    let issued = gate
        .keys()
        .issue(NewKey::for_tenant("acme").plan("free"))
        .await;
    issued.expect("a key").key.expose().to_owned()
}

fn call(method: &str, target: &str, key: &str) -> Request<Body> {
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header("x-api-key", key);
    request.body(Body::empty()).expect("a request")
}

#[tokio::test]
async fn a_served_call_says_who_called_what() {
    let gate = gate(true);
    let key = key(&gate).await;
    let mut request = call("GET", "/v1/chat/7?token=canary", &key);
    for (name, value) in [
        ("user-agent", "curl/8"),
        (
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let (spans, seen) = spans(&gate, [request]).await;
    let fields = &spans[0];
    for (name, value) in [
        ("otel.name", "GET /v1/chat/{room}"),
        ("otel.kind", "server"),
        ("http.request.method", "GET"),
        ("http.route", "/v1/chat/{room}"),
        ("http.response.status_code", "200"),
        ("url.path", "/v1/chat/7"),
        ("network.protocol.version", "1.1"),
        ("user_agent.original", "curl/8"),
        ("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("parent_id", "00f067aa0ba902b7"),
        ("tollgate.tenant", "acme"),
        ("tollgate.plan", "free"),
    ] {
        assert_eq!(fields.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert_eq!(fields["request_id"].len(), 32);
    for absent in [
        "error.type",
        "otel.status_code",
        "tollgate.refused",
        "url.scheme",
    ] {
        assert!(!fields.contains_key(absent), "{absent}");
    }
    let all = format!("{fields:?}");
    assert!(!all.contains("canary") && !all.contains(&key), "{all}");
    assert_eq!(*seen.said_within.lock().unwrap(), [Some("tollgate::call")]);
}

#[tokio::test]
async fn a_refusal_and_a_failure_are_told_apart() {
    let gate = gate(true);
    let key = key(&gate).await;
    let requests = [
        call("GET", "/v1/fails", &key),
        call("BREW", "/v1/ask", &key),
        call("GET", "/v1/chat/7", "tg_live_guess"),
        call("GET", "/nowhere", &key),
        call("GET", "/v1/chat/7", &key),
    ];
    let (spans, _) = spans(&gate, requests).await;
    let told = |place: usize| {
        let get = |name| spans[place].get(name).map_or("", String::as_str);
        [
            get("otel.name"),
            get("http.response.status_code"),
            get("error.type"),
            get("otel.status_code"),
            get("tollgate.refused"),
        ]
    };
    assert_eq!(told(0), ["GET /v1/fails", "502", "502", "ERROR", ""]);
    assert_eq!(told(1), ["_OTHER /v1/ask", "405", "", "", ""]);
    assert_eq!(
        told(2),
        ["GET /v1/chat/{room}", "401", "", "", "invalid_credentials"]
    );
    assert_eq!(told(3), ["GET", "404", "", "", ""]);
    assert_eq!(
        told(4),
        ["GET /v1/chat/{room}", "429", "", "", "rate_limited"]
    );
}

#[tokio::test]
async fn there_is_no_span_unless_it_is_asked_for() {
    let gate = gate(false);
    let key = key(&gate).await;
    let (spans, seen) = spans(&gate, [call("GET", "/v1/chat/7", &key)]).await;
    assert!(spans.is_empty());
    assert_eq!(*seen.said_within.lock().unwrap(), [None]);
}

#[tokio::test]
async fn the_span_lasts_until_the_body_has_ended() {
    let gate = gate(true);
    let key = key(&gate).await;
    let seen = Seen::default();
    let _guard =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(seen.clone()));
    let app = routes().layer(gate.layer());
    let answer = app
        .oneshot(call("GET", "/v1/chat/7", &key))
        .await
        .expect("an answer");
    assert!(seen.closed.lock().unwrap().is_empty());
    drop(answer);
    assert_eq!(seen.closed.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn the_span_also_fits_into_the_trace_layer_of_tower_http() {
    let gate = gate(false);
    let key = key(&gate).await;
    let seen = Seen::default();
    let _guard =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(seen.clone()));
    let app = routes().layer(gate.layer()).layer(
        TraceLayer::new_for_http()
            .make_span_with(|request: &Request<Body>| span::make_span(request)),
    );
    let answer = app
        .oneshot(call("GET", "/v1/chat/7", &key))
        .await
        .expect("an answer");
    answer.into_body().collect().await.expect("a body");
    let closed = seen.closed.lock().unwrap();
    assert_eq!(closed[0]["tollgate.tenant"], "acme");
    assert_eq!(closed[0]["otel.name"], "GET /v1/chat/{room}");
}

#[tokio::test]
async fn a_route_that_is_named_late_and_an_error_of_the_service_are_told() {
    let seen = Seen::default();
    let _guard =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(seen.clone()));
    let recorder = tollgate::meter::Recorder::new(MemorySink::new()).expect("a recorder");
    let inner = service_fn(async |request: Request<String>| {
        let meter = request.extensions().get::<Meter>().expect("a meter");
        meter.set_route("/late/{id}");
        Err::<http::Response<Body>, _>("down")
    });
    let service = tower::ServiceBuilder::new()
        .layer(span::SpanLayer::new())
        .layer(tollgate::MeterLayer::new(recorder))
        .service(inner);
    let failed = service
        .oneshot(Request::get("/late/7").body(String::new()).unwrap())
        .await;
    assert!(failed.is_err());
    let closed = seen.closed.lock().unwrap();
    assert_eq!(closed[0]["otel.name"], "GET /late/{id}");
    assert_eq!(closed[0]["http.route"], "/late/{id}");
    assert_eq!(closed[0]["error.type"], "service_error");
    assert!(!closed[0].contains_key("http.response.status_code"));
}

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn nothing_that_a_client_sends_forges_a_line_of_a_log() {
    let gate = gate(true);
    let key = key(&gate).await;
    let path = Bytes::from("/v1/\u{2028}line\u{9b}31m\u{85}x".as_bytes().to_vec());
    let agent = http::HeaderValue::from_bytes("\u{9b}31m\u{2028}agent\u{85}".as_bytes()).unwrap();
    let mut requests = Vec::new();
    for target in [
        Uri::from_maybe_shared(path).unwrap_or_else(|_| Uri::from_static("/v1/%1b%0d%0a")),
        Uri::from_static("/v1/%1b%0d%0ainjected"),
    ] {
        let mut request = call("GET", "/", &key);
        *request.uri_mut() = target;
        request.headers_mut().insert("user-agent", agent.clone());
        request.headers_mut().insert("x-request-id", agent.clone());
        request.headers_mut().insert("traceparent", agent.clone());
        request.headers_mut().insert("x-tenant-id", agent.clone());
        requests.push(request);
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::CLOSE)
        .with_writer(move || writer.clone());
    let _guard = tracing::subscriber::set_default(subscriber.finish());
    let app = routes().layer(gate.layer());
    for request in requests {
        let answer = app.clone().oneshot(request).await.expect("an answer");
        answer.into_body().collect().await.expect("a body");
    }
    let text = String::from_utf8(log.0.lock().unwrap().clone()).expect("a text");
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.contains("tollgate::call"))
        .collect();
    assert_eq!(lines.len(), 2, "{text:?}");
    for c in text.chars().filter(|c| *c != '\n') {
        assert!(
            !c.is_control() && c != '\u{2028}' && c != '\u{2029}',
            "{c:?} in {text:?}"
        );
    }
}
