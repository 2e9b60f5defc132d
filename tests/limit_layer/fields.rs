//! What the answer tells of the limits.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use http::StatusCode;
use tollgate::{
    clock::ManualClock,
    limit::{Action, HeaderStyle, Quota, Rate, Rule, ThresholdEvent, ThresholdSink, Unit, Window},
};
use tower::{Layer, ServiceExt, service_fn};

use super::{hello, items, layer, pairs, request};

#[tokio::test]
async fn writes_the_fields_of_draft_11_with_the_tightest_rule_first() {
    let clock = ManualClock::default();
    let rules: [Rule; 3] = [
        Rate::per_second(10).burst(100).into(),
        Quota::daily(4).into(),
        Window::new(50, Duration::from_secs(60)).unit(Unit::Bytes),
    ];
    let service = layer(&clock, rules).layer(service_fn(hello));
    let response = service.oneshot(request()).await.unwrap();
    assert_eq!(
        items(&response, "ratelimit-policy"),
        [
            ("quota".to_owned(), pairs(&[("q", "4"), ("w", "86400")])),
            ("rate".to_owned(), pairs(&[("q", "100"), ("w", "10")])),
            (
                "window".to_owned(),
                pairs(&[("q", "50"), ("w", "60"), ("qu", "content-bytes")])
            ),
        ]
    );
    // The clock stands at noon: the quota comes back in twelve hours, a token in a tenth of a second.
    assert_eq!(
        items(&response, "ratelimit"),
        [
            ("quota".to_owned(), pairs(&[("r", "3"), ("t", "43200")])),
            ("rate".to_owned(), pairs(&[("r", "99"), ("t", "1")])),
            ("window".to_owned(), pairs(&[("r", "50")])),
        ]
    );
}

#[tokio::test]
async fn writes_the_legacy_fields_or_none_when_asked() {
    let clock = ManualClock::default();
    let legacy = layer(&clock, [Rate::per_minute(2)])
        .headers(HeaderStyle::Legacy)
        .layer(service_fn(hello));
    let response = legacy.clone().oneshot(request()).await.unwrap();
    assert_eq!(response.headers()["x-ratelimit-limit"], "2");
    assert_eq!(response.headers()["x-ratelimit-remaining"], "1");
    assert_eq!(response.headers()["x-ratelimit-reset"], "30");
    assert!(!response.headers().contains_key("ratelimit"));

    let off = layer(&clock, [Rate::per_minute(1)])
        .headers(HeaderStyle::Off)
        .layer(service_fn(hello));
    let response = off.clone().oneshot(request()).await.unwrap();
    assert!(response.headers().is_empty());
    let refused = off.clone().oneshot(request()).await.unwrap();
    assert_eq!(refused.headers()["retry-after"], "60");
    assert!(!refused.headers().contains_key("ratelimit"));
}

#[derive(Debug)]
struct Heard(tokio::sync::mpsc::UnboundedSender<ThresholdEvent>);

#[async_trait]
impl ThresholdSink for Heard {
    async fn threshold_reached(&self, event: ThresholdEvent) {
        self.0.send(event).unwrap();
    }
}

#[tokio::test]
async fn a_threshold_warns_in_the_answer_and_is_told_once() {
    let clock = ManualClock::default();
    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let service = layer(&clock, [Quota::daily(10).thresholds([80, 100])])
        .thresholds(Arc::new(Heard(sender)))
        .layer(service_fn(hello));
    let mut warnings = Vec::new();
    for _ in 0..10 {
        let response = service.clone().oneshot(request()).await.unwrap();
        let warning = response.headers().get("tollgate-limit-warning");
        warnings.push(
            warning
                .map_or("", |value| value.to_str().unwrap())
                .to_owned(),
        );
    }
    assert!(warnings[..7].iter().all(String::is_empty), "{warnings:?}");
    assert_eq!(
        warnings[7..],
        [
            "\"quota\";percent=80",
            "\"quota\";percent=80",
            "\"quota\";percent=100"
        ]
    );
    drop(service);
    for (percent, used) in [(80, 8), (100, 10)] {
        let event = heard.recv().await.unwrap();
        assert_eq!(
            (&*event.rule, event.crossing.percent, event.crossing.used),
            ("quota", percent, used)
        );
    }
    assert!(heard.recv().await.is_none(), "told once each");
}

#[tokio::test]
async fn overage_passes_warns_pass_and_shadow_rules_are_not_seen() {
    let clock = ManualClock::default();
    let rules: [Rule; 3] = [
        Quota::daily(1).overage(),
        Rate::per_minute(1).action(Action::Warn),
        Rate::per_minute(1).named("trial").shadow(),
    ];
    let service = layer(&clock, rules).layer(service_fn(hello));
    for _ in 0..3 {
        let response = service.clone().oneshot(request()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let policy = items(&response, "ratelimit-policy");
        assert!(policy.iter().all(|(name, _)| name != "trial"), "{policy:?}");
    }
    let response = service.clone().oneshot(request()).await.unwrap();
    assert_eq!(
        response.headers()["tollgate-limit-warning"],
        "\"rate\";percent=100"
    );
}
