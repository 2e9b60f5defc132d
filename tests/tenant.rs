//! What a tenant may do by its payments and its plan, and how a handler learns who it is.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, routing::get};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use tollgate::{
    auth::Challenge,
    clock::{Clock, ManualClock, Timestamp},
    error::{ErrorCode, Problem},
    head::RequestHead,
    id::{PlanName, TenantId},
    identity::{Grant, Identity, PublicPath, TenantLayer},
    meter::{EventId, Meter},
    plan::{Plan, PlanCatalog},
    tenant::{AccessState, Tenant, TenantRecord, current_tenant},
};
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::common::{self, serve};

fn identity(access: AccessState) -> Identity {
    let id = TenantId::new("acme").unwrap();
    let mut record = TenantRecord::new(id, PlanName::new("free").unwrap());
    record.access = access;
    record.pay_url = Some("https://example.com/pay".into());
    let plan = Plan::new("free")
        .api("chat")
        .upgrade_url("https://example.com/upgrade");
    let catalog = PlanCatalog::new([plan]).unwrap();
    let plan = catalog.find(&record.plan).unwrap();
    Identity::new(Tenant::new(Arc::new(record)), plan, Grant::default()).unwrap()
}

fn request(method: &str, access: AccessState) -> Request<Empty<Bytes>> {
    let mut request = Request::builder()
        .method(method)
        .body(Empty::new())
        .unwrap();
    request.extensions_mut().insert(identity(access));
    request
}

/// Counts its calls and says which tenant it is called for.
fn inner(
    n_calls: &Arc<Mutex<u32>>,
) -> impl Service<
    Request<Empty<Bytes>>,
    Response = Response<Full<Bytes>>,
    Error = Infallible,
    Future: Send,
> + Clone {
    let n_calls = Arc::clone(n_calls);
    service_fn(move |_: Request<Empty<Bytes>>| {
        *n_calls.lock().unwrap() += 1;
        // Asked for while the future is made, and once more while it runs.
        let at_call = current_tenant();
        async move {
            tokio::task::yield_now().await;
            let name = |tenant: Option<Tenant>| {
                tenant.map_or_else(|| "-".to_owned(), |t| t.id().to_string())
            };
            let body = format!("{} {}", name(at_call), name(current_tenant()));
            Ok(Response::new(Full::from(body)))
        }
    })
}

struct Answer {
    status: u16,
    access: Option<String>,
    code: Option<ErrorCode>,
    body: Bytes,
    headers: http::HeaderMap,
    n_calls: u32,
}

async fn answer(layer: &TenantLayer, request: Request<Empty<Bytes>>) -> Answer {
    let n_calls = Arc::new(Mutex::new(0));
    let response = layer.layer(inner(&n_calls)).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let access = parts.headers.get("tollgate-access");
    let n_calls = *n_calls.lock().unwrap();
    Answer {
        status: parts.status.as_u16(),
        access: access.map(|value| value.to_str().unwrap().to_owned()),
        code: parts.extensions.get::<Problem>().map(Problem::code),
        body: body.collect().await.unwrap().to_bytes(),
        headers: parts.headers,
        n_calls,
    }
}

fn at(clock: &ManualClock) -> TenantLayer {
    TenantLayer::new().clock(Arc::new(clock.clone()))
}

fn later(clock: &ManualClock, seconds: u64) -> Timestamp {
    clock
        .now()
        .wall()
        .saturating_add(Duration::from_secs(seconds))
}

#[tokio::test]
async fn every_state_answers_every_method_as_the_table_says() {
    let clock = ManualClock::default();
    let layer = at(&clock);
    let grace = AccessState::Grace {
        until: later(&clock, 60),
        suspend_at: None,
    };
    let over = AccessState::Grace {
        until: later(&clock, 0),
        suspend_at: None,
    };
    let long_over = AccessState::Grace {
        until: later(&clock, 0),
        suspend_at: Some(later(&clock, 0)),
    };
    let read_only = AccessState::ReadOnly { suspend_at: None };
    let reads = ["GET", "HEAD", "OPTIONS"];
    let writes = [
        "POST", "PUT", "PATCH", "DELETE", "CONNECT", "TRACE", "PURGE",
    ];
    use ErrorCode::{AccountClosed, PaymentRequired, ReadOnly};
    type Expected = (u16, Option<&'static str>, Option<ErrorCode>);
    let table: [(AccessState, Expected, Expected); 7] = [
        (AccessState::Active, (200, None, None), (200, None, None)),
        (
            grace,
            (200, Some("grace"), None),
            (200, Some("grace"), None),
        ),
        (
            over,
            (200, Some("read-only"), None),
            (402, Some("read-only"), Some(ReadOnly)),
        ),
        (
            read_only,
            (200, Some("read-only"), None),
            (402, Some("read-only"), Some(ReadOnly)),
        ),
        (
            long_over,
            (402, None, Some(PaymentRequired)),
            (402, None, Some(PaymentRequired)),
        ),
        (
            AccessState::Suspended,
            (402, None, Some(PaymentRequired)),
            (402, None, Some(PaymentRequired)),
        ),
        (
            AccessState::Closed,
            (401, None, Some(AccountClosed)),
            (401, None, Some(AccountClosed)),
        ),
    ];
    for (state, for_reads, for_writes) in table {
        let methods = reads.map(|m| (m, for_reads)).into_iter();
        for (method, expected) in methods.chain(writes.map(|m| (m, for_writes))) {
            let answer = answer(&layer, request(method, state)).await;
            let got = (answer.status, answer.access.as_deref(), answer.code);
            assert_eq!(got, expected, "{state:?} {method}");
            assert_eq!(
                answer.n_calls,
                u32::from(expected.0 == 200),
                "{state:?} {method}"
            );
        }
    }
}

#[tokio::test]
async fn who_must_pay_is_told_where() {
    let layer = TenantLayer::new();
    for state in [
        AccessState::Suspended,
        AccessState::ReadOnly { suspend_at: None },
    ] {
        let answer = answer(&layer, request("POST", state)).await;
        let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(problem["pay_url"], "https://example.com/pay");
    }
    let closed = answer(&layer, request("GET", AccessState::Closed)).await;
    assert_eq!(closed.headers["www-authenticate"], "ApiKey realm=\"api\"");
    let layer = layer.challenge(Challenge::with_schemes("x", ["Bearer"]).unwrap());
    let closed = answer(&layer, request("GET", AccessState::Closed)).await;
    assert_eq!(closed.headers["www-authenticate"], "Bearer realm=\"x\"");
}

#[tokio::test]
async fn the_status_of_read_only_access_can_be_403() {
    let layer = TenantLayer::new().read_only_status(StatusCode::FORBIDDEN);
    let answer = answer(
        &layer,
        request("POST", AccessState::ReadOnly { suspend_at: None }),
    )
    .await;
    assert_eq!(
        (answer.status, answer.code),
        (403, Some(ErrorCode::ReadOnly))
    );
}

#[tokio::test]
async fn a_request_to_leave_http_is_no_read() {
    let layer = TenantLayer::new();
    let read_only = AccessState::ReadOnly { suspend_at: None };
    for (protocol, status) in [("websocket", 402), ("h2c, websocket", 402), ("h2c", 200)] {
        let mut request = request("GET", read_only);
        request
            .headers_mut()
            .insert("upgrade", protocol.parse().unwrap());
        assert_eq!(answer(&layer, request).await.status, status, "{protocol}");
    }
    let mut active = request("GET", AccessState::Active);
    active
        .headers_mut()
        .insert("upgrade", HeaderValue::from_static("websocket"));
    assert_eq!(answer(&layer, active).await.status, 200);
}

#[tokio::test]
async fn what_only_reads_can_be_told_by_the_service() {
    let layer =
        TenantLayer::new().reads(|head: &RequestHead<'_>| head.uri().path().ends_with("/Get"));
    for (path, status) in [("/chat.Chat/Get", 200), ("/chat.Chat/Send", 402)] {
        let mut request = request("POST", AccessState::ReadOnly { suspend_at: None });
        *request.uri_mut() = path.parse().unwrap();
        assert_eq!(answer(&layer, request).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn the_reading_of_the_meter_decides_where_there_is_one() {
    let clock = ManualClock::default();
    let started = clock.now();
    let state = AccessState::Grace {
        until: later(&clock, 10),
        suspend_at: None,
    };
    clock.advance(Duration::from_secs(60));
    let mut metered = request("POST", state);
    metered
        .extensions_mut()
        .insert(Meter::new(EventId::new(1, 1), started));
    assert_eq!(answer(&at(&clock), metered).await.status, 200);
    assert_eq!(
        answer(&at(&clock), request("POST", state)).await.status,
        402
    );
}

#[tokio::test]
async fn an_api_that_the_plan_does_not_include_is_refused() {
    let images = TenantLayer::new().api("images");
    let refused = answer(&images, request("GET", AccessState::Active)).await;
    assert_eq!(
        (refused.status, refused.code),
        (403, Some(ErrorCode::NotSubscribed))
    );
    let problem: serde_json::Value = serde_json::from_slice(&refused.body).unwrap();
    assert_eq!(problem["api"], "images");
    assert_eq!(problem["upgrade_url"], "https://example.com/upgrade");
    assert_eq!(refused.n_calls, 0);
    let chat = TenantLayer::new().api("chat");
    assert_eq!(
        answer(&chat, request("GET", AccessState::Active))
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn without_an_identity_only_a_public_path_passes() {
    let bare = || Request::new(Empty::new());
    let refused = answer(&TenantLayer::new(), bare()).await;
    assert_eq!(
        (refused.status, refused.code),
        (500, Some(ErrorCode::LayerMissing))
    );
    let problem: serde_json::Value = serde_json::from_slice(&refused.body).unwrap();
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains("TenantLayer") && detail.contains("AuthLayer"),
        "{detail}"
    );
    assert_eq!(refused.n_calls, 0);
    let mut public = bare();
    public.extensions_mut().insert(PublicPath::Path);
    assert_eq!(answer(&TenantLayer::new(), public).await.status, 200);
}

#[tokio::test]
async fn the_task_knows_its_tenant_only_if_asked_and_only_inside() {
    let off = answer(&TenantLayer::new(), request("GET", AccessState::Active)).await;
    assert_eq!(&*off.body, b"- -");
    let on = TenantLayer::new().task_local(true);
    let inside = answer(&on, request("GET", AccessState::Active)).await;
    assert_eq!(&*inside.body, b"acme acme");
    assert!(current_tenant().is_none());
}

#[tokio::test]
async fn another_task_does_not_inherit_the_tenant() {
    let service = service_fn(async |_: Request<Empty<Bytes>>| {
        let spawned = tokio::spawn(async { current_tenant().is_none() });
        assert!(spawned.await.unwrap());
        assert!(current_tenant().is_some());
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let layer = TenantLayer::new().task_local(true);
    let response = layer
        .layer(service)
        .oneshot(request("GET", AccessState::Active));
    assert_eq!(response.await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_handler_that_asks_for_a_tenant_without_the_layer_names_it() {
    let app = Router::new()
        .route(
            "/tenant",
            get(async |tenant: Tenant| tenant.id().to_string()),
        )
        .route(
            "/identity",
            get(async |identity: Identity| identity.tenant().id().to_string()),
        );
    let server = serve(app.clone()).await;
    for (path, wanted) in [("/tenant", "Tenant"), ("/identity", "Identity")] {
        let answer = server.get(path).await;
        assert_eq!(answer.status, 500);
        assert_eq!(answer.header("content-type"), "application/problem+json");
        let problem = answer.json();
        assert_eq!(problem["code"], "layer_missing");
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            detail.contains(wanted) && detail.contains("AuthLayer"),
            "{detail}"
        );
        let head = server.send(common::request("HEAD", path)).await;
        assert!(head.body.is_empty());
    }
    let identified = app
        .layer(TenantLayer::new())
        .layer(axum::Extension(identity(AccessState::Active)));
    let server = serve(identified).await;
    assert_eq!(server.get("/tenant").await.text(), "acme");
    assert_eq!(server.get("/identity").await.text(), "acme");
}
