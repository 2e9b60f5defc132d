//! The endpoint's answers, one by one.

use std::{
    collections::BTreeMap,
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::{Router, body::Body};
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tollgate::{
    billing::{
        BillingEvent, BillingEventHandler, Handled, HandlerError, PaddleSignature, ReplayError,
        StandardWebhooksSignature, StripeSignature, ThinEvent, ThinEventHandler, WebhookBuilder,
        WebhookService,
    },
    clock::{Clock as _, ManualClock},
    id::Environment,
};
use tower::{Service, ServiceExt as _};

use super::support::{START, at, invoice};
use crate::common::serve;

const SECRET: &str = "whsec_tollgate_test_secret_one";

/// Does as it is told, and counts.
#[derive(Clone, Debug, Default)]
struct Told(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    mood: Mutex<Mood>,
    n_handled: AtomicU32,
    has_begun: Notify,
    may_end: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
enum Mood {
    #[default]
    Applies,
    Fails,
    Hangs,
    Ignores,
    IsDown,
    Panics,
    Waits,
}

impl Told {
    fn set(&self, mood: Mood) {
        *self.0.mood.lock().unwrap() = mood;
    }

    fn n_handled(&self) -> u32 {
        self.0.n_handled.load(Ordering::Relaxed)
    }

    async fn act(&self) -> Result<Handled, HandlerError> {
        self.0.n_handled.fetch_add(1, Ordering::Relaxed);
        let mood = *self.0.mood.lock().unwrap();
        match mood {
            Mood::Applies => Ok(Handled::Applied),
            Mood::Ignores => Ok(Handled::Ignored),
            Mood::Fails => Err(HandlerError::Failed("c4n4ry-free reason".into())),
            Mood::IsDown => Err(HandlerError::Unavailable("no database".into())),
            Mood::Panics => panic!("on purpose"),
            Mood::Hangs => pending().await,
            Mood::Waits => {
                self.0.has_begun.notify_one();
                self.0.may_end.notified().await;
                Ok(Handled::Applied)
            }
        }
    }
}

#[async_trait]
impl BillingEventHandler for Told {
    async fn handle(&self, _: &BillingEvent) -> Result<Handled, HandlerError> {
        self.act().await
    }
}

#[async_trait]
impl ThinEventHandler for Told {
    async fn handle_thin(&self, _: &ThinEvent) -> Result<Handled, HandlerError> {
        self.act().await
    }
}

fn builder() -> (WebhookBuilder, Told) {
    let told = Told::default();
    let signature = StripeSignature::new([SECRET]).unwrap();
    let builder = WebhookService::builder(signature)
        .handler(told.clone())
        .clock(Arc::new(ManualClock::default()));
    (builder, told)
}

fn service() -> (WebhookService, Told) {
    let (builder, told) = builder();
    (builder.build().unwrap(), told)
}

fn signed(body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let body = body.into();
    let header = StripeSignature::new([SECRET])
        .unwrap()
        .sign(&body, at(START));
    Request::post("/")
        .header("stripe-signature", header)
        .body(Full::new(body))
        .unwrap()
}

async fn answer<B>(service: &WebhookService, request: Request<B>) -> (u16, Value)
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
{
    let response = service.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

async fn send(service: &WebhookService, body: &Value) -> (u16, String) {
    let (status, answer) = answer(service, signed(body.to_string())).await;
    let word = answer["code"]
        .as_str()
        .or_else(|| answer["status"].as_str());
    (status, word.unwrap().to_owned())
}

fn is(status: u16, word: &str) -> (u16, String) {
    (status, word.to_owned())
}

#[tokio::test]
async fn an_event_is_processed_once() {
    let (service, told) = service();
    let event = invoice("paid", START);
    assert_eq!(send(&service, &event).await, is(200, "processed"));
    assert_eq!(send(&service, &event).await, is(200, "already_processed"));
    let mut counted_down = event.clone();
    counted_down["pending_webhooks"] = json!(0);
    assert_eq!(
        send(&service, &counted_down).await,
        is(200, "already_processed")
    );
    assert_eq!(told.n_handled(), 1);
}

#[tokio::test]
async fn another_content_under_a_known_id_is_refused() {
    let (service, told) = service();
    let event = invoice("paid", START);
    assert_eq!(send(&service, &event).await, is(200, "processed"));
    let mut other = event.clone();
    other["data"]["object"]["amount_due"] = json!(1);
    assert_eq!(send(&service, &other).await, is(400, "event_mismatch"));
    assert_eq!(told.n_handled(), 1);
}

#[tokio::test]
async fn what_no_handler_uses_is_ignored() {
    let (service, told) = service();
    told.set(Mood::Ignores);
    let unknown = super::support::stripe("next.years.event", START, json!({"id": "x"}));
    assert_eq!(send(&service, &unknown).await, is(200, "ignored"));
    assert_eq!(send(&service, &unknown).await, is(200, "already_processed"));
}

#[tokio::test]
async fn two_at_once_are_one_and_a_conflict() {
    let (service, told) = service();
    told.set(Mood::Waits);
    let event = invoice("paid", START);
    let (first, body) = (service.clone(), event.clone());
    let first = tokio::spawn(async move { send(&first, &body).await });
    told.0.has_begun.notified().await;
    assert_eq!(send(&service, &event).await, is(409, "event_in_progress"));
    told.0.may_end.notify_one();
    assert_eq!(first.await.unwrap(), is(200, "processed"));
    assert_eq!(told.n_handled(), 1);
}

#[tokio::test]
async fn a_handler_goes_on_when_the_provider_hangs_up() {
    let (service, told) = service();
    told.set(Mood::Waits);
    let event = invoice("paid", START);
    let (first, body) = (service.clone(), event.clone());
    let first = tokio::spawn(async move { send(&first, &body).await });
    told.0.has_begun.notified().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    told.0.may_end.notify_one();
    let mut last = is(409, "event_in_progress");
    for _ in 0..1_000 {
        last = send(&service, &event).await;
        if last.0 == 200 {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(last, is(200, "already_processed"));
}

#[tokio::test]
async fn a_failure_is_told_so_that_the_event_comes_again() {
    let (service, told) = service();
    let event = invoice("paid", START);
    for (mood, expected) in [
        (Mood::Fails, is(500, "event_failed")),
        (Mood::Panics, is(500, "event_failed")),
        (Mood::IsDown, is(503, "billing_unavailable")),
        (Mood::Applies, is(200, "processed")),
    ] {
        told.set(mood);
        assert_eq!(send(&service, &event).await, expected, "{mood:?}");
    }
    assert_eq!(told.n_handled(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_hangs_has_failed() {
    let (service, told) = service();
    told.set(Mood::Hangs);
    let event = invoice("paid", START);
    assert_eq!(send(&service, &event).await, is(500, "event_failed"));
    told.set(Mood::Applies);
    assert_eq!(send(&service, &event).await, is(200, "processed"));
}

#[tokio::test]
async fn what_fails_too_often_is_put_aside_and_can_be_replayed() {
    let (builder, told) = builder();
    let service = builder.max_attempts(3).build().unwrap();
    let event = invoice("paid", START);
    let id = event["id"].as_str().unwrap();
    told.set(Mood::IsDown);
    for _ in 0..10 {
        assert_eq!(send(&service, &event).await, is(503, "billing_unavailable"));
    }
    told.set(Mood::Fails);
    assert_eq!(send(&service, &event).await, is(500, "event_failed"));
    assert_eq!(send(&service, &event).await, is(500, "event_failed"));
    assert_eq!(send(&service, &event).await, is(200, "dead_lettered"));
    assert_eq!(send(&service, &event).await, is(200, "already_processed"));
    let letters = service.dead_letters(10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!((&*letters[0].key.id, letters[0].attempts), (id, 3));
    assert_eq!(
        &*letters[0].reason,
        "the event was not handled: c4n4ry-free reason"
    );
    assert_eq!(
        serde_json::from_slice::<Value>(&letters[0].body).unwrap(),
        event
    );
    assert!(!format!("{letters:?}").contains("cus_1"));

    let replayed = service.replay(id).await;
    assert!(
        matches!(replayed, Err(ReplayError::Handler(_))),
        "{replayed:?}"
    );
    assert_eq!(service.dead_letters(10).await.unwrap().len(), 1);
    told.set(Mood::Applies);
    assert_eq!(service.replay(id).await.unwrap(), Handled::Applied);
    assert_eq!(service.dead_letters(10).await.unwrap(), []);
    assert!(matches!(
        service.replay(id).await,
        Err(ReplayError::Ledger(_))
    ));
    assert_eq!(send(&service, &event).await, is(200, "already_processed"));
}

#[tokio::test]
async fn nothing_is_read_before_the_signature_is_right() {
    let (service, told) = service();
    for (body, header, reason) in [
        ("{}", None, "missing_header"),
        (
            "not json",
            Some("t=1,v1=00".to_owned()),
            "signature_mismatch",
        ),
        (
            r#"{"id":"a","id":"a"}"#,
            Some("x".to_owned()),
            "malformed_header",
        ),
        ("{}", Some(format!("t={START}")), "no_v1_signature"),
    ] {
        let mut request = Request::post("/");
        if let Some(header) = header {
            request = request.header("stripe-signature", header);
        }
        let (status, problem) = answer(&service, request.body(body.to_owned()).unwrap()).await;
        assert_eq!(
            (status, &problem["code"]),
            (400, &json!("invalid_signature"))
        );
        assert_eq!(problem["reason"], reason);
    }
    assert_eq!(told.n_handled(), 0);
}

#[tokio::test]
async fn what_is_signed_and_no_event_names_the_field() {
    let (service, told) = service();
    for (body, field) in [
        ("not json", None),
        (r#"{"id":"evt_1","id":"evt_2"}"#, Some("id")),
        (r#"{"id":"evt_1"}"#, Some("type")),
        (&"[".repeat(100), None),
    ] {
        let (status, problem) = answer(&service, signed(body.to_owned())).await;
        assert_eq!(
            (status, &problem["code"]),
            (400, &json!("invalid_event")),
            "{body}"
        );
        assert_eq!(problem["field"].as_str(), field);
    }
    assert_eq!(told.n_handled(), 0);
}

#[tokio::test]
async fn events_of_the_other_mode_and_of_another_account_are_refused() {
    let (service, told) = service();
    let mut event = invoice("paid", START);
    event["livemode"] = json!(false);
    assert_eq!(send(&service, &event).await, is(400, "mode_mismatch"));
    let (test, _) = builder();
    let test = test.environment(Environment::Test).build().unwrap();
    assert_eq!(send(&test, &event).await, is(200, "processed"));
    let (connected, _) = builder();
    let connected = connected.account("acct_1").build().unwrap();
    let mut event = invoice("paid", START);
    assert_eq!(send(&connected, &event).await, is(400, "mode_mismatch"));
    event["account"] = json!("acct_1");
    assert_eq!(send(&connected, &event).await, is(200, "processed"));
    assert_eq!(told.n_handled(), 0);
}

#[tokio::test]
async fn a_body_is_read_up_to_a_size() {
    let (service, told) = service();
    let largest = 256 * 1024;
    let padded = |bytes: usize| {
        let mut text = invoice("paid", START).to_string();
        text.push_str(&" ".repeat(bytes - text.len()));
        text
    };
    let (status, _) = answer(&service, signed(padded(largest))).await;
    assert_eq!(status, 200);
    let (status, problem) = answer(&service, signed(padded(largest + 1))).await;
    assert_eq!(
        (status, &problem["code"]),
        (413, &json!("payload_too_large"))
    );
    // Ten megabytes in pieces, of unknown length: no more is read than may be.
    let n_read = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&n_read);
    let pieces = stream::unfold(0, move |n| {
        counter.fetch_add(1, Ordering::Relaxed);
        let piece =
            Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from(vec![b' '; 16_384])));
        async move { (n < 640).then_some((piece, n + 1)) }
    });
    let body = StreamBody::new(Box::pin(pieces));
    let (status, _) = answer(&service, Request::post("/").body(body).unwrap()).await;
    assert_eq!(status, 413);
    assert!(n_read.load(Ordering::Relaxed) <= 18);
    assert_eq!(told.n_handled(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let (service, _) = service();
    let never = StreamBody::new(stream::pending::<
        Result<http_body::Frame<Bytes>, std::io::Error>,
    >());
    let (status, problem) = answer(&service, Request::post("/").body(never).unwrap()).await;
    assert_eq!((status, &problem["code"]), (408, &json!("request_timeout")));
    let broken = stream::iter([Err::<http_body::Frame<Bytes>, _>(std::io::Error::other(
        "gone",
    ))]);
    let request = Request::post("/").body(StreamBody::new(broken)).unwrap();
    assert_eq!(answer(&service, request).await.0, 400);
}

#[tokio::test]
async fn only_post_is_served() {
    let (service, _) = service();
    let request = Request::get("/").body(String::new()).unwrap();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.status(), 405);
    assert_eq!(response.headers()["allow"], "POST");
}

#[tokio::test]
async fn thin_events_have_a_handler_of_their_own() {
    let thin = json!({
        "id": "evt_thin", "object": "v2.core.event", "type": "v1.billing.meter.no_meter_found",
        "created": "2026-01-15T12:00:00Z", "livemode": true,
    });
    let (builder, told) = builder();
    let without = builder.build().unwrap();
    assert_eq!(send(&without, &thin).await, is(200, "ignored"));
    assert_eq!(told.n_handled(), 0);
    let (builder, _) = super::service::builder();
    let with = builder.thin_handler(told.clone()).build().unwrap();
    assert_eq!(send(&with, &thin).await, is(200, "processed"));
    assert_eq!(told.n_handled(), 1);
}

#[tokio::test]
async fn the_other_providers_are_served_alike() {
    let clock = ManualClock::default();
    let told = Told::default();
    let paddle = PaddleSignature::new(["pdl_secret"]).unwrap();
    let service = WebhookService::builder(paddle.clone())
        .handler(told.clone())
        .clock(Arc::new(clock.clone()))
        .build()
        .unwrap();
    let body = r#"{"event_id":"evt_1","event_type":"transaction.paid","occurred_at":"2026-01-15T12:00:00Z","data":{}}"#;
    let header = paddle.sign(body.as_bytes(), at(START));
    let request = Request::post("/").header("paddle-signature", header);
    let (status, _) = answer(&service, request.body(body.to_owned()).unwrap()).await;
    assert_eq!(status, 200);

    let standard =
        StandardWebhooksSignature::new(["whsec_dG9sbGdhdGUtdGVzdC1zZWNyZXQtb25l"]).unwrap();
    let service = WebhookService::builder(standard.clone())
        .handler(told.clone())
        .clock(Arc::new(clock))
        .max_attempts(1)
        .build()
        .unwrap();
    let body =
        r#"{"type":"invoice.paid","timestamp":"2026-01-15T12:00:00Z","data":{"customer":"cus_1"}}"#;
    let deliver = |id: &str| {
        let mut request = Request::post("/").body(body.to_owned()).unwrap();
        *request.headers_mut() = standard.sign(id, body.as_bytes(), at(START));
        request
    };
    assert_eq!(
        answer(&service, deliver("msg_1")).await.1,
        json!({"status": "processed"})
    );
    assert_eq!(
        answer(&service, deliver("msg_1")).await.1,
        json!({"status": "already_processed"})
    );
    assert_eq!(
        answer(&service, deliver("msg_2")).await.1,
        json!({"status": "processed"})
    );
    assert_eq!(told.n_handled(), 3);
    told.set(Mood::Fails);
    assert_eq!(
        answer(&service, deliver("msg_3")).await.1,
        json!({"status": "dead_lettered"})
    );
    told.set(Mood::Applies);
    assert_eq!(service.replay("msg_3").await.unwrap(), Handled::Applied);
}

#[tokio::test]
async fn it_is_mounted_on_a_route_of_axum_and_served_by_hyper() {
    let (service, _) = service();
    let app: Router = Router::new().route_service("/webhooks/stripe", service.clone());
    let mut request = signed(invoice("paid", START).to_string()).map(Body::new);
    *request.uri_mut() = "/webhooks/stripe".parse().unwrap();
    let response: Response<Body> = app.oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);

    // Bytes over a socket, body and answer in hyper's types.
    let server = serve(service).await;
    let body = Bytes::from(invoice("payment_failed", START).to_string());
    let header = StripeSignature::new([SECRET])
        .unwrap()
        .sign(&body, at(START));
    let mut client =
        hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
            .build_http::<Full<Bytes>>();
    let request = Request::post(format!("http://{}/", server.addr))
        .header("stripe-signature", header)
        .body(Full::new(body))
        .unwrap();
    let response = client.call(request).await.unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn during_a_roll_over_both_secrets_are_right() {
    let (_, told) = builder();
    let signature = StripeSignature::new(["whsec_new", SECRET]).unwrap();
    let service = WebhookService::builder(signature)
        .handler(told)
        .clock(Arc::new(ManualClock::default()))
        .build()
        .unwrap();
    for (secret, status) in [(SECRET, 200), ("whsec_new", 200), ("whsec_older", 400)] {
        let body = super::support::stripe("invoice.paid", START, json!({"id": secret})).to_string();
        let header = StripeSignature::new([secret])
            .unwrap()
            .sign(body.as_bytes(), at(START));
        let request = Request::post("/")
            .header("stripe-signature", header)
            .body(body)
            .unwrap();
        assert_eq!(answer(&service, request).await.0, status, "{secret}");
    }
}

#[tokio::test]
async fn a_redelivery_of_thirty_days_later_is_known_by_its_fresh_signature() {
    let clock = ManualClock::default();
    let (builder, told) = builder();
    let service = builder.clock(Arc::new(clock.clone())).build().unwrap();
    let event = invoice("paid", START);
    assert_eq!(send(&service, &event).await, is(200, "processed"));
    clock.advance(Duration::from_secs(30 * 86_400));
    assert_eq!(send(&service, &event).await, is(400, "invalid_signature"));
    let body = event.to_string();
    let now = clock.now().wall();
    let header = StripeSignature::new([SECRET])
        .unwrap()
        .sign(body.as_bytes(), now);
    let request = Request::post("/")
        .header("stripe-signature", header)
        .body(body)
        .unwrap();
    assert_eq!(
        answer(&service, request).await.1,
        json!({"status": "already_processed"})
    );
    assert_eq!(told.n_handled(), 1);
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let build = |set: fn(WebhookBuilder) -> WebhookBuilder| {
        set(builder().0).build().unwrap_err().path().to_owned()
    };
    assert_eq!(build(|it| it.endpoint("")), "endpoint");
    assert_eq!(build(|it| it.max_body_bytes(0)), "max_body_bytes");
    assert_eq!(build(|it| it.max_attempts(0)), "max_attempts");
    assert_eq!(build(|it| it.lease(Duration::from_secs(20))), "lease");
}

#[test]
fn every_outcome_is_counted_and_no_payload_is_logged() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .finish();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let run = async {
        let (builder, told) = builder();
        let service = builder.max_attempts(2).build().unwrap();
        let mut event = invoice("paid", START);
        event["data"]["object"]["customer_email"] = json!("c4n4ry@example.com");
        send(&service, &event).await;
        send(&service, &event).await;
        event["data"]["object"]["amount_due"] = json!(1);
        send(&service, &event).await;
        event["id"] = json!("evt_other");
        told.set(Mood::Fails);
        send(&service, &event).await;
        send(&service, &event).await;
        event["livemode"] = json!(false);
        send(&service, &event).await;
        let unsigned = Request::post("/").body("c4n4ry".to_owned()).unwrap();
        answer(&service, unsigned).await;
        answer(&service, signed("c4n4ry")).await;
    };
    tracing::subscriber::with_default(subscriber, || {
        metrics::with_local_recorder(&recorder, || runtime.block_on(run));
    });
    let counted: BTreeMap<String, u64> = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .filter_map(|(key, _, _, value)| {
            let label = key.key().labels().next()?.value().to_owned();
            match value {
                DebugValue::Counter(n) if n > 0 => Some((label, n)),
                _ => None,
            }
        })
        .collect();
    let expected = [
        ("already_processed", 1),
        ("bad_event", 1),
        ("bad_signature", 1),
        ("body_mismatch", 1),
        ("dead_lettered", 1),
        ("failed", 1),
        ("missing_header", 1),
        ("mode_mismatch", 1),
        ("processed", 1),
    ];
    let expected = expected.map(|(label, n)| (label.to_owned(), n));
    assert_eq!(counted, BTreeMap::from(expected));
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("an event was not handled"), "{log}");
    assert!(
        !log.contains("c4n4ry@") && !log.contains("cus_1") && !log.contains(SECRET),
        "{log}"
    );
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
