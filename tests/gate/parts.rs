//! How a gate is built, started and ended, and what can be put in the place of its parts.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
    routing::get,
};
use tollgate::{
    LimitLayer, MeterLayer,
    auth::{KeyFormat, KeyHasher, Pepper},
    clock::Clock as _,
    id::TenantId,
    limit::{HeaderStyle, MemoryLimits},
    meter::Recorder,
    prelude::*,
    sink::MemorySink,
    tenant::current_tenant,
};
use tower::ServiceExt;

use super::{acme, hello, stand};

#[tokio::test]
async fn an_identity_of_ones_own_is_limited_and_metered_in_a_hand_made_stack_and_in_front_of_a_gate()
 {
    let plan = Arc::new(
        Plan::new("free")
            .rule(Rate::per_minute(2))
            .compile()
            .unwrap(),
    );
    let identity = Identity::of_tenant(TenantId::new("ann").unwrap(), plan);
    let own_auth = tower::util::MapRequestLayer::new(move |mut request: Request<Body>| {
        request.extensions_mut().insert(identity.clone());
        request
    });
    let statuses = async |app: Router| {
        let mut statuses = Vec::new();
        for _ in 0..3 {
            let request = Request::get("/").body(Body::empty()).unwrap();
            let response = app.clone().oneshot(request).await.unwrap();
            statuses.push(response.status().as_u16());
            drop(response.into_body());
        }
        statuses
    };

    let sink = Arc::new(MemorySink::new());
    let recorder = Recorder::new(Arc::clone(&sink)).unwrap();
    let app = Router::new()
        .route("/", get(hello))
        .layer(LimitLayer::by_identity(MemoryLimits::new()))
        .layer(own_auth.clone())
        .layer(MeterLayer::new(recorder.clone()));
    assert_eq!(statuses(app).await, [200, 200, 429]);
    recorder.flush().await;
    assert_eq!(sink.len(), 3, "whoever finds the identity tells the meter");

    for (accepted, expected) in [(true, [200, 200, 429]), (false, [401, 401, 401])] {
        let sink = Arc::new(MemorySink::new());
        let gate = Tollgate::builder()
            .plans([Plan::new("free")])
            .usage(Arc::clone(&sink))
            .inserted_identity(accepted)
            .build()
            .unwrap();
        let app = Router::new()
            .route("/", get(hello))
            .layer(gate.layer())
            .layer(own_auth.clone());
        assert_eq!(statuses(app).await, expected);
        gate.usage().flush().await;
        assert_eq!(sink.len(), if accepted { 3 } else { 0 });
    }
}

#[tokio::test]
async fn a_shutdown_writes_what_was_metered_and_health_says_so() {
    let stand = stand(|builder| builder).await;
    let key = stand.issue(acme()).await.key;
    stand.call("GET", "/v1/hello", key.expose()).await;
    let report = stand.gate.shutdown(Duration::from_secs(5)).await;
    assert_eq!((report.dropped, report.still_open), (0, 0));
    assert_eq!(stand.sink.len(), 1);
    assert_eq!(
        stand.server.get("/health").await.status,
        StatusCode::SERVICE_UNAVAILABLE
    );
    let after = stand.call("GET", "/v1/hello", key.expose()).await;
    assert_eq!(after.status, StatusCode::OK, "the service goes on");
    let counters = stand.gate.usage().counters();
    assert_eq!(
        (counters.dropped_shutdown, counters.is_balanced()),
        (1, true),
        "and the loss is counted"
    );
}

#[tokio::test]
async fn the_task_local_tenant_is_there_inside_and_nowhere_else() {
    let gate = Tollgate::builder()
        .plans([Plan::new("free")])
        .usage(MemorySink::new())
        .task_local_tenant(true)
        .build()
        .unwrap();
    let issued = gate.keys().issue(acme()).await.unwrap();
    let inside = get(async || {
        tokio::task::yield_now().await;
        current_tenant().map_or_else(|| "none".to_owned(), |tenant| tenant.id().to_string())
    });
    let app = Router::new().route("/", inside).layer(gate.layer());
    let request = Request::get("/")
        .header("x-api-key", issued.key.expose())
        .body(Body::empty())
        .unwrap();
    let body = app.oneshot(request).await.unwrap().into_body();
    assert_eq!(axum::body::to_bytes(body, 100).await.unwrap(), "acme");
    assert!(current_tenant().is_none());
}

#[tokio::test]
async fn legacy_header_fields_and_another_key_form_can_be_chosen() {
    let pepper = Pepper::new("a pepper of twenty bytes").unwrap();
    let stand = stand(|builder| {
        builder
            .headers(HeaderStyle::Legacy)
            .key_format(KeyFormat::new("shop").unwrap())
            .key_hasher(KeyHasher::hmac(pepper))
    })
    .await;
    let key = stand.issue(acme()).await.key;
    assert!(key.expose().starts_with("shop_live_"));
    let answer = stand.call("GET", "/v1/hello", key.expose()).await;
    assert_eq!(answer.header("x-ratelimit-limit"), "100");
}

#[test]
fn without_a_runtime_a_gate_is_built_and_starts_later() {
    let sink = Arc::new(MemorySink::new());
    let gate = Tollgate::builder()
        .plans([Plan::new("free")])
        .usage(Arc::clone(&sink))
        .build()
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        gate.warm_up().await.unwrap();
        let issued = gate.keys().issue(acme()).await.unwrap();
        let app = Router::new().route("/", get(hello)).layer(gate.layer());
        let request = Request::get("/")
            .header("x-api-key", issued.key.expose())
            .body(Body::empty())
            .unwrap();
        drop(app.oneshot(request).await.unwrap());
        gate.usage().flush().await;
    });
    assert_eq!(sink.len(), 1);
}

#[test]
fn a_setting_that_cannot_work_is_named_when_the_gate_is_built() {
    let free = || Plan::new("free");
    let builder = || Tollgate::builder().plans([free()]);
    let cases: [(&str, Result<Tollgate, _>); 14] = [
        (
            "quota_status",
            builder().quota_status(StatusCode::OK).build(),
        ),
        (
            "read_only_status",
            builder().read_only_status(StatusCode::FOUND).build(),
        ),
        (
            "limit_deadline",
            builder().limit_deadline(Duration::ZERO).build(),
        ),
        ("api", builder().api("").build()),
        ("ceiling.rules[0].scope", {
            builder()
                .ceiling(Rate::per_second(1).scope(Scope::Custom("model".into())))
                .build()
        }),
        ("plans", Tollgate::builder().build()),
        (
            "plans[free].name",
            Tollgate::builder().plans([free(), free()]).build(),
        ),
        (
            "plans[free].rules[0]",
            Tollgate::builder()
                .plans([free().rule(Rate::per(1, Duration::ZERO))])
                .build(),
        ),
        ("plans[free].rules[1]", {
            Tollgate::builder()
                .plans([free().rule(Rate::per_second(1)).rule(Rate::per_minute(1))])
                .build()
        }),
        ("plans[free].rules[0].scope", {
            let rule = Rate::per_second(1).scope(Scope::Custom("model".into()));
            Tollgate::builder().plans([free().rule(rule)]).build()
        }),
        ("plans[free].rules[0].time_zone", {
            Tollgate::builder()
                .plans([free().rule(Quota::daily(1).time_zone("Mars/Olympus"))])
                .build()
        }),
        ("sandbox", builder().sandbox("trial").build()),
        ("public[0]", builder().public(["health"]).build()),
        (
            "ceiling.rules[0]",
            builder()
                .ceiling(Quota::daily(u64::MAX))
                .limits(MemoryLimits::new())
                .build(),
        ),
    ];
    for (path, result) in cases {
        let error = result.expect_err(path).to_string();
        assert!(error.starts_with(path), "{path}: {error}");
    }
}

#[tokio::test]
async fn a_gate_tells_when_a_key_was_last_used_and_at_the_latest_at_its_shutdown() {
    let stand = stand(|builder| builder).await;
    let (first, second) = (stand.issue(acme()).await, stand.issue(acme()).await);
    let acme = TenantId::new("acme").unwrap();
    let last_used = async || stand.gate.keys().last_used(&acme).await.unwrap();
    stand.call("GET", "/v1/hello", first.key.expose()).await;
    for _ in 0..1_000 {
        if !last_used().await.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let now = stand.clock.now().wall();
    assert_eq!(last_used().await, [(first.record.id.clone(), now)].into());
    stand.call("GET", "/v1/hello", second.key.expose()).await;
    let _ = stand.gate.shutdown(Duration::from_secs(5)).await;
    assert_eq!(last_used().await.len(), 2);
}
