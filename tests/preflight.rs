//! CORS preflights: who passes without a key, and what counts them.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    http::Request,
    routing::{any, get},
};
use bytes::Bytes;
use http_body_util::Full;
use tollgate::{TollgateBuilder, clock::ManualClock, prelude::*, sink::MemorySink};
use tower_http::cors::{Any, CorsLayer};

use crate::common::{Answer, Server, request, serve};

struct Stand {
    gate: Tollgate,
    sink: MemorySink,
    clock: ManualClock,
    server: Server,
}

/// Where the CORS layer stands.
#[derive(Clone, Copy, PartialEq)]
enum Cors {
    Inside,
    Outside,
    Nowhere,
}

async fn stand(cors: Cors, setup: impl FnOnce(TollgateBuilder) -> TollgateBuilder) -> Stand {
    let (sink, clock) = (MemorySink::new(), ManualClock::default());
    let builder = Tollgate::builder()
        .plans([Plan::new("free").rule(Quota::daily(100))])
        .usage(sink.clone())
        .clock(Arc::new(clock.clone()));
    let gate = setup(builder).build().expect("a gate");
    let layer = CorsLayer::new()
        .allow_origin(Any)
        .allow_methods(Any)
        .allow_headers(Any);
    let mut routes = Router::new()
        .route("/v1/hello", get(async || "hello"))
        .route("/v1/any", any(async || "served"));
    if cors == Cors::Inside {
        routes = routes.layer(layer.clone());
    }
    routes = routes.layer(gate.layer());
    if cors == Cors::Outside {
        routes = routes.layer(layer);
    }
    let server = serve(routes).await;
    Stand {
        gate,
        sink,
        clock,
        server,
    }
}

fn with(
    mut request: Request<Full<Bytes>>,
    fields: &[(&'static str, &str)],
) -> Request<Full<Bytes>> {
    for (name, value) in fields {
        request
            .headers_mut()
            .append(*name, value.parse().expect("a value"));
    }
    request
}

const ORIGIN: (&str, &str) = ("origin", "https://app.example.com");
const ASKED: (&str, &str) = ("access-control-request-method", "GET");

fn preflight(path: &str) -> Request<Full<Bytes>> {
    with(request("OPTIONS", path), &[ORIGIN, ASKED])
}

impl Stand {
    async fn key(&self) -> String {
        let new = NewKey::for_tenant("acme").plan("free");
        self.gate
            .keys()
            .issue(new)
            .await
            .expect("a key")
            .key
            .expose()
            .to_owned()
    }

    async fn both(&self, request: Request<Full<Bytes>>) -> [Answer; 2] {
        [
            self.server.send(request.clone()).await,
            self.server.send_http2(request).await,
        ]
    }

    async fn no_event(&self) {
        let counters = self.gate.usage().counters();
        assert_eq!(counters.opened, 0, "no tenant pays for it");
        self.gate.usage().flush().await;
        assert!(self.sink.events().is_empty());
    }
}

#[tokio::test]
async fn a_cors_layer_outside_answers_before_the_gate() {
    let stand = stand(Cors::Outside, |builder| builder).await;
    for answer in stand.both(preflight("/v1/hello")).await {
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("access-control-allow-origin"), "*");
        assert!(
            !answer.headers.contains_key("x-request-id"),
            "the gate was not asked"
        );
    }
    let refused = stand
        .server
        .send(with(request("GET", "/v1/hello"), &[ORIGIN]))
        .await;
    assert_eq!(refused.status, 401);
    assert_eq!(
        refused.header("access-control-allow-origin"),
        "*",
        "the page may read it"
    );
    stand.no_event().await;
}

#[tokio::test]
async fn a_cors_layer_inside_is_reached_where_preflights_pass() {
    let stand = stand(Cors::Inside, |builder| builder.pass_preflight(true)).await;
    for answer in stand.both(preflight("/v1/hello")).await {
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("access-control-allow-origin"), "*");
        assert_eq!(answer.header("x-request-id").len(), 32);
        assert!(!answer.headers.contains_key("ratelimit"), "nobody's limits");
    }
    stand.no_event().await;
    let key = stand.key().await;
    let call = with(request("GET", "/v1/hello"), &[ORIGIN, ("x-api-key", &key)]);
    assert_eq!(stand.server.send(call).await.status, 200);
}

#[tokio::test]
async fn no_preflight_passes_unless_it_is_asked_for() {
    let stand = stand(Cors::Inside, |builder| builder).await;
    assert_eq!(stand.server.send(preflight("/v1/hello")).await.status, 401);
}

#[tokio::test]
async fn what_only_looks_like_a_preflight_needs_a_key() {
    let stand = stand(Cors::Nowhere, |builder| {
        builder.pass_preflight(true).failure_limit(None)
    })
    .await;
    assert_eq!(
        stand.server.send(preflight("/v1/any")).await.text(),
        "served"
    );
    let method = |method| ("access-control-request-method", method);
    let cases: [(&str, &[(&str, &str)]); 11] = [
        ("OPTIONS", &[]),
        ("OPTIONS", &[ORIGIN]),
        ("OPTIONS", &[ASKED]),
        ("GET", &[ORIGIN, ASKED]),
        ("POST", &[ORIGIN, ASKED]),
        ("DELETE", &[ORIGIN, ASKED]),
        ("OPTIONS", &[ORIGIN, ORIGIN, ASKED]),
        ("OPTIONS", &[ORIGIN, ASKED, ASKED]),
        ("OPTIONS", &[("origin", ""), ASKED]),
        ("OPTIONS", &[("origin", "app"), ASKED]),
        ("OPTIONS", &[ORIGIN, method("GET, POST")]),
    ];
    for (verb, fields) in cases {
        // A client of hyper leaves no choice of the casing, the rest is sent as it stands.
        for answer in stand.both(with(request(verb, "/v1/any"), fields)).await {
            assert_eq!(answer.status, 401, "{verb} {fields:?}");
        }
    }
    // Other methods of the real world: case counts.
    let lower = Request::builder().method("options").uri("/v1/any");
    let lower = with(
        lower.body(Full::default()).expect("a request"),
        &[ORIGIN, ASKED],
    );
    assert_eq!(stand.server.send(lower).await.status, 401);
}

#[tokio::test]
async fn preflights_pass_on_the_named_paths_alone() {
    let stand = stand(Cors::Nowhere, |builder| {
        builder.pass_preflight_on(["/v1/any", "/v2/*"])
    })
    .await;
    assert_eq!(stand.server.send(preflight("/v1/any")).await.status, 200);
    assert_eq!(stand.server.send(preflight("/v2/x")).await.status, 404);
    assert_eq!(stand.server.send(preflight("/v1/hello")).await.status, 401);
    assert_eq!(
        stand.server.send(preflight("/v2/../v1/hello")).await.status,
        401
    );
    let wrong = Tollgate::builder()
        .plans([Plan::new("free")])
        .pass_preflight_on(["/ok", "v1/*"])
        .build();
    assert_eq!(wrong.unwrap_err().path(), "pass_preflight_on[1]");
}

#[tokio::test]
async fn a_preflight_with_a_key_is_still_nobodys() {
    let stand = stand(Cors::Nowhere, |builder| builder.pass_preflight(true)).await;
    let key = stand.key().await;
    for _ in 0..3 {
        let answer = stand
            .server
            .send(with(preflight("/v1/any"), &[("x-api-key", &key)]))
            .await;
        assert_eq!(answer.status, 200);
        assert!(!answer.headers.contains_key("ratelimit"));
    }
    stand.no_event().await;
    assert_eq!(stand.gate.usage().counters().unidentified(200), 3);
}

#[tokio::test]
async fn a_preflight_is_not_charged_to_an_identity_from_outside() {
    let sink = MemorySink::new();
    let gate = Tollgate::builder()
        .plans([Plan::new("free").rule(Quota::daily(1))])
        .usage(sink.clone())
        .inserted_identity(true)
        .pass_preflight(true)
        .build()
        .expect("a gate");
    let plan = Arc::new(
        Plan::new("free")
            .rule(Quota::daily(1))
            .compile()
            .expect("a plan"),
    );
    let tenant = tollgate::id::TenantId::new("acme").expect("an id");
    let identity = Identity::of_tenant(tenant, plan);
    let routes = Router::new()
        .route("/v1/any", any(async || "served"))
        .layer(gate.layer())
        .layer(axum::Extension(identity));
    let server = serve(routes).await;
    for _ in 0..3 {
        assert_eq!(server.send(preflight("/v1/any")).await.status, 200);
    }
    assert_eq!(gate.usage().counters().opened, 0);
    assert_eq!(server.get("/v1/any").await.status, 200);
    assert_eq!(
        server.get("/v1/any").await.status,
        429,
        "the quota was whole"
    );
}

#[tokio::test]
async fn a_flood_of_preflights_is_stopped_by_the_ceiling() {
    let stand = stand(Cors::Nowhere, |builder| {
        builder.pass_preflight(true).ceiling(Rate::per_minute(2))
    })
    .await;
    for status in [200, 200, 429, 429] {
        assert_eq!(stand.server.send(preflight("/v1/any")).await.status, status);
    }
    stand.clock.advance(Duration::from_secs(60));
    assert_eq!(stand.server.send(preflight("/v1/any")).await.status, 200);
    stand.no_event().await;
}

#[tokio::test]
async fn a_flood_of_preflights_under_a_limit_of_their_own_takes_nothing_from_callers() {
    let stand = stand(Cors::Nowhere, |builder| {
        builder
            .pass_preflight(true)
            .ceiling(Rate::per_minute(2))
            .preflight_limit(Rate::per_minute(3).scope(Scope::Address))
    })
    .await;
    let key = stand.key().await;
    for status in [200, 200, 200, 429, 429] {
        let answer = stand.server.send(preflight("/v1/any")).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.headers.contains_key("retry-after"), status == 429);
    }
    for status in [200, 200, 429] {
        let call = with(request("GET", "/v1/hello"), &[("x-api-key", &key)]);
        assert_eq!(stand.server.send(call).await.status, status);
    }
    stand.clock.advance(Duration::from_secs(20));
    assert_eq!(stand.server.send(preflight("/v1/any")).await.status, 200);
}

#[tokio::test]
async fn each_method_is_charged_but_a_preflight() {
    let stand = stand(Cors::Nowhere, |builder| builder.pass_preflight(true)).await;
    let key = stand.key().await;
    let quota_left = async |request: Request<Full<Bytes>>| {
        let answer = stand
            .server
            .send(with(request, &[("x-api-key", &key)]))
            .await;
        let left = answer
            .headers
            .get("ratelimit")
            .map(|left| left.to_str().expect("a text").to_owned());
        (
            answer.status.as_u16(),
            left.map(|left| left.split(';').nth(1).expect("a rest").to_owned()),
        )
    };
    for (place, (method, path, status)) in [
        ("GET", "/v1/any", 200),
        ("HEAD", "/v1/any", 200),
        ("OPTIONS", "/v1/any", 200),
        ("POST", "/nowhere", 404),
        ("DELETE", "/v1/hello", 405),
    ]
    .into_iter()
    .enumerate()
    {
        let (answered, left) = quota_left(request(method, path)).await;
        assert_eq!(
            (answered, left),
            (status, Some(format!("r={}", 99 - place))),
            "{method} {path}"
        );
    }
    assert_eq!(quota_left(preflight("/v1/any")).await, (200, None));
    assert_eq!(
        quota_left(request("GET", "/v1/any")).await.1.as_deref(),
        Some("r=94")
    );
}
