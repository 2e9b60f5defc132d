//! CloudEvents over HTTP, to a real server that answers as it is told.

use std::{
    collections::{BTreeSet, VecDeque},
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use proptest::prelude::*;
use serde_json::Value;
use tollgate::{
    clock::{ManualClock, Timestamp},
    http_send::ReqwestSend,
    meter::UsageEvent,
    sink::{CloudEvents, CloudEventsHttpSink, UsageSink, Verdict},
};
use tower::service_fn;

use super::sample::{accept, each, events, left, settled};
use crate::common::{
    Server,
    fault_proxy::{Fault, FaultProxy},
    serve,
};

/// What a receiver says to one request.
#[derive(Clone, Debug)]
struct Say {
    status: u16,
    retry_after: Option<String>,
    body: String,
}

fn say(status: u16) -> Say {
    Say {
        status,
        retry_after: None,
        body: String::new(),
    }
}

fn say_later(status: u16, retry_after: &str) -> Say {
    Say {
        retry_after: Some(retry_after.to_owned()),
        ..say(status)
    }
}

#[derive(Debug, Default)]
struct State {
    script: VecDeque<Say>,
    /// Whatever holds one of these is refused.
    bad: BTreeSet<String>,
    stored: Vec<String>,
    requests: Vec<(HeaderMap, Bytes)>,
}

/// A receiver that takes a batch whole or not at all, as OpenMeter does.
struct Receiver {
    server: Server,
    state: Arc<Mutex<State>>,
}

impl Receiver {
    async fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let server = serve(service_fn(move |request: Request<Incoming>| {
            let state = Arc::clone(&shared);
            async move { Ok::<_, Infallible>(answer(&state, request).await) }
        }))
        .await;
        Self { server, state }
    }

    fn url(&self) -> String {
        format!("http://{}/api/v1/events", self.server.addr)
    }

    fn sink(&self) -> CloudEventsHttpSink {
        let client = ReqwestSend::with_timeout(Duration::from_millis(500)).expect("a client");
        CloudEventsHttpSink::new(client, &self.url()).expect("a URL")
    }

    fn says(&self, script: impl IntoIterator<Item = Say>) {
        self.state.lock().unwrap().script.extend(script);
    }

    fn refuses(&self, events: &[&UsageEvent]) {
        let ids = events.iter().map(|event| event.id.to_string());
        self.state.lock().unwrap().bad.extend(ids);
    }

    fn requests(&self) -> Vec<(HeaderMap, Bytes)> {
        self.state.lock().unwrap().requests.clone()
    }

    /// The ids that were stored, in their order.
    fn stored(&self) -> Vec<String> {
        self.state.lock().unwrap().stored.clone()
    }
}

async fn answer(state: &Mutex<State>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    assert_eq!(request.uri().path(), "/api/v1/events");
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        return Response::default();
    };
    let body = body.to_bytes();
    let mut state = state.lock().unwrap();
    let sent: Value = serde_json::from_slice(&body).expect("JSON");
    let sent = sent.as_array().cloned().unwrap_or_else(|| vec![sent]);
    let ids: Vec<String> = sent
        .iter()
        .map(|event| event["id"].as_str().expect("an id").to_owned())
        .collect();
    state.requests.push((parts.headers, body));
    let said = state.script.pop_front().unwrap_or_else(|| {
        say(if ids.iter().any(|id| state.bad.contains(id)) {
            400
        } else {
            204
        })
    });
    if (200..300).contains(&said.status) {
        state.stored.extend(ids);
    }
    let mut response = Response::new(Full::from(said.body));
    *response.status_mut() = StatusCode::from_u16(said.status).expect("a status");
    if let Some(after) = said.retry_after {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, after.parse().expect("a value"));
    }
    response
}

fn ids(events: &[UsageEvent]) -> Vec<String> {
    events.iter().map(|event| event.id.to_string()).collect()
}

fn again(after: u64) -> Verdict {
    Verdict::Retry {
        after: Duration::from_secs(after),
    }
}

#[tokio::test]
async fn a_batch_goes_as_one_request_of_exactly_this_type() {
    let receiver = Receiver::start().await;
    let sink = receiver.sink().bearer("s3cret").expect("a token");
    let batch = events(0..20, "acme");
    accept(&sink, &batch).await;
    let requests = receiver.requests();
    let [(headers, body)] = &requests[..] else {
        panic!("{requests:?}");
    };
    assert_eq!(
        headers[header::CONTENT_TYPE],
        "application/cloudevents-batch+json"
    );
    assert_eq!(headers[header::AUTHORIZATION], "Bearer s3cret");
    // The same bytes as the encoder's, and the same again.
    let encoded = serde_json::to_vec(&CloudEvents::new().batch(&batch)).expect("JSON");
    assert_eq!(body, &encoded);
    sink.write(&batch).await.expect("verdicts");
    assert_eq!(receiver.requests()[1].1, encoded);
    assert!(!format!("{sink:?}").contains("s3cret"));
}

#[tokio::test]
async fn an_event_goes_alone_where_asked() {
    let receiver = Receiver::start().await;
    let sink = receiver.sink().single();
    let batch = events(0..3, "acme");
    receiver.refuses(&[&batch[1]]);
    let verdicts = settled(&sink, &batch).await;
    let bad = Verdict::Rejected {
        reason: "bad_request",
    };
    assert_eq!(verdicts, [Verdict::Accepted, bad, Verdict::Accepted]);
    for ((headers, body), event) in receiver.requests().iter().zip(&batch) {
        assert_eq!(
            headers[header::CONTENT_TYPE],
            "application/cloudevents+json"
        );
        let encoded = serde_json::to_vec(&CloudEvents::new().one(event)).expect("JSON");
        assert_eq!(body, &encoded);
    }
    assert_eq!(receiver.requests().len(), 3);
}

#[tokio::test]
async fn the_event_at_fault_is_rejected_and_its_neighbours_are_delivered() {
    let receiver = Receiver::start().await;
    let sink = receiver.sink();
    let batch = events(0..100, "acme");
    receiver.refuses(&[&batch[0], &batch[41], &batch[99]]);
    let verdicts = settled(&sink, &batch).await;
    for (n, verdict) in verdicts.into_iter().enumerate() {
        let is_bad = [0, 41, 99].contains(&n);
        let bad = Verdict::Rejected {
            reason: "bad_request",
        };
        assert_eq!(verdict, if is_bad { bad } else { Verdict::Accepted }, "{n}");
    }
    let mut good = ids(&batch);
    good.retain(|id| {
        ![&batch[0], &batch[41], &batch[99]]
            .iter()
            .any(|bad| bad.id.to_string() == *id)
    });
    assert_eq!(receiver.stored(), good, "each once, in their order");
}

#[tokio::test]
async fn a_receiver_that_asks_for_patience_gets_it() {
    let receiver = Receiver::start().await;
    let clock = ManualClock::at(Timestamp::from_unix_seconds(784_111_777));
    let sink = receiver.sink().clock(Arc::new(clock));
    let batch = events(0..4, "acme");
    for (said, wait) in [
        (say_later(429, "7"), 7),
        (say_later(503, "Sun, 06 Nov 1994 08:50:07 GMT"), 30),
        (say(503), 0),
        (say(500), 0),
        (say(408), 0),
        (say(425), 0),
        (say_later(429, "later"), 0),
    ] {
        receiver.says([said]);
        let verdicts = each(sink.write(&batch).await.expect("verdicts"), 4);
        assert_eq!(verdicts, vec![again(wait); 4]);
    }
    accept(&sink, &batch).await;
    assert_eq!(receiver.stored(), ids(&batch));
}

#[tokio::test]
async fn what_meets_every_event_alike_rejects_none() {
    let receiver = Receiver::start().await;
    let sink = receiver.sink().bearer("lapsed").expect("a token");
    let batch = events(0..4, "acme");
    for status in [301, 401, 403, 404, 405, 410, 415] {
        receiver.says([say(status)]);
        let error = sink.write(&batch).await.expect_err("no verdict");
        let cause = std::error::Error::source(&error)
            .expect("a cause")
            .to_string();
        assert!(
            cause.contains(&status.to_string()) && !cause.contains("lapsed"),
            "{cause}"
        );
    }
    assert_eq!(
        receiver.requests().len(),
        7,
        "no redirect is followed, and nothing is halved"
    );
    accept(&sink, &batch).await;
}

#[tokio::test]
async fn a_receiver_that_stops_while_a_batch_is_halved_keeps_what_it_said() {
    let receiver = Receiver::start().await;
    let sink = receiver.sink();
    let batch = events(0..8, "acme");
    receiver.says([say(400), say(204), say_later(429, "3")]);
    let verdicts = each(sink.write(&batch).await.expect("verdicts"), 8);
    assert_eq!(verdicts[..4], [Verdict::Accepted; 4]);
    assert_eq!(verdicts[4..], [again(3); 4]);
    receiver.says([say(400), say(204), say(401)]);
    let batch = left(batch, &verdicts);
    let verdicts = each(sink.write(&batch).await.expect("verdicts"), 4);
    assert_eq!(
        verdicts,
        [Verdict::Accepted, Verdict::Accepted, again(0), again(0)]
    );
}

#[tokio::test]
async fn a_receiver_may_speak_of_each_event() {
    let receiver = Receiver::start().await;
    let sink = receiver.sink();
    let batch = events(0..4, "acme");
    let mut half = say(207);
    half.body = r#"["stored", "known", "invalid"]"#.to_owned();
    // Nobody reads it: no word at all.
    receiver.says([half.clone()]);
    let error = sink.write(&batch).await.expect_err("no verdict");
    assert!(
        std::error::Error::source(&error)
            .expect("a cause")
            .to_string()
            .contains("read_answer")
    );

    let sink = sink.read_answer(|answer, events| {
        let words: Vec<String> = serde_json::from_slice(answer.body()).ok()?;
        assert_eq!(events.len(), 4);
        let verdict = |word: &String| match word.as_str() {
            "stored" => Verdict::Accepted,
            "known" => Verdict::Duplicate,
            _ => Verdict::Rejected { reason: "invalid" },
        };
        Some(words.iter().map(verdict).collect())
    });
    half.status = 200;
    receiver.says([half]);
    let verdicts = each(sink.write(&batch).await.expect("verdicts"), 4);
    // Of the fourth nothing was said.
    let invalid = Verdict::Rejected { reason: "invalid" };
    assert_eq!(
        verdicts,
        [Verdict::Accepted, Verdict::Duplicate, invalid, again(0)]
    );
    // An answer that cannot be read is its status.
    accept(&sink, &batch).await;
}

#[tokio::test]
async fn an_event_above_the_bound_is_rejected_unsent_and_a_long_batch_goes_in_parts() {
    let receiver = Receiver::start().await;
    let sink = receiver.sink().max_request_bytes(100_000);
    let mut batch = events(0..10, "acme");
    for event in &mut batch {
        event.request_id = Some("x".repeat(30_000).into());
    }
    batch[4].request_id = Some("x".repeat(66_000).into());
    let verdicts = settled(&sink, &batch).await;
    for (n, verdict) in verdicts.into_iter().enumerate() {
        let too_large = Verdict::Rejected {
            reason: "event_too_large",
        };
        assert_eq!(verdict, if n == 4 { too_large } else { Verdict::Accepted });
    }
    let lengths: Vec<_> = receiver
        .requests()
        .iter()
        .map(|(_, body)| body.len())
        .collect();
    assert!(
        lengths.len() >= 3 && lengths.iter().all(|n| *n <= 100_000),
        "{lengths:?}"
    );
    assert_eq!(receiver.stored().len(), 9);
}

#[tokio::test]
async fn what_got_no_answer_is_no_verdict_and_the_same_bytes_again() {
    let receiver = Receiver::start().await;
    let proxy = FaultProxy::before(receiver.server.addr.port()).await;
    let client = ReqwestSend::with_timeout(Duration::from_millis(300)).expect("a client");
    let url = format!("http://{}/api/v1/events", proxy.addr);
    let sink = CloudEventsHttpSink::new(client, &url).expect("a URL");
    let batch = events(0..5, "acme");
    for fault in [
        Fault::CutAfter(0),
        Fault::CutAfter(9),
        Fault::Hold,
        Fault::Refuse,
    ] {
        proxy.set(fault);
        sink.write(&batch).await.expect_err("no verdict");
    }
    proxy.set(Fault::None);
    accept(&sink, &batch).await;
    let bodies: BTreeSet<Bytes> = receiver
        .requests()
        .into_iter()
        .map(|(_, body)| body)
        .collect();
    assert_eq!(bodies.len(), 1);
    let distinct: BTreeSet<String> = receiver.stored().into_iter().collect();
    assert_eq!(distinct.len(), 5);
}

#[test]
fn settings_that_cannot_work_are_refused_and_no_token_shows() {
    let new = |url: &str| CloudEventsHttpSink::new(ReqwestSend::new().expect("a client"), url);
    for url in [
        "",
        "openmeter.example/events",
        "ftp://host/x",
        "https://me:hunter2@host/events",
    ] {
        let error = new(url).expect_err(url);
        assert_eq!(error.path(), "url");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
    let sink = || new("https://host/events?token=hunter2").expect("a URL");
    assert!(!format!("{:?}", sink()).contains("hunter2"));
    for token in ["", "a\nb", "ä\u{0}"] {
        let error = sink().bearer(token).expect_err("no field");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// However the receiver answers for a while: in the end every good event is there, and every bad one rejected.
    #[test]
    fn offered_until_all_have_a_verdict_nothing_is_lost(
        bad in prop::collection::btree_set(0..24_usize, 0..4),
        script in prop::collection::vec(prop::sample::select(vec![204_u16, 429, 503, 401, 500]), 0..6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let receiver = Receiver::start().await;
            let sink = receiver.sink();
            let all = events(0..24, "acme");
            let refused: Vec<_> = bad.iter().map(|n| &all[*n]).collect();
            receiver.refuses(&refused);
            // A receiver accepts what is bad only where the script says so.
            receiver.says(script.iter().filter(|status| **status != 204).map(|status| say(*status)));
            let (mut batch, mut rejected) = (all.clone(), 0);
            for _ in 0..50 {
                let Ok(verdicts) = sink.write(&batch).await else { continue };
                let verdicts = each(verdicts, batch.len());
                rejected += verdicts.iter().filter(|it| matches!(it, Verdict::Rejected { .. })).count();
                batch = left(batch, &verdicts);
                if batch.is_empty() {
                    break;
                }
            }
            prop_assert!(batch.is_empty());
            prop_assert_eq!(rejected, bad.len());
            let stored: BTreeSet<String> = receiver.stored().into_iter().collect();
            prop_assert_eq!(stored.len(), 24 - bad.len());
            Ok(())
        })?;
    }
}
