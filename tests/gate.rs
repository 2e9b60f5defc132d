//! The whole gate around an axum router, over real connections.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::DefaultBodyLimit,
    http::{HeaderMap, Request, StatusCode},
    response::Response,
    routing::{get, post},
};
use tollgate::{
    LimitLayer, MeterLayer,
    auth::{Extractor, KeyFormat, KeyHasher, KeySource, Pepper, TrustedProxies},
    clock::{Clock, ManualClock},
    head::RequestHead,
    id::{Environment, TenantId},
    identity::IssuedKey,
    limit::{HeaderStyle, MemoryLimits},
    meter::{CallOutcome, Recorder, UsageEvent},
    plan::PlanDocument,
    prelude::*,
    sink::MemorySink,
    tenant::current_tenant,
};
use tower::ServiceExt;

use crate::common::{Answer, Server, request, serve};

struct Stand {
    gate: Tollgate,
    sink: Arc<MemorySink>,
    clock: ManualClock,
    server: Server,
}

async fn hello(tenant: Tenant, meter: Meter) -> String {
    meter.add("greetings", 1);
    format!("hello {}", tenant.id())
}

async fn fails() -> StatusCode {
    StatusCode::INTERNAL_SERVER_ERROR
}

async fn panics() -> String {
    panic!("canary of the handler")
}

async fn streams() -> Response {
    let parts = ["one ", "two ", "three"].map(|part| Ok::<_, Infallible>(Bytes::from(part)));
    Response::new(Body::from_stream(tokio_stream::iter(parts)))
}

fn routes() -> Router {
    Router::new()
        .route("/v1/hello", get(hello).post(hello))
        .route("/v1/item/{id}", get(hello))
        .route("/v1/fails", get(fails))
        .route("/v1/panics", get(panics))
        .route("/v1/streams", get(streams))
        .route(
            "/v1/upload",
            post(async |body: Bytes| body.len().to_string()),
        )
        .route(
            "/v1/write",
            post(hello).route_layer(RequireScope::new("write")),
        )
        .route(
            "/v1/export",
            get(hello).route_layer(RequireFeature::new("export")),
        )
        .route("/open", get(async || "open"))
        .route("/docs/page", get(async || "page"))
        .layer(DefaultBodyLimit::max(100))
}

async fn stand(
    setup: impl FnOnce(tollgate::TollgateBuilder) -> tollgate::TollgateBuilder,
) -> Stand {
    let (sink, clock) = (Arc::new(MemorySink::new()), ManualClock::default());
    let builder = Tollgate::builder()
        .plans([Plan::new("free").rule(Rate::per_second(100))])
        .usage(Arc::clone(&sink))
        .clock(Arc::new(clock.clone()))
        .public(["/open", "/docs/*"]);
    let gate = setup(builder).build().expect("a legal gate");
    let server = serve(
        routes()
            .layer(gate.layer())
            .route_service("/health", gate.health()),
    )
    .await;
    Stand {
        gate,
        sink,
        clock,
        server,
    }
}

impl Stand {
    async fn issue(&self, new: NewKey) -> IssuedKey {
        self.gate.keys().issue(new).await.expect("a key")
    }

    async fn call(&self, method: &str, path: &str, key: &str) -> Answer {
        let mut request = request(method, path);
        request
            .headers_mut()
            .insert("x-api-key", key.parse().expect("a header value"));
        self.server.send(request).await
    }

    /// All events of calls that have ended, once everything has.
    async fn events(&self) -> Vec<UsageEvent> {
        for _ in 0..5_000 {
            if self.gate.usage().counters().open == 0 {
                self.gate.usage().flush().await;
                return self.sink.events();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("a call is still open: {:?}", self.gate.usage().counters());
    }
}

fn acme() -> NewKey {
    NewKey::for_tenant("acme").plan("free")
}

#[tokio::test]
async fn each_outcome_has_its_answer_and_its_event() {
    let stand = stand(|builder| builder.api("chat")).await;
    let key = stand.issue(acme()).await.key;
    let cases = [
        ("GET", "/v1/hello", 200, CallOutcome::Served, "/v1/hello"),
        ("POST", "/v1/hello", 200, CallOutcome::Served, "/v1/hello"),
        ("HEAD", "/v1/hello", 200, CallOutcome::Served, "/v1/hello"),
        (
            "GET",
            "/v1/item/7",
            200,
            CallOutcome::Served,
            "/v1/item/{id}",
        ),
        ("DELETE", "/v1/hello", 405, CallOutcome::Served, "/v1/hello"),
        ("GET", "/v1/nothing", 404, CallOutcome::Served, "unmatched"),
        ("GET", "/v1/fails", 500, CallOutcome::Failed, "/v1/fails"),
        (
            "GET",
            "/v1/panics",
            500,
            CallOutcome::Panicked,
            "/v1/panics",
        ),
        (
            "GET",
            "/v1/streams",
            200,
            CallOutcome::Served,
            "/v1/streams",
        ),
        ("POST", "/v1/write", 403, CallOutcome::Refused, "/v1/write"),
        ("GET", "/v1/export", 403, CallOutcome::Refused, "/v1/export"),
    ];
    for (method, path, status, ..) in cases {
        let answer = stand.call(method, path, key.expose()).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}");
        assert_eq!(answer.header("x-request-id").len(), 32);
        if status >= 400 {
            assert_eq!(
                answer.header("content-type"),
                "application/problem+json",
                "{method} {path}"
            );
            assert!(!answer.text().contains("canary"));
        }
    }
    let mut events = stand.events().await;
    events.sort_by_key(|event| event.id);
    assert_eq!(events.len(), cases.len());
    for (event, (method, path, status, outcome, route)) in events.iter().zip(cases) {
        let seen = (&*event.method, event.status, event.outcome, &*event.route);
        assert_eq!(seen, (method, status, outcome, route), "{method} {path}");
        assert_eq!(
            (event.tenant.as_str(), event.plan.as_str(), &*event.api),
            ("acme", "free", "chat")
        );
    }
    assert_eq!(
        stand
            .sink
            .total(&TenantId::new("acme").unwrap(), "greetings"),
        4
    );
    let streamed = events
        .iter()
        .find(|event| &*event.route == "/v1/streams")
        .unwrap();
    assert_eq!(streamed.response_bytes, 13);
}

#[tokio::test]
async fn who_has_no_valid_key_is_told_the_same_whatever_is_wrong_and_makes_no_event() {
    let stand = stand(|builder| builder.failure_limit(None)).await;
    let revoked = stand.issue(acme()).await;
    stand.gate.keys().revoke(&revoked.record.id).await.unwrap();
    let expired = stand
        .issue(acme().expires_in(Duration::from_secs(60)))
        .await;
    stand.clock.advance(Duration::from_secs(61));
    let unknown = KeyFormat::default().generate(Environment::Live).unwrap();
    let mut bodies = Vec::new();
    for key in [
        revoked.key.expose(),
        expired.key.expose(),
        unknown.expose(),
        "nonsense",
    ] {
        let answer = stand.call("GET", "/v1/hello", key).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        let mut body = answer.json();
        body["instance"].take();
        bodies.push((
            body.to_string(),
            answer.header("www-authenticate").to_owned(),
        ));
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    let missing = stand.server.get("/v1/hello").await;
    assert_eq!(missing.json()["code"], "missing_credentials");
    assert!(stand.events().await.is_empty());
    assert_eq!(stand.gate.usage().counters().unidentified(401), 5);
}

#[tokio::test]
async fn a_public_path_needs_no_key_and_the_rest_does() {
    let stand = stand(|builder| builder).await;
    assert_eq!(stand.server.get("/open").await.text(), "open");
    assert_eq!(stand.server.get("/docs/page").await.text(), "page");
    assert_eq!(
        stand.server.get("/docs/nothing").await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        stand.server.get("/docs/../v1/hello").await.status,
        StatusCode::UNAUTHORIZED
    );
    let health = stand.server.get("/health").await;
    assert_eq!(
        (health.status, &health.json()["status"]),
        (StatusCode::OK, &"ok".into())
    );
}

#[tokio::test]
async fn a_payment_state_lets_through_what_it_should() {
    let stand = stand(|builder| builder).await;
    let key = stand.issue(acme()).await.key;
    let (id, now) = (TenantId::new("acme").unwrap(), stand.clock.now().wall());
    let in_a_day = now.saturating_add(Duration::from_secs(86_400));
    let tenants = stand.gate.tenants();
    let pay = "https://pay.example/acme";
    tenants
        .update(&id, |record| record.pay_url = Some(pay.into()))
        .await
        .unwrap();
    let status = async |method| {
        stand
            .call(method, "/v1/hello", key.expose())
            .await
            .status
            .as_u16()
    };

    let suspend_at = Some(in_a_day.saturating_add(Duration::from_secs(86_400)));
    let grace = AccessState::Grace {
        until: in_a_day,
        suspend_at,
    };
    tenants.set_access(&id, grace).await.unwrap();
    assert_eq!((status("GET").await, status("POST").await), (200, 200));
    let answer = stand.call("GET", "/v1/hello", key.expose()).await;
    assert_eq!(answer.header("tollgate-access"), "grace");

    stand.clock.advance(Duration::from_secs(86_400));
    assert_eq!(
        (
            status("GET").await,
            status("HEAD").await,
            status("POST").await
        ),
        (200, 200, 402)
    );
    let refused = stand.call("POST", "/v1/hello", key.expose()).await;
    assert_eq!(
        (&refused.json()["code"], &refused.json()["pay_url"]),
        (&"read_only".into(), &pay.into())
    );

    stand.clock.advance(Duration::from_secs(86_400));
    assert_eq!((status("GET").await, status("POST").await), (402, 402));
    tenants.set_access(&id, AccessState::Closed).await.unwrap();
    assert_eq!(status("GET").await, 401);
    tenants.set_access(&id, AccessState::Active).await.unwrap();
    assert_eq!((status("GET").await, status("POST").await), (200, 200));
    assert!(
        stand
            .events()
            .await
            .iter()
            .any(|event| event.refused.as_deref() == Some("read_only"))
    );
}

#[tokio::test]
async fn a_plan_edited_while_traffic_flows_takes_effect_on_the_next_call() {
    let stand = stand(|builder| builder.plans([Plan::new("free").rule(Quota::daily(2))])).await;
    let key = stand.issue(acme()).await.key;
    let status = async || {
        stand
            .call("GET", "/v1/hello", key.expose())
            .await
            .status
            .as_u16()
    };
    assert_eq!(
        [status().await, status().await, status().await],
        [200, 200, 429]
    );
    let document = PlanDocument::from_json(
        r#"{"plans": [{"name": "free", "rules": [{"kind": "quota", "limit": 3, "period": "day"}]}]}"#,
    );
    stand
        .gate
        .plans()
        .replace_from_document(&document.unwrap())
        .unwrap();
    assert_eq!(
        [status().await, status().await],
        [200, 429],
        "three of which two were used"
    );
    let wrong = stand
        .gate
        .plans()
        .replace([Plan::new("free").rule(Rate::per(1, Duration::ZERO))]);
    assert!(
        wrong
            .unwrap_err()
            .to_string()
            .contains("plans[free].rules[0]")
    );
    assert_eq!(status().await, 429, "what does not compile changes nothing");
    let unknown = Plan::new("free").rule(Rate::per_minute(9).scope(Scope::Custom("model".into())));
    let error = stand.gate.plans().replace([unknown]).unwrap_err();
    assert_eq!(
        error.path(),
        "plans[free].rules[0].scope",
        "no hook gives its values"
    );
}

#[tokio::test]
async fn a_test_key_counts_apart_under_the_sandbox_plan_and_is_marked_in_its_event() {
    let stand = stand(|builder| {
        let plans = [
            Plan::new("free").rule(Quota::daily(1)),
            Plan::new("sandbox").rule(Quota::daily(2)),
        ];
        builder.plans(plans).sandbox("sandbox")
    })
    .await;
    let live = stand.issue(acme()).await.key;
    let test = stand.issue(acme().environment(Environment::Test)).await.key;
    let status = async |key: &str| stand.call("GET", "/v1/hello", key).await.status.as_u16();
    assert_eq!(
        [status(live.expose()).await, status(live.expose()).await],
        [200, 429]
    );
    let of_test = [
        status(test.expose()).await,
        status(test.expose()).await,
        status(test.expose()).await,
    ];
    assert_eq!(of_test, [200, 200, 429]);
    let events = stand.events().await;
    let sandboxed = events
        .iter()
        .filter(|event| event.environment == Environment::Test);
    assert_eq!(
        sandboxed
            .map(|event| event.plan.as_str())
            .collect::<Vec<_>>(),
        ["sandbox"; 3]
    );
}

#[tokio::test]
async fn a_ceiling_counts_all_tenants_and_is_given_back_what_a_tenants_own_rule_refuses() {
    let stand = stand(|builder| {
        builder
            .plans([Plan::new("free").rule(Quota::daily(1))])
            .ceiling(Rate::per_minute(3))
    })
    .await;
    let (red, blue) = (
        stand.issue(acme()).await.key,
        NewKey::for_tenant("blue").plan("free"),
    );
    let blue = stand.issue(blue).await.key;
    let status = async |key: &str| stand.call("GET", "/v1/hello", key).await.status.as_u16();
    assert_eq!(status(red.expose()).await, 200);
    for _ in 0..5 {
        let refused = stand.call("GET", "/v1/hello", red.expose()).await;
        assert_eq!(
            refused.json()["code"],
            "quota_exceeded",
            "the ceiling of three is not eaten up"
        );
    }
    assert_eq!(status(blue.expose()).await, 200);
    assert_eq!(
        stand.call("GET", "/v1/hello", blue.expose()).await.json()["code"],
        "quota_exceeded"
    );
}

#[tokio::test]
async fn a_ceiling_sees_the_client_behind_a_proxy_and_leaves_public_paths_alone() {
    let stand = stand(|builder| {
        builder
            .client_addr(TrustedProxies::new(["127.0.0.1"]).unwrap())
            .ceiling(Rate::per_minute(1).scope(Scope::Address))
    })
    .await;
    let key = stand.issue(acme()).await.key;
    let status = async |from: &str| {
        let mut request = request("GET", "/v1/hello");
        for (name, value) in [("x-api-key", key.expose()), ("x-forwarded-for", from)] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        stand.server.send(request).await.status.as_u16()
    };
    assert_eq!(
        [status("192.0.2.1").await, status("192.0.2.1").await],
        [200, 429]
    );
    assert_eq!(status("192.0.2.2").await, 200);
    for _ in 0..3 {
        assert_eq!(stand.server.get("/open").await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_quota_that_is_used_up_names_the_plan_and_where_to_buy_more() {
    let url = "https://shop.example/upgrade";
    let stand = stand(|builder| {
        builder.plans([Plan::new("free").rule(Quota::monthly(1)).upgrade_url(url)])
    })
    .await;
    let key = stand.issue(acme()).await.key;
    stand.call("GET", "/v1/hello", key.expose()).await;
    let mut problem = stand.call("GET", "/v1/hello", key.expose()).await.json();
    problem["instance"].take();
    let expected = serde_json::json!({
        "type": "https://docs.rs/tollgate/latest/tollgate/guide/errors/index.html#quota_exceeded",
        "title": "Quota exceeded",
        "status": 429,
        "code": "quota_exceeded",
        "detail": "The plan's quota is used up. Upgrade to continue",
        "instance": null,
        "limit": 1,
        "plan": "free",
        "remaining": 0,
        "upgrade_url": url,
        "violated-policies": ["quota"],
    });
    assert_eq!(problem, expected);
}

#[tokio::test]
async fn the_challenge_fits_what_is_read_and_is_the_same_for_a_closed_account() {
    let bearer = || Extractor::new([KeySource::Bearer]).unwrap();
    let stand = stand(|builder| builder.extractor(bearer())).await;
    let missing = stand.server.get("/v1/hello").await;
    assert_eq!(missing.header("www-authenticate"), "Bearer realm=\"api\"");
    let issued = stand.issue(acme()).await;
    let closed = stand
        .gate
        .tenants()
        .set_access(&issued.record.tenant, AccessState::Closed)
        .await;
    assert!(closed.is_ok());
    let mut request = request("GET", "/v1/hello");
    let value = format!("Bearer {}", issued.key.expose());
    request
        .headers_mut()
        .insert("authorization", value.parse().unwrap());
    let closed = stand.server.send(request).await;
    assert_eq!(
        (closed.status.as_u16(), &closed.json()["code"]),
        (401, &"account_closed".into())
    );
    assert_eq!(closed.header("www-authenticate"), "Bearer realm=\"api\"");
}

#[tokio::test]
async fn what_a_route_layer_refuses_or_the_service_fails_is_given_back_to_the_quota() {
    let stand = stand(|builder| builder.plans([Plan::new("free").rule(Quota::daily(1))])).await;
    let key = stand.issue(acme()).await.key;
    for path in ["/v1/export", "/v1/fails", "/v1/panics", "/v1/export"] {
        let answer = stand.call("GET", path, key.expose()).await;
        assert_ne!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{path}");
    }
    assert_eq!(
        stand.call("GET", "/v1/hello", key.expose()).await.status,
        StatusCode::OK
    );
    assert_eq!(
        stand.call("GET", "/v1/hello", key.expose()).await.status,
        StatusCode::TOO_MANY_REQUESTS
    );
}

#[tokio::test]
async fn limits_can_be_by_route_by_address_and_by_the_callers_own_word() {
    let stand = stand(|builder| {
        let by = |scope, name: &str| Rate::per_minute(2).scope(scope).named(name);
        let plan = Plan::new("free")
            .rule(by(Scope::Route, "by-route"))
            .rule(by(Scope::Custom("model".into()), "by-model"))
            .rule(
                Rate::per_minute(4)
                    .scope(Scope::Address)
                    .named("by-address"),
            );
        builder
            .plans([plan])
            .client_addr(TrustedProxies::new(["127.0.0.1"]).unwrap())
            .scope("model", |head: &RequestHead<'_>| {
                head.uri().query().map(str::to_owned)
            })
    })
    .await;
    let key = stand.issue(acme()).await.key;
    let code = async |path: &str, from: &str| {
        let mut request = request("GET", path);
        request
            .headers_mut()
            .insert("x-api-key", key.expose().parse().unwrap());
        request
            .headers_mut()
            .insert("x-forwarded-for", from.parse().unwrap());
        let answer = stand.server.send(request).await;
        match answer.status {
            StatusCode::OK => "ok".to_owned(),
            _ => answer.json()["violated-policies"][0]
                .as_str()
                .unwrap()
                .to_owned(),
        }
    };
    assert_eq!(code("/v1/hello?a", "192.0.2.1").await, "ok");
    assert_eq!(code("/v1/hello?a", "192.0.2.1").await, "ok");
    assert_eq!(code("/v1/hello?b", "192.0.2.1").await, "by-route");
    assert_eq!(code("/v1/item/1?a", "192.0.2.1").await, "by-model");
    assert_eq!(code("/v1/item/1?b", "192.0.2.1").await, "ok");
    assert_eq!(code("/v1/item/2", "192.0.2.1").await, "ok");
    assert_eq!(code("/v1/streams", "192.0.2.1").await, "by-address");
    assert_eq!(code("/v1/streams", "192.0.2.2").await, "ok");
}

#[tokio::test]
async fn errors_of_the_router_and_its_layers_have_the_same_form() {
    let stand = stand(|builder| builder).await;
    let key = stand.issue(acme()).await.key;
    let mut large = Request::post("/v1/upload").header("x-api-key", key.expose());
    large
        .headers_mut()
        .unwrap()
        .insert("content-type", "text/plain".parse().unwrap());
    let large = large
        .body(http_body_util::Full::from(vec![b'x'; 101]))
        .unwrap();
    let answer = stand.server.send(large).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["code"]),
        (413, &"payload_too_large".into())
    );
    let answer = stand.call("DELETE", "/v1/hello", key.expose()).await;
    assert!(answer.header("allow").contains("GET"));
}

#[tokio::test]
async fn headers_that_speak_of_an_identity_are_the_gates_alone() {
    let seen = get(async |headers: HeaderMap| {
        let names = [
            "x-api-key",
            "authorization",
            "x-tenant-id",
            "x-plan",
            "x-consumer-id",
        ];
        let shown = names.map(|name| {
            headers
                .get(name)
                .map_or("-", |value| value.to_str().unwrap())
        });
        shown.join(" ")
    });
    for forward in [false, true] {
        let gate = Tollgate::builder()
            .plans([Plan::new("free")])
            .usage(MemorySink::new())
            .forward_headers(forward)
            .build()
            .unwrap();
        let issued = gate.keys().issue(acme()).await.unwrap();
        let server = serve(Router::new().route("/", seen.clone()).layer(gate.layer())).await;
        let mut spoof = request("GET", "/");
        for (name, value) in [
            ("x-tenant-id", "victim"),
            ("x-plan", "pro"),
            ("X-Consumer-Id", "root"),
        ] {
            spoof.headers_mut().insert(
                name.to_lowercase().parse::<http::HeaderName>().unwrap(),
                value.parse().unwrap(),
            );
        }
        let bearer = format!("bearer {}", issued.key.expose());
        spoof
            .headers_mut()
            .insert("authorization", bearer.parse().unwrap());
        let expected = if forward {
            format!("- - acme free {}", issued.record.id)
        } else {
            "- - - - -".to_owned()
        };
        assert_eq!(server.send(spoof).await.text(), expected);
    }
}

#[tokio::test]
async fn counters_and_events_add_up_to_what_the_clients_saw_by_status() {
    let plans = || {
        [
            Plan::new("free").rule(Rate::per_minute(40)),
            Plan::new("pro"),
        ]
    };
    let stand = Arc::new(stand(|builder| builder.plans(plans()).failure_limit(None)).await);
    let mut keys = vec![None, Some("tg_live_wrong".to_owned())];
    for i in 0..8 {
        let plan = if i % 2 == 0 { "free" } else { "pro" };
        let issued = stand
            .issue(NewKey::for_tenant(format!("tenant-{i}")).plan(plan))
            .await;
        keys.push(Some(issued.key.expose().to_owned()));
    }
    let mut clients = tokio::task::JoinSet::new();
    for (i, key) in keys.into_iter().enumerate() {
        let stand = Arc::clone(&stand);
        clients.spawn(async move {
            let mut seen = BTreeMap::<u16, u64>::new();
            for n in 0..100 {
                let path = ["/v1/hello", "/v1/fails", "/v1/nothing", "/v1/panics"][(n + i) % 4];
                let mut request = request("GET", path);
                if let Some(key) = &key {
                    request
                        .headers_mut()
                        .insert("x-api-key", key.parse().unwrap());
                }
                let answer = if n % 2 == 0 {
                    stand.server.send(request).await
                } else {
                    stand.server.send_http2(request).await
                };
                *seen.entry(answer.status.as_u16()).or_default() += 1;
            }
            seen
        });
    }
    let mut seen = BTreeMap::<u16, u64>::new();
    for count in clients.join_all().await {
        count
            .into_iter()
            .for_each(|(status, n)| *seen.entry(status).or_default() += n);
    }
    let mut metered = BTreeMap::<u16, u64>::new();
    for event in stand.events().await {
        *metered.entry(event.status).or_default() += 1;
    }
    let counters = stand.gate.usage().counters();
    assert!(counters.is_balanced(), "{counters:?}");
    *metered.entry(401).or_default() += counters.unidentified(401);
    assert_eq!(metered, seen);
    assert_eq!(seen.values().sum::<u64>(), 1_000);
    assert!(seen[&429] > 0 && seen[&401] == 200, "{seen:?}");
}

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
async fn a_limit_on_one_route_tells_of_itself_beside_the_plan() {
    let stand = stand(|builder| builder).await;
    let own = LimitLayer::new(MemoryLimits::new(), [Rate::per_minute(1).named("export")]).unwrap();
    let app = Router::new()
        .route("/export", get(hello).route_layer(own))
        .layer(stand.gate.layer());
    let key = stand.issue(acme()).await.key;
    let call = async || {
        let request = Request::get("/export")
            .header("x-api-key", key.expose())
            .body(Body::empty());
        app.clone().oneshot(request.unwrap()).await.unwrap()
    };
    for status in [200, 429] {
        let response = call().await;
        assert_eq!(response.status().as_u16(), status);
        let fields = response.headers().get_all("ratelimit").iter();
        let list: Vec<&str> = fields.map(|field| field.to_str().unwrap()).collect();
        assert!(list[0].starts_with("\"export\";r=0"), "{list:?}");
        assert!(list[1].starts_with("\"rate\";r="), "{list:?}");
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
