//! The limit layer alone, in a service that has neither keys nor tenants.

use std::{
    convert::Infallible,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full, StreamBody};
use sfv::{BareItem, ListEntry, Parser};
use tollgate::{
    clock::ManualClock,
    error::{ErrorCode, Problem},
    head::RequestHead,
    limit::{
        Action, Concurrency, Cost, Decision, HeaderStyle, LimitCall, LimitDegraded, LimitLayer,
        LimitStore, LimitStoreError, MemoryLimits, OnStoreFailure, OwnedLimitCall, Quota, Rate,
        Receipt, Rule, Scope, Settlement, ThresholdEvent, ThresholdSink, Unit, Window,
    },
    meter::Meter,
};
use tower::{Layer, Service, ServiceExt, service_fn};

type Answer = Response<Full<Bytes>>;

async fn hello(_: Request<()>) -> Result<Answer, Infallible> {
    Ok(Response::new(Full::from("hello")))
}

fn request() -> Request<()> {
    Request::new(())
}

fn layer<R: Into<Rule>>(clock: &ManualClock, rules: impl IntoIterator<Item = R>) -> LimitLayer {
    LimitLayer::new(MemoryLimits::new(), rules)
        .unwrap()
        .clock(Arc::new(clock.clone()))
}

async fn status<S, B>(service: &S, request: Request<()>) -> StatusCode
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone,
{
    service.clone().oneshot(request).await.unwrap().status()
}

/// The items of a list of strings with integer parameters, parsed by another's RFC 9651 parser.
fn items(response: &Response<impl Body>, field: &str) -> Vec<(String, Vec<(String, String)>)> {
    let text = response
        .headers()
        .get(field)
        .unwrap_or_else(|| panic!("no {field}"))
        .as_bytes();
    let list: sfv::List = Parser::new(text).parse().unwrap();
    let item = |entry: &ListEntry| match entry {
        ListEntry::Item(item) => {
            let BareItem::String(name) = &item.bare_item else {
                panic!("{item:?} is no string")
            };
            let parameters = item.params.iter().map(|(name, value)| {
                let value = match value {
                    BareItem::Integer(n) => n.to_string(),
                    BareItem::String(text) => text.to_string(),
                    other => panic!("{other:?}"),
                };
                (name.to_string(), value)
            });
            (name.to_string(), parameters.collect())
        }
        ListEntry::InnerList(list) => panic!("{list:?} is no item"),
    };
    list.iter().map(item).collect()
}

fn pairs(parameters: &[(&str, &str)]) -> Vec<(String, String)> {
    parameters
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[tokio::test]
async fn refuses_the_request_after_the_burst_is_spent_and_the_service_never_sees_it() {
    let clock = ManualClock::default();
    let seen = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&seen);
    let service = layer(&clock, [Rate::per_second(1).burst(3)]).layer(service_fn(move |request| {
        counted.fetch_add(1, Ordering::Relaxed);
        hello(request)
    }));
    for _ in 0..3 {
        assert_eq!(status(&service, request()).await, StatusCode::OK);
    }
    let refused = service.clone().oneshot(request()).await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(
        refused.headers()["content-type"],
        "application/problem+json"
    );
    let body = refused.into_body().collect().await.unwrap().to_bytes();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["code"], "rate_limited");
    assert_eq!(body["violated-policies"], serde_json::json!(["rate"]));
    assert_eq!(seen.load(Ordering::Relaxed), 3);
    clock.advance(Duration::from_secs(1));
    assert_eq!(status(&service, request()).await, StatusCode::OK);
}

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

#[tokio::test]
async fn counts_each_value_of_a_hook_apart_and_leaves_the_rest_alone() {
    let clock = ManualClock::default();
    let by_team = layer(&clock, [Rate::per_minute(1)]).by(|head: &RequestHead<'_>| {
        head.headers()
            .get("x-team")
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    });
    let service = by_team.layer(service_fn(hello));
    let from = |team: &[u8]| {
        let mut request = request();
        request
            .headers_mut()
            .insert("x-team", http::HeaderValue::from_bytes(team).unwrap());
        request
    };
    for team in [&b"red"[..], b"blue", b"\xff\xfe", &[b'x'; 4096]] {
        assert_eq!(status(&service, from(team)).await, StatusCode::OK);
        assert_eq!(
            status(&service, from(team)).await,
            StatusCode::TOO_MANY_REQUESTS
        );
    }
    for _ in 0..5 {
        assert_eq!(
            status(&service, request()).await,
            StatusCode::OK,
            "no team, no count"
        );
    }
}

#[tokio::test]
async fn a_custom_scope_counts_within_its_rule_only() {
    let clock = ManualClock::default();
    let rules = [Rate::per_minute(1).scope(Scope::Custom("model".into()))];
    let service = layer(&clock, rules)
        .scope("model", |head: &RequestHead<'_>| {
            head.uri().query().map(str::to_owned)
        })
        .layer(service_fn(hello));
    let ask = |model: &str| Request::get(format!("/?{model}")).body(()).unwrap();
    assert_eq!(status(&service, ask("small")).await, StatusCode::OK);
    assert_eq!(status(&service, ask("large")).await, StatusCode::OK);
    assert_eq!(
        status(&service, ask("small")).await,
        StatusCode::TOO_MANY_REQUESTS
    );
}

#[tokio::test]
async fn a_call_costs_what_the_hook_says() {
    let clock = ManualClock::default();
    let service = layer(&clock, [Quota::daily(10)])
        .cost(|head: &RequestHead<'_>| {
            let rows = head.uri().query().and_then(|query| query.parse().ok());
            Cost::requests(rows.unwrap_or(1))
        })
        .layer(service_fn(hello));
    let rows = |n: u32| Request::get(format!("/?{n}")).body(()).unwrap();
    assert_eq!(status(&service, rows(6)).await, StatusCode::OK);
    assert_eq!(
        status(&service, rows(6)).await,
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(status(&service, rows(4)).await, StatusCode::OK);
    let never = service.clone().oneshot(rows(11)).await.unwrap();
    assert_eq!(never.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(
        !never.headers().contains_key("retry-after"),
        "it can never pass"
    );
}

#[tokio::test]
async fn a_reservation_is_settled_with_what_the_handler_used() {
    let clock = ManualClock::default();
    let service = layer(&clock, [Quota::daily(1_000).unit(Unit::custom("tokens"))])
        .cost(|_: &RequestHead<'_>| Cost::default().with("tokens", 400))
        .layer(service_fn(|request: Request<()>| async move {
            let meter = request.extensions().get::<Meter>().unwrap();
            meter.add("tokens", 150);
            hello(Request::new(())).await
        }));
    let remaining = async || {
        let response = service.clone().oneshot(request()).await.unwrap();
        let left = items(&response, "ratelimit")[0].1[0].1.clone();
        response.into_body().collect().await.unwrap();
        left
    };
    // Each call shows its hold of 400; the next finds that only 150 were used.
    assert_eq!(remaining().await, "600");
    assert_eq!(remaining().await, "450");
    assert_eq!(remaining().await, "300");
}

#[tokio::test]
async fn a_reservation_that_the_handler_never_names_is_released_and_a_plain_cost_is_not() {
    let clock = ManualClock::default();
    let tokens = || Quota::daily(1_000).unit(Unit::custom("tokens"));
    for (cost, left) in [
        (Cost::default().reserve("tokens", 400), "600"),
        (Cost::default().with("tokens", 400), "200"),
    ] {
        let service = layer(&clock, [tokens()])
            .cost(move |_: &RequestHead<'_>| cost.clone())
            .layer(service_fn(hello));
        drop(service.clone().oneshot(request()).await.unwrap());
        let response = service.oneshot(request()).await.unwrap();
        assert_eq!(items(&response, "ratelimit")[0].1[0].1, left);
    }
}

#[tokio::test]
async fn a_settlement_counts_at_its_own_time_and_not_at_that_of_the_decision() {
    let clock = ManualClock::default();
    let later = clock.clone();
    let rule = || Rate::per_second(1).burst(10).unit(Unit::custom("rows"));
    let service = layer(&clock, [rule()])
        .cost(|_: &RequestHead<'_>| Cost::default().with("rows", 1))
        .layer(service_fn(move |request: Request<()>| {
            let clock = later.clone();
            async move {
                clock.advance(Duration::from_secs(3600));
                if request.uri().path() == "/more" {
                    request.extensions().get::<Meter>().unwrap().add("rows", 9);
                }
                hello(Request::new(())).await
            }
        }));
    let spend = Request::get("/more").body(()).unwrap();
    drop(service.clone().oneshot(spend).await.unwrap());
    let response = service.oneshot(request()).await.unwrap();
    // Eight of nine rows were charged when the bucket was full again, and one by this call.
    assert_eq!(items(&response, "ratelimit")[0].1[0].1, "1");
}

#[tokio::test]
async fn what_a_handler_says_by_itself_gives_nothing_back() {
    let clock = ManualClock::default();
    let service = layer(&clock, [Quota::daily(2)]).layer(service_fn(|_: Request<()>| async {
        let problem = Problem::new(ErrorCode::NotFound);
        Ok::<_, Infallible>(problem.into_response::<Full<Bytes>>(&http::Method::GET))
    }));
    assert_eq!(status(&service, request()).await, StatusCode::NOT_FOUND);
    assert_eq!(status(&service, request()).await, StatusCode::NOT_FOUND);
    assert_eq!(
        status(&service, request()).await,
        StatusCode::TOO_MANY_REQUESTS
    );
}

#[tokio::test]
async fn a_limit_of_zero_is_not_blamed_on_the_size_of_the_call() {
    let clock = ManualClock::default();
    let service = layer(&clock, [Quota::daily(0)]).layer(service_fn(hello));
    let refused = service.oneshot(request()).await.unwrap();
    assert!(!refused.headers().contains_key("retry-after"));
    let body = refused.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("The plan does not allow this"));
}

#[tokio::test]
async fn a_handler_that_uses_more_than_was_held_overdraws_and_the_next_call_waits() {
    let clock = ManualClock::default();
    let service = layer(&clock, [Quota::daily(100).unit(Unit::custom("tokens"))])
        .cost(|_: &RequestHead<'_>| Cost::default().with("tokens", 10))
        .layer(service_fn(|request: Request<()>| async move {
            request
                .extensions()
                .get::<Meter>()
                .unwrap()
                .add("tokens", u64::MAX);
            hello(Request::new(())).await
        }));
    assert_eq!(status(&service, request()).await, StatusCode::OK);
    assert_eq!(
        status(&service, request()).await,
        StatusCode::TOO_MANY_REQUESTS
    );
}

#[tokio::test]
async fn a_failure_of_the_service_gives_the_quota_back_but_not_the_rate() {
    let clock = ManualClock::default();
    let rules: [Rule; 2] = [Rate::per_minute(3).into(), Quota::daily(1).into()];
    let service = layer(&clock, rules).layer(service_fn(|request: Request<()>| async move {
        let mut response = hello(Request::new(())).await?;
        if request.uri().path() == "/fails" {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
        Ok::<_, Infallible>(response)
    }));
    let failing = || Request::get("/fails").body(()).unwrap();
    assert_eq!(
        status(&service, failing()).await,
        StatusCode::INTERNAL_SERVER_ERROR
    );
    assert_eq!(
        status(&service, failing()).await,
        StatusCode::INTERNAL_SERVER_ERROR
    );
    assert_eq!(
        status(&service, request()).await,
        StatusCode::OK,
        "the quota of one is still there"
    );
    clock.advance(Duration::from_secs(20));
    let refused = service.clone().oneshot(request()).await.unwrap();
    let body = refused.into_body().collect().await.unwrap().to_bytes();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["code"], "quota_exceeded");
}

#[tokio::test]
async fn a_slot_is_held_until_the_body_ends_or_is_dropped() {
    let clock = ManualClock::default();
    let service = layer(&clock, [Concurrency::new(1)]).layer(service_fn(hello));
    let first = service.clone().oneshot(request()).await.unwrap();
    assert_eq!(first.status(), StatusCode::OK);
    let second = service.clone().oneshot(request()).await.unwrap();
    assert_eq!(second.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(
        !second.headers().contains_key("retry-after"),
        "nobody knows when a call ends"
    );
    drop(first);
    let third = service.clone().oneshot(request()).await.unwrap();
    assert_eq!(third.status(), StatusCode::OK);
    third.into_body().collect().await.unwrap();
    assert_eq!(status(&service, request()).await, StatusCode::OK);
}

#[tokio::test]
async fn a_dropped_future_and_a_broken_body_release_the_slot() {
    let clock = ManualClock::default();
    let service =
        layer(&clock, [Concurrency::new(1)]).layer(service_fn(|request: Request<()>| async move {
            if request.uri().path() == "/hangs" {
                std::future::pending::<()>().await;
            }
            let frames = [
                Ok(http_body::Frame::data(Bytes::from("a"))),
                Err(std::io::Error::other("cut")),
            ];
            Ok::<_, Infallible>(Response::new(StreamBody::new(tokio_stream::iter(frames))))
        }));
    let mut hanging = tokio_test_poll(
        service
            .clone()
            .oneshot(Request::get("/hangs").body(()).unwrap()),
    );
    assert!(hanging.poll_once().is_pending());
    assert_eq!(
        status(&service, request()).await,
        StatusCode::TOO_MANY_REQUESTS
    );
    drop(hanging);
    let broken = service.clone().oneshot(request()).await.unwrap();
    assert!(broken.into_body().collect().await.is_err());
    assert_eq!(status(&service, request()).await, StatusCode::OK);
}

/// A future that is polled by hand.
struct ByHand<F>(std::pin::Pin<Box<F>>);

fn tokio_test_poll<F: Future>(future: F) -> ByHand<F> {
    ByHand(Box::pin(future))
}

impl<F: Future> ByHand<F> {
    fn poll_once(&mut self) -> std::task::Poll<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        self.0.as_mut().poll(&mut context)
    }
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

/// A store that never has an answer.
#[derive(Debug)]
enum Broken {
    Hangs,
    Fails,
}

#[async_trait]
impl LimitStore for Broken {
    fn try_decide(&self, _: &LimitCall<'_>) -> Option<Result<Decision, LimitStoreError>> {
        None
    }

    async fn decide(self: Arc<Self>, _: OwnedLimitCall) -> Result<Decision, LimitStoreError> {
        match *self {
            Self::Hangs => std::future::pending().await,
            Self::Fails => Err(LimitStoreError::Unavailable("10.0.0.7:6379 refused".into())),
        }
    }

    fn settle(&self, _: &LimitCall<'_>, _: &Receipt, _: &Settlement) {
        panic!("nothing was charged here");
    }
}

async fn under_failure(
    store: Broken,
    policy: OnStoreFailure,
    calls: usize,
) -> Vec<(StatusCode, bool, String)> {
    let clock = ManualClock::default();
    let service = LimitLayer::new(store, [Rate::per_minute(4).on_store_failure(policy)])
        .unwrap()
        .clock(Arc::new(clock))
        .processes(NonZeroU32::new(2).unwrap())
        .layer(service_fn(hello));
    let mut seen = Vec::new();
    for _ in 0..calls {
        let response = service.clone().oneshot(request()).await.unwrap();
        let (head, body) = response.into_parts();
        let degraded = head.extensions.get::<LimitDegraded>().is_some();
        let body = body.collect().await.unwrap().to_bytes();
        seen.push((
            head.status,
            degraded,
            String::from_utf8(body.to_vec()).unwrap(),
        ));
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn a_store_that_gives_no_answer_is_never_mistaken_for_an_unlimited_one() {
    for store in [|| Broken::Hangs, || Broken::Fails] {
        let statuses = async |policy| {
            let seen = under_failure(store(), policy, 12).await;
            assert!(seen.iter().all(|(_, degraded, _)| *degraded), "{seen:?}");
            assert!(
                seen.iter().all(|(_, _, body)| !body.contains("10.0.0.7")),
                "{seen:?}"
            );
            seen.into_iter()
                .map(|(status, ..)| status.as_u16())
                .collect::<Vec<_>>()
        };
        // The share of one of two processes is two of four.
        let mut local = [429; 12];
        local[..2].fill(200);
        assert_eq!(statuses(OnStoreFailure::Local).await, local);
        assert_eq!(statuses(OnStoreFailure::Allow).await, [200; 12]);
        assert_eq!(statuses(OnStoreFailure::Deny).await, [503; 12]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_want_of_a_store_speaks_of_no_quota() {
    let clock = ManualClock::default();
    let service = LimitLayer::new(
        Broken::Fails,
        [Quota::daily(5).on_store_failure(OnStoreFailure::Deny)],
    )
    .unwrap()
    .clock(Arc::new(clock))
    .layer(service_fn(hello));
    let response = service.oneshot(request()).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "1");
    assert!(!response.headers().contains_key("ratelimit"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_calls_at_once_admit_exactly_the_limit() {
    let clock = ManualClock::default();
    let rules: [Rule; 2] = [
        Quota::daily(100).into(),
        Window::new(500, Duration::from_secs(60)).into(),
    ];
    let service = layer(&clock, rules).layer(service_fn(hello));
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let service = service.clone();
        calls.spawn(async move { status(&service, request()).await });
    }
    let admitted = calls
        .join_all()
        .await
        .into_iter()
        .filter(|status| status.is_success())
        .count();
    assert_eq!(admitted, 100);
}

#[test]
fn a_rule_that_cannot_work_is_refused_when_the_layer_is_built() {
    let error = LimitLayer::new(MemoryLimits::new(), [Rate::per(5, Duration::ZERO)]).unwrap_err();
    assert!(error.path().starts_with("rules[0]"), "{error}");
}
