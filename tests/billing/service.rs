//! What becomes of an event: the endpoint's answers, one by one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use http::Request;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use serde_json::{Value, json};
use tollgate::billing::{Handled, ReplayError};

use super::endpoint::{Mood, SECRET, answer, builder, is, send, service, signed};
use super::support::{START, invoice};

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
async fn thin_events_have_a_handler_of_their_own() {
    let thin = json!({
        "id": "evt_thin", "object": "v2.core.event", "type": "v1.billing.meter.no_meter_found",
        "created": "2026-01-15T12:00:00Z", "livemode": true,
    });
    let (without, told) = builder();
    let without = without.build().unwrap();
    assert_eq!(send(&without, &thin).await, is(200, "ignored"));
    assert_eq!(told.n_handled(), 0);
    let (with, _) = builder();
    let with = with.thin_handler(told.clone()).build().unwrap();
    assert_eq!(send(&with, &thin).await, is(200, "processed"));
    assert_eq!(told.n_handled(), 1);
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
