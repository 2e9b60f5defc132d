//! Streams in both directions: the gate passes each message on, and meters what becomes of them.

use std::time::Duration;

use tokio::{sync::mpsc, time::timeout};
use tokio_stream::{StreamExt as _, wrappers::UnboundedReceiverStream};
use tollgate::{
    limit::{Concurrency, Rate},
    meter::CallOutcome,
    plan::Plan,
};
use tonic::{Code, Status, Streaming, client::Grpc};
use tonic_prost::ProstCodec;

use super::{CHAT, Client, JOIN, PATIENCE, Text, next, stand, text};

const ENDLESS: &str = "1000000000";

async fn chat(
    client: &mut Client,
) -> (mpsc::UnboundedSender<Text>, Result<Streaming<Text>, Status>) {
    let (sender, texts) = mpsc::unbounded_channel();
    let request = client.ready(UnboundedReceiverStream::new(texts)).await;
    let codec = ProstCodec::<Text, Text>::default();
    let call = client
        .grpc
        .streaming(request, CHAT.parse().expect("a path"), codec);
    let answer = timeout(PATIENCE, call).await.expect("an answer in time");
    (sender, answer.map(tonic::Response::into_inner))
}

#[tokio::test]
async fn each_message_is_answered_before_the_next_is_sent() {
    let stand = stand(|builder| builder).await;
    let mut client = stand.caller().await;
    let (sender, texts) = chat(&mut client).await;
    let mut texts = texts.expect("a stream");
    for said in ["one", "two", "three"] {
        sender.send(text(said)).expect("an open call");
        assert_eq!(next(&mut texts).await.unwrap(), Some(said.to_uppercase()));
    }
    assert_eq!(stand.gate.usage().counters().open, 1);
    drop(sender);
    assert_eq!(next(&mut texts).await.unwrap(), None);
    let event = stand.event().await;
    assert_eq!(
        (event.outcome, event.grpc_status),
        (CallOutcome::Served, Some(0))
    );
    assert_eq!((&*event.route, event.quantities["texts"]), (CHAT, 3));
    // A message of n letters takes n + 7 bytes.
    assert_eq!(event.response_bytes, 10 + 10 + 12);
}

#[tokio::test]
async fn a_stream_of_the_client_is_one_call() {
    let stand = stand(|builder| builder).await;
    let mut client = stand.caller().await;
    let request = client
        .ready(tokio_stream::iter(["a", "b", "c"]).map(text))
        .await;
    let codec = ProstCodec::<Text, Text>::default();
    let path = JOIN.parse().expect("a path");
    let answer = client.grpc.client_streaming(request, path, codec).await;
    let answer: Text = answer.expect("an answer").into_inner();
    assert_eq!(answer.text, "abc");
    let event = stand.event().await;
    assert_eq!(
        (event.outcome, event.grpc_status),
        (CallOutcome::Served, Some(0))
    );
}

#[tokio::test]
async fn a_stream_that_is_refused_ends_at_once() {
    let plan = || Plan::new("free").rule(Rate::per_second(1).burst(1));
    let stand = stand(|builder| builder.plans([plan()])).await;
    let mut client = stand.caller().await;
    let (_sender, texts) = chat(&mut client).await;
    let _texts = texts.expect("within the burst");
    let (_sender, refused) = chat(&mut client).await;
    assert_eq!(refused.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_call_that_the_client_cancels_is_aborted_and_frees_its_slot() {
    let plan = || Plan::new("free").rule(Concurrency::new(1));
    let stand = stand(|builder| builder.plans([plan()])).await;
    let mut client = stand.caller().await;
    let mut texts = client.count(ENDLESS).await.expect("a stream");
    assert_eq!(next(&mut texts).await.unwrap().as_deref(), Some("0"));
    let refused = client.count("1").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    // Dropping the stream resets it (RST_STREAM with CANCEL).
    drop(texts);
    let events = stand.events(2).await;
    let aborted = events
        .iter()
        .find(|event| event.outcome == CallOutcome::Aborted);
    let aborted = aborted.expect("the call that was cancelled");
    assert_eq!((aborted.status, aborted.grpc_status), (200, None));
    assert!(aborted.response_bytes > 0);
    let mut texts = client.count("1").await.expect("a free slot");
    while next(&mut texts).await.unwrap().is_some() {}
}

#[tokio::test]
async fn a_client_that_goes_away_before_the_answer_is_metered_as_gone() {
    let stand = stand(|builder| builder).await;
    let mut client = stand.caller().await;
    let usage = stand.gate.usage();
    let opened = crate::common::eventually(|| usage.counters().open == 1);
    tokio::select! {
        biased;
        answer = client.say("hang on") => panic!("answered: {answer:?}"),
        () = opened => {}
    }
    drop(client);
    let event = stand.event().await;
    assert_eq!((event.outcome, event.status), (CallOutcome::Aborted, 499));
    assert_eq!(event.grpc_status, None);
}

#[tokio::test]
async fn many_calls_on_one_connection_are_each_metered_once() {
    let stand =
        stand(|builder| builder.plans([Plan::new("free").rule(Rate::per_second(10_000))])).await;
    let key = stand.key().await;
    let channel = stand.channel().await;
    let calls = (0..100).map(|n| {
        let mut client = Client {
            grpc: Grpc::new(channel.clone()),
            key: Some(key.clone()),
        };
        tokio::spawn(async move {
            let mut texts = client.count("20").await.expect("a stream");
            let mut seen = 0;
            while next(&mut texts).await.expect("a message").is_some() {
                seen += 1;
                if n % 2 == 0 && seen == 3 {
                    return;
                }
            }
        })
    });
    let calls: Vec<_> = calls.collect();
    for call in calls {
        timeout(Duration::from_secs(60), call)
            .await
            .expect("an end")
            .expect("no panic");
    }
    let events = stand.events(100).await;
    let served = events
        .iter()
        .filter(|event| event.outcome == CallOutcome::Served);
    // A client that leaves early may have been handed everything by then.
    assert!(served.count() >= 50);
    assert_eq!(stand.sink.duplicates(), 0);
}
