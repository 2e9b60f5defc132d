//! Quantities that are read from the answer, over real connections.

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt as _;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::UnboundedReceiverStream};
use tollgate::meter::{CallOutcome, Measure, MeasureLayer, Meter, TokenUsage};
use tower::Layer as _;

use super::stand::{ALL, BoxError, Stand, TOKENS, http2, stand};
use crate::common::{Server, serve};

/// Events of a model that tells its totals as it goes, cut so that no event comes in one frame.
fn frames() -> Vec<Bytes> {
    let events: String = (1..=10)
        .map(|n| {
            format!(
                "data: {{\"choices\":[{{\"delta\":{{\"content\":\"word\"}}}}],\
                 \"usage\":{{\"prompt_tokens\":7,\"completion_tokens\":{n}}}}}\n\n"
            )
        })
        .collect();
    let events = events + "data: [DONE]\n\n";
    let bytes = Bytes::from(events);
    let cuts = (0..bytes.len()).step_by(37);
    cuts.map(|from| bytes.slice(from..bytes.len().min(from + 37)))
        .collect()
}

/// An upstream that sends a frame for each word of the test.
async fn serve_model(stand: &Stand) -> (Server, mpsc::UnboundedSender<Bytes>) {
    let (send, receive) = mpsc::unbounded_channel::<Bytes>();
    let receive = std::sync::Arc::new(std::sync::Mutex::new(Some(receive)));
    let handler = move |_: Request<axum::body::Body>| {
        let frames = receive.lock().expect("a sound lock").take();
        let frames = UnboundedReceiverStream::new(frames.expect("one call"));
        let body = axum::body::Body::from_stream(frames.map(Ok::<_, BoxError>));
        async { ([("content-type", "text/event-stream")], body) }
    };
    let usage = TokenUsage::new()
        .field("total_tokens", "tokens")
        .field("completion_tokens", "tokens")
        .count_events("events");
    let app = axum::Router::new()
        .route("/chat", axum::routing::get(handler))
        .layer(MeasureLayer::new(usage))
        .layer(stand.layer());
    (serve(app).await, send)
}

#[tokio::test]
async fn tokens_are_metered_as_they_stream_and_the_rest_of_the_reservation_is_released() {
    let stand = stand(|builder| builder).await;
    let (server, send) = serve_model(&stand).await;
    let mut sender = http2(&server).await;
    let call = sender.send_request(stand.get("/chat"));
    let whole = Bytes::from(frames().concat());
    for frame in frames() {
        send.send(frame).expect("a call");
    }
    drop(send);
    let body = call.await.expect("an answer").into_body();
    // Nothing of the stream is changed or held back.
    assert_eq!(body.collect().await.expect("a body").to_bytes(), whole);
    let event = stand.events(1).await.remove(0);
    assert_eq!(event.outcome, CallOutcome::Served);
    assert_eq!(event.quantities["input_tokens"], 7);
    assert_eq!(event.quantities["tokens"], 10);
    assert_eq!(event.quantities["events"], 10);
    assert_eq!(event.response_bytes, whole.len() as u64);
    assert_eq!(stand.left().await.tokens, TOKENS - 10);
}

#[tokio::test]
async fn a_client_that_leaves_pays_the_tokens_that_were_told_by_then() {
    let stand = stand(|builder| builder).await;
    let (server, send) = serve_model(&stand).await;
    let mut sender = http2(&server).await;
    let call = sender.send_request(stand.get("/chat"));
    let half: Vec<_> = frames().into_iter().take(14).collect();
    let n_bytes: usize = half.iter().map(Bytes::len).sum();
    let told = half.concat();
    let n_told = told.windows(2).filter(|pair| pair == b"\n\n").count() as u64;
    assert!((2..9).contains(&n_told));
    for frame in half {
        send.send(frame).expect("a call");
    }
    let mut body = call.await.expect("an answer").into_body();
    let mut n_read = 0;
    while n_read < n_bytes {
        let frame = body.frame().await.expect("a frame").expect("data");
        n_read += frame.into_data().expect("data").len();
    }
    drop(body);
    let event = stand.events(1).await.remove(0);
    assert_eq!(event.outcome, CallOutcome::Aborted);
    assert_eq!(event.quantities["tokens"], n_told);
    assert_eq!(event.response_bytes, n_bytes as u64);
    let left = stand.left().await;
    assert_eq!((left.tokens, left.slots), (TOKENS - n_told, ALL.slots));
}

/// Counts words, also those that a frame cuts in two.
struct Words;

impl Measure for Words {
    type State = bool;

    fn begin(&self, head: &http::response::Parts) -> Option<bool> {
        head.status.is_success().then_some(false)
    }

    fn data(&self, in_word: &mut bool, data: &Bytes, meter: &Meter) {
        for byte in data {
            let is_letter = byte.is_ascii_alphanumeric();
            if is_letter && !*in_word {
                meter.add("tokens", 1);
            }
            *in_word = is_letter;
        }
    }

    fn end(&self, _: &mut bool, meter: &Meter) {
        meter.add("answers", 1);
    }
}

#[tokio::test]
async fn a_measure_of_ones_own_keeps_what_it_needs_between_frames() {
    let stand = stand(|builder| builder).await;
    let handler = async || {
        let frames = ["two wo", "rds, and", " three more"].map(Ok::<_, BoxError>);
        axum::body::Body::from_stream(tokio_stream::iter(frames))
    };
    let app = axum::Router::new()
        .route("/words", axum::routing::get(handler))
        .layer(MeasureLayer::new(Words));
    let server = serve(stand.layer().layer(app)).await;
    for path in ["/words", "/none"] {
        let mut request = crate::common::request("GET", path);
        let key = stand.key.parse().expect("a header value");
        request.headers_mut().insert("x-api-key", key);
        server.send(request).await;
    }
    let events = stand.events(2).await;
    assert_eq!(events[0].quantities["tokens"], 5);
    assert_eq!(events[0].quantities["answers"], 1);
    assert!(events[1].quantities.is_empty());
}
