//! What the endpoint takes, and what it refuses.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body};
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::{Full, StreamBody};
use serde_json::json;
use tollgate::{
    billing::{
        Handled, PaddleSignature, StandardWebhooksSignature, StripeSignature, WebhookBuilder,
        WebhookService,
    },
    clock::{Clock as _, ManualClock},
    id::Environment,
};
use tower::ServiceExt as _;

use super::endpoint::{Mood, SECRET, Told, answer, builder, is, send, service, signed};
use super::support::{START, at, invoice};
use crate::common::serve;

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
    let mut thin = json!({
        "id": "evt_thin", "object": "v2.core.event", "type": "v1.billing.meter.no_meter_found",
        "created": "2026-01-15T12:00:00Z", "livemode": true, "context": "org_1/acct_2",
    });
    assert_eq!(send(&connected, &thin).await, is(400, "mode_mismatch"));
    for context in [json!("org_1/acct_1"), json!(null)] {
        thin["context"] = context;
        thin["id"] = json!(format!("evt_thin_{}", thin["context"].is_null()));
        assert_eq!(send(&connected, &thin).await, is(200, "ignored"));
    }
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
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .build_http::<Full<Bytes>>();
    let request = Request::post(format!("http://{}/", server.addr))
        .header("stripe-signature", header)
        .body(Full::new(body))
        .unwrap();
    let response = client.request(request).await.unwrap();
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
