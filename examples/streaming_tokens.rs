// cargo run --example streaming_tokens
//! A language model behind a gate: tokens are held before the call, metered while they stream, and settled when
//! the stream ends or its reader leaves.
//!
//! Prints a key, the lines to try, and one line of usage for each call: read to its end, cut off by
//! `curl --max-time`, and over a WebSocket. `PORT` chooses the port (3000 unless set, 0 for any free one).

use std::{convert::Infallible, env, error::Error, net::SocketAddr, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{
        State,
        ws::{Message, WebSocketUpgrade},
    },
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
    routing::get,
};
use tokio_stream::{StreamExt, wrappers::IntervalStream};
use tollgate::{
    meter::{AbortPolicy, MeasureLayer, TokenUsage, UsageEvent},
    prelude::*,
    sink::{MemorySink, SinkError, UsageSink, Verdicts},
};

/// Stands for a model's API: a word every 20 ms, each with the usage so far, 50 words in all.
async fn chat() -> Response {
    let words = IntervalStream::new(tokio::time::interval(Duration::from_millis(20))).take(50);
    let mut n = 0;
    let events = words.map(move |_| {
        n += 1;
        let usage = format!("{{\"prompt_tokens\":9,\"completion_tokens\":{n}}}");
        let event = format!("data: {{\"text\":\"word\",\"usage\":{usage}}}\n\n");
        Ok::<_, Infallible>(event)
    });
    let stream = [(CONTENT_TYPE, "text/event-stream")];
    (stream, Body::from_stream(events)).into_response()
}

/// A conversation over a WebSocket: the call lasts until the hold is dropped with the socket.
async fn talk(meter: Meter, upgrade: WebSocketUpgrade) -> Response {
    let hold = meter.hold().count_millis("connection_ms");
    upgrade.on_upgrade(async move |mut socket| {
        while let Some(Ok(Message::Text(text))) = socket.recv().await {
            hold.add("output_tokens", text.split_whitespace().count() as u64);
            if socket.send(Message::Text(text)).await.is_err() {
                return;
            }
        }
    })
}

/// Prints usage as it comes, and keeps it for `/usage`.
#[derive(Clone, Debug, Default)]
struct Printed(MemorySink);

#[async_trait::async_trait]
impl UsageSink for Printed {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        for event in batch {
            let (route, outcome) = (&event.route, event.outcome);
            println!("usage: {route} {outcome:?} {:?}", event.quantities);
        }
        self.0.write(batch).await
    }
}

async fn usage(State((gate, printed)): State<(Tollgate, Printed)>) -> Json<Vec<UsageEvent>> {
    gate.usage().flush().await;
    Json(printed.0.events())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let printed = Printed::default();
    let tokens = Quota::daily(1_000).unit(Unit::custom("output_tokens"));
    let gate = Tollgate::builder()
        .plans([Plan::new("ai").rule(tokens.named("tokens"))])
        // No call may take what others have reserved: 200 are held, and what was not used comes back.
        .cost(|_: &RequestHead<'_>| Cost::default().reserve("output_tokens", 200))
        // The default: who leaves pays for the tokens that were handed over.
        .abort_policy(AbortPolicy::Delivered)
        .usage(printed.clone())
        .build()?;
    let new = NewKey::for_tenant("acme").plan("ai");
    let issued = gate.keys().issue(new).await?;

    let app = Router::new()
        .route("/v1/chat", get(chat))
        .layer(MeasureLayer::new(TokenUsage::new()))
        .route("/v1/talk", get(talk))
        .layer(gate.layer())
        .route("/usage", get(usage))
        .with_state((gate.clone(), printed));

    let port: u16 = env::var("PORT").map_or(Ok(3000), |port| port.parse())?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;
    println!("listening on http://{address}");
    println!("key: {}", issued.key.expose());
    println!("try: curl -N -H 'x-api-key: <key>' http://{address}/v1/chat");
    println!("try: curl -N --max-time 0.3 -H 'x-api-key: <key>' http://{address}/v1/chat");
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    let stop = async { drop(tokio::signal::ctrl_c().await) };
    axum::serve(listener, app)
        .with_graceful_shutdown(stop)
        .await?;
    println!("{:?}", gate.shutdown(Duration::from_secs(10)).await);
    Ok(())
}
