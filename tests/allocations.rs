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
use tower::{Layer, Service, ServiceBuilder, service_fn};

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

fn added_by_gate(headers: HeaderStyle) -> u64 {
    let runtime = runtime();
    let _inside = runtime.enter();
    let gate = Tollgate::builder()
        .plans([plan()])
        .usage(MemorySink::new())
        .headers(headers)
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
    // The call that is metered, the charge that ends with it, and one for each of the two extensions.
    assert_eq!(added(&mut service, &key), 4);
}

#[test]
fn a_gate_without_header_fields_of_limits_allocates_little() {
    // Beside those of the layers: the request's id.
    assert_eq!(added_by_gate(HeaderStyle::Off), 5);
}

#[test]
fn a_whole_gate_allocates_little() {
    // One more for each of `RateLimit` and `RateLimit-Policy`.
    assert_eq!(added_by_gate(HeaderStyle::Draft11), 7);
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
