//! What callers are told, and what is told of them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{HeaderMap, Request, StatusCode},
    routing::get,
};
use tollgate::{
    auth::{Extractor, KeyFormat, KeySource},
    id::{Environment, TenantId},
    meter::CallOutcome,
    prelude::*,
    sink::MemorySink,
};

use super::{acme, stand};
use crate::common::{request, serve};

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
