//! How many allocations a gate adds to an admitted request: a target of its own, because it replaces the
//! allocator by one that counts.
//!
//! The service answers at once, with a body and a header field of its own. Its request has an extension already,
//! as a server's has, and fields whose values can be shared without an allocation.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use aws_lc_rs::hmac;
use axum::{Router, body::Body, routing::get};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{
    HeaderValue, Request, Response,
    header::{ACCEPT, CONTENT_TYPE, HOST},
};
use tollgate::{
    Tollgate,
    auth::{Extractor, KeyStore, MemoryKeyStore, jwt::SharedSecret},
    clock::{Clock as _, SystemClock},
    head::{PeerAddress, RequestHead},
    id::{PlanName, TenantId},
    identity::{
        Attempt, AuthLayer, Authenticate as _, JwtAuthenticator, KeyAuthenticator, Keys, NewKey,
    },
    limit::{HeaderStyle, LimitLayer, MemoryLimits, Quota, Rate},
    meter::{MeterLayer, Recorder},
    plan::{Plan, PlanCatalog},
    sink::MemorySink,
    tenant::{MemoryTenantStore, TenantRecord, TenantStore},
};
use tower::{Layer, Service, ServiceBuilder, layer::layer_fn, service_fn};

fn finish<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("nothing here waits"),
    }
}

fn hello(_: Request<String>) -> Ready<Result<Response<String>, Infallible>> {
    let response = Response::builder().header(CONTENT_TYPE, "text/plain");
    ready(Ok(response.body("hello".to_owned()).unwrap()))
}

fn request(key: &str) -> Request<String> {
    Request::get("/")
        .header(HOST, HeaderValue::from_static("api.example.com"))
        .header(ACCEPT, HeaderValue::from_static("*/*"))
        .header("x-api-key", key)
        .extension(PeerAddress("192.0.2.7:4711".parse().unwrap()))
        .body(String::new())
        .unwrap()
}

/// Allocations from a call to the end of its answer.
fn allocations(service: &mut impl Service<Request<String>>, key: &str) -> u64 {
    let mut count = || {
        let request = request(key);
        allocation_counter::measure(|| drop(finish(service.call(request)))).count_total
    };
    // What is made once is made by the first calls.
    count();
    count();
    count()
}

/// Allocations that the layers add to what the service makes by itself.
fn added(service: &mut impl Service<Request<String>>, key: &str) -> u64 {
    allocations(service, key) - allocations(&mut service_fn(hello), key)
}

fn plan() -> Plan {
    Plan::new("pro")
        .rule(Rate::per_second(1_000))
        .rule(Quota::monthly(1_000_000))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
}

fn issue(keys: &Keys) -> String {
    let issued = finish(keys.issue(NewKey::for_tenant("acme").plan("pro"))).unwrap();
    issued.key.expose().to_owned()
}

fn added_by_gate(headers: HeaderStyle, extensions: bool) -> u64 {
    let runtime = runtime();
    let _inside = runtime.enter();
    let gate = Tollgate::builder()
        .plans([plan()])
        .usage(MemorySink::new())
        .headers(headers)
        .extensions(extensions)
        .build()
        .unwrap();
    added(
        &mut gate.layer().layer(service_fn(hello)),
        &issue(gate.keys()),
    )
}

#[test]
fn identifying_limiting_and_metering_allocate_little() {
    let runtime = runtime();
    let _inside = runtime.enter();
    let clock = SystemClock::shared();
    let catalog = PlanCatalog::new([plan()]).unwrap();
    let keys: Arc<dyn KeyStore> = Arc::new(MemoryKeyStore::new());
    let tenants: Arc<dyn TenantStore> = Arc::new(MemoryTenantStore::new());
    let authenticator =
        KeyAuthenticator::builder(Arc::clone(&keys), Arc::clone(&tenants), catalog.clone());
    let limits = LimitLayer::by_identity(MemoryLimits::new()).headers(HeaderStyle::Off);
    let mut service = ServiceBuilder::new()
        .layer(MeterLayer::new(Recorder::new(MemorySink::new()).unwrap()))
        .layer(AuthLayer::new(authenticator.build().unwrap()))
        .layer(limits)
        .service(service_fn(hello));
    let key = issue(&Keys::new(keys, tenants, catalog, clock));
    // The call that is metered, and one for each of the two extensions.
    assert_eq!(added(&mut service, &key), 3);
}

/// The values of header fields (the request's id, `RateLimit`) share rooms of 4 KiB, so that one call in fifty
/// or so allocates for them; the third call, which is measured, does not.
#[test]
fn a_gate_that_tells_nobody_anything_allocates_the_call_alone() {
    assert_eq!(added_by_gate(HeaderStyle::Off, false), 1);
}

#[test]
fn a_whole_gate_adds_two_extensions_and_nothing_for_header_fields() {
    assert_eq!(added_by_gate(HeaderStyle::Off, true), 3);
    assert_eq!(added_by_gate(HeaderStyle::Draft11, true), 3);
}

/// A service behind a layer that does nothing. The layer has settings, as axum boxes a clone of each layer for each
/// call, and a box of nothing would be none.
#[derive(Clone)]
struct Empty<S>(S);

impl<S: Service<Request<Body>>> Service<Request<Body>> for Empty<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        self.0.call(request)
    }
}

fn allocations_of_axum(app: Router, key: &str) -> u64 {
    let mut app = app.into_service();
    let mut count = || {
        let request = request(key).map(Body::from);
        allocation_counter::measure(|| drop(finish(app.call(request)))).count_total
    };
    count();
    count();
    count()
}

/// Over one empty layer. Without header fields and extensions: the call, and axum's own box around a body that is
/// no longer its own. With them: one more for each of the two extensions.
#[test]
fn a_gate_adds_little_to_an_axum_request() {
    let router = || Router::new().route("/", get(|| async { "hello" }));
    for (headers, extensions, n_added) in [
        (HeaderStyle::Off, false, 2),
        (HeaderStyle::Draft11, true, 4),
    ] {
        let runtime = runtime();
        let _inside = runtime.enter();
        let gate = Tollgate::builder()
            .plans([plan()])
            .usage(MemorySink::new())
            .headers(headers)
            .extensions(extensions)
            .build()
            .unwrap();
        let key = issue(gate.keys());
        let settings = Arc::new(());
        let empty = layer_fn(move |service| {
            let _ = &settings;
            Empty(service)
        });
        let empty = allocations_of_axum(router().layer(empty), &key);
        let gated = allocations_of_axum(router().layer(gate.layer()), &key);
        assert_eq!(gated - empty, n_added, "{gated} of {empty}");
    }
}

#[test]
fn a_token_seen_before_is_judged_without_an_allocation() {
    let secret = [7; 32];
    let tenants = MemoryTenantStore::from_records([TenantRecord::new(
        TenantId::new("acme").unwrap(),
        PlanName::new("free").unwrap(),
    )]);
    let tokens = JwtAuthenticator::builder()
        .issuer_with_secret("idp", SharedSecret::hs256(secret).unwrap())
        .audience("api")
        .build(
            Arc::new(tenants.unwrap()),
            PlanCatalog::new([Plan::new("free")]).unwrap(),
        )
        .unwrap();
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let claims = r#"{"iss":"idp","aud":"api","tenant":"acme","scope":"a b","exp":9999999999}"#;
    let signed = format!("{}.{}", part(r#"{"alg":"HS256"}"#), part(claims));
    let tag = hmac::sign(
        &hmac::Key::new(hmac::HMAC_SHA256, &secret),
        signed.as_bytes(),
    );
    let request = request(&format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag)));
    let head = RequestHead::from(&request);
    let clock = SystemClock::new();
    let extractor = Extractor::default();
    let judge = || {
        let credential = extractor.extract(&head).unwrap();
        let attempt = tokens.authenticate(credential.as_ref(), &head, clock.now());
        assert!(matches!(attempt, Attempt::Done(Ok(_))));
    };
    let count = || allocation_counter::measure(judge).count_total;
    assert!(count() > 0, "verified, and remembered");
    assert_eq!(count(), 0);
}
