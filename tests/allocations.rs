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

use http::{
    HeaderValue, Request, Response,
    header::{ACCEPT, CONTENT_TYPE, HOST},
};
use tollgate::{
    Tollgate,
    auth::{KeyStore, MemoryKeyStore},
    clock::SystemClock,
    head::PeerAddress,
    identity::{AuthLayer, KeyAuthenticator, Keys, NewKey},
    limit::{HeaderStyle, LimitLayer, MemoryLimits, Quota, Rate},
    meter::{MeterLayer, Recorder},
    plan::{Plan, PlanCatalog},
    sink::MemorySink,
    tenant::{MemoryTenantStore, TenantStore},
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
