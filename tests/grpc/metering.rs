//! What a usage event says of a gRPC call, and what its limits are charged.

use std::time::Duration;

use tollgate::{
    limit::{Quota, Rate},
    meter::CallOutcome,
    plan::Plan,
};
use tonic::Code;

use super::{SAY, Stand, next, stand};

#[tokio::test]
async fn a_served_call_says_so_in_its_event() {
    let stand = stand(|builder| builder).await;
    stand.caller().await.say("hello").await.expect("an answer");
    let event = stand.event().await;
    assert_eq!(event.outcome, CallOutcome::Served);
    assert_eq!((event.status, event.grpc_status), (200, Some(0)));
    assert_eq!((&*event.route, &*event.method), (SAY, "POST"));
    // Five bytes before the message, two before its text.
    assert_eq!((event.response_bytes, event.quantities["texts"]), (12, 1));
    let json = serde_json::to_value(&event).expect("JSON");
    assert_eq!(json["grpc_status"], 0);
}

#[tokio::test]
async fn a_method_that_is_not_listed_is_unmatched() {
    let stand = stand(|builder| builder).await;
    let mut client = stand.caller().await;
    for path in ["/test.Echo/Made-up", "/nobody/1", "/nobody/2"] {
        let status = client.unary(path, "x").await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
    }
    for event in stand.events(3).await {
        assert_eq!(&*event.route, "unmatched");
        assert_eq!(event.grpc_status, Some(12));
    }
}

#[tokio::test]
async fn the_status_decides_whether_the_service_has_failed() {
    let stand = stand(|builder| builder).await;
    let mut client = stand.caller().await;
    for code in 1..=16 {
        client.say(&format!("fail {code}")).await.unwrap_err();
    }
    for (event, code) in stand.events(16).await.iter().zip(1..) {
        let failed = [2, 4, 12, 13, 14, 15].contains(&code);
        let outcome = if failed {
            CallOutcome::Failed
        } else {
            CallOutcome::Served
        };
        assert_eq!((event.outcome, event.grpc_status), (outcome, Some(code)));
        assert_eq!(event.status, 200);
    }
}

#[tokio::test]
async fn a_stream_is_metered_by_its_trailers() {
    let stand = stand(|builder| builder).await;
    let mut client = stand.caller().await;
    let mut texts = client.count("3 14").await.expect("a stream");
    for n in 0..3 {
        assert_eq!(next(&mut texts).await.unwrap(), Some(n.to_string()));
    }
    assert_eq!(
        next(&mut texts).await.unwrap_err().code(),
        Code::Unavailable
    );
    let mut texts = client.count("2").await.expect("a stream");
    while next(&mut texts).await.unwrap().is_some() {}
    let events = stand.events(2).await;
    assert_eq!(events[0].outcome, CallOutcome::Failed);
    assert_eq!((events[0].status, events[0].grpc_status), (200, Some(14)));
    assert_eq!(events[0].response_bytes, 3 * 8);
    assert_eq!(
        (events[1].outcome, events[1].grpc_status),
        (CallOutcome::Served, Some(0))
    );
}

/// What is left of a quota of 10 and a rate of 10 after one call that ends so.
async fn left_after(stand: &Stand, said: &str, streamed: bool) -> (String, String) {
    let mut client = stand.caller().await;
    let before = stand.sink.len();
    if streamed {
        let mut texts = client.count(said).await.expect("a stream");
        while let Ok(Some(_)) = next(&mut texts).await {}
    } else {
        let _ = client.say(said).await;
    }
    // The charge is settled with the body, the event of the call after it.
    stand.events(before + 1).await;
    let request = client.ready(super::text("peek")).await;
    let codec = tonic_prost::ProstCodec::<super::Text, super::Text>::default();
    let path = SAY.parse().expect("a path");
    let answer = client
        .grpc
        .unary(request, path, codec)
        .await
        .expect("an answer");
    stand.events(before + 2).await;
    let fields = answer.metadata().get("ratelimit").expect("the limits");
    let fields = fields.to_str().expect("a text").to_owned();
    let left = |name: &str| {
        let (_, rest) = fields
            .split_once(&format!("\"{name}\";r="))
            .expect("a rule");
        rest.split([';', ',']).next().unwrap_or_default().to_owned()
    };
    (left("rate"), left("quota"))
}

#[tokio::test]
async fn a_failed_call_is_given_back_to_the_quota_and_never_to_the_rate() {
    for (said, streamed, quota_left) in [
        ("hello", false, "8"),
        ("fail 3", false, "8"),
        ("fail 13", false, "9"),
        ("fail 2", false, "9"),
        ("panic now", false, "9"),
        ("3", true, "8"),
        ("3 7", true, "8"),
        ("3 14", true, "9"),
        ("0 15", true, "9"),
    ] {
        let plan = Plan::new("free")
            .rule(Rate::per(10, Duration::from_secs(3600)).burst(10))
            .rule(Quota::monthly(10));
        let stand = stand(|builder| builder.plans([plan])).await;
        let (rate, quota) = left_after(&stand, said, streamed).await;
        assert_eq!((&*rate, &*quota), ("8", quota_left), "{said}");
    }
}
