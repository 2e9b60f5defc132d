//! What the benches measure: a limit store, and a gate around a service that does nothing.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    hint::black_box,
    num::NonZeroU32,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use http::{Request, Response};
use tollgate::{
    Tollgate,
    auth::{KeyStore, MemoryKeyStore},
    clock::{Clock, Now, SystemClock},
    id::TenantId,
    identity::{AuthLayer, KeyAuthenticator, Keys, NewKey},
    limit::{
        Cost, HeaderStyle, LimitCall, LimitLayer, LimitSet, LimitStore, MemoryLimits, Owner, Quota,
        Rate, Rule, RuleSet, ScopeValues,
    },
    meter::{MeterLayer, Recorder, UsageEvent},
    plan::{Plan, PlanCatalog},
    sink::{Filter, MemorySink},
    tenant::{MemoryTenantStore, TenantStore},
};
use tower::{Layer, Service, ServiceBuilder, service_fn};

pub(crate) const GENEROUS: u32 = 1_000_000_000;
pub(crate) const KEYS: usize = 1_000;

pub(crate) type Governor = governor::DefaultKeyedRateLimiter<String>;

pub(crate) fn governor_limiter() -> Governor {
    Governor::keyed(governor::Quota::per_second(
        NonZeroU32::new(GENEROUS).expect("not zero"),
    ))
}

pub(crate) fn names(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("tenant-{i}")).collect()
}

pub(crate) fn rate() -> Rule {
    Rate::per_second(GENEROUS.into()).into()
}

pub(crate) fn quota() -> Rule {
    Quota::monthly(1 << 50).into()
}

/// A memory store and the compiled rules of some tenants.
pub(crate) struct Limits {
    store: MemoryLimits,
    clock: SystemClock,
    sets: Vec<Arc<LimitSet>>,
    scopes: ScopeValues,
    cost: Cost,
}

impl Limits {
    pub(crate) fn new(names: &[String], rules: impl IntoIterator<Item = Rule>) -> Self {
        let rules = RuleSet::compile(rules).expect("legal rules");
        let set = |name| {
            LimitSet::new(
                Owner::tenant(TenantId::new(name).expect("a legal name")),
                Arc::clone(&rules),
            )
        };
        Self {
            store: MemoryLimits::new(),
            clock: SystemClock::new(),
            sets: names.iter().map(|name| Arc::new(set(name))).collect(),
            scopes: ScopeValues::default(),
            cost: Cost::default(),
        }
    }

    /// One check, with a reading of the clock, as governor's has one.
    pub(crate) fn check(&self, tenant: usize) {
        self.check_at(tenant, self.clock.now());
    }

    /// One check at a time that was read before, as a gate hands it down.
    pub(crate) fn check_at(&self, tenant: usize, now: Now) {
        assert!(self.admits_at(tenant, now));
    }

    /// Whether a call at this time passes.
    pub(crate) fn admits_at(&self, tenant: usize, now: Now) -> bool {
        let Self {
            store,
            sets,
            scopes,
            cost,
            ..
        } = self;
        let decision = store.try_decide(&LimitCall::new(&sets[tenant], scopes, cost, now));
        matches!(black_box(&decision), Some(Ok(it)) if it.is_admitted())
    }
}

/// A runtime whose tasks run only inside `block_on`, so that the background takes no time from what is measured.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
}

/// Polls a future that is ready at once, as it is when nothing has to wait.
pub(crate) fn finish<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("nothing here waits"),
    }
}

fn answer(_: Request<String>) -> Ready<Result<Response<String>, Infallible>> {
    ready(Ok(Response::new(String::new())))
}

/// The service alone.
pub(crate) fn bare()
-> impl Service<Request<String>, Response = Response<String>, Error = Infallible> + Clone {
    service_fn(answer)
}

/// The keys of a thousand tenants.
pub(crate) fn issue(keys: &Keys) -> Vec<String> {
    let issue = |i| {
        let new = NewKey::for_tenant(format!("tenant-{i}")).plan("pro");
        let issued = finish(keys.issue(new)).expect("a memory store");
        issued.key.expose().to_owned()
    };
    (0..KEYS).map(issue).collect()
}

fn plan() -> Plan {
    Plan::new("pro").rule(rate()).rule(quota())
}

fn nowhere() -> Filter<MemorySink, impl Fn(&UsageEvent) -> bool> {
    Filter::new(MemorySink::new(), |_: &_| false)
}

/// A service behind some layers, the keys that pass them, and the recorder that hears of the calls.
pub(crate) struct Guarded<S> {
    pub(crate) service: S,
    pub(crate) keys: Vec<String>,
    pub(crate) recorder: Recorder,
}

impl<S: Service<Request<String>, Error = Infallible>> Guarded<S> {
    /// One call with the i-th key.
    pub(crate) fn call(&mut self, i: u64) {
        let key = &self.keys[i as usize % self.keys.len()];
        call(&mut self.service, key);
    }
}

/// What identifies and meters the calls of [`KEYS`] tenants with two rules each.
pub(crate) struct Parts {
    pub(crate) authenticator: KeyAuthenticator,
    pub(crate) keys: Vec<String>,
    pub(crate) recorder: Recorder,
}

pub(crate) fn parts() -> Parts {
    let catalog = PlanCatalog::new([plan()]).expect("a legal plan");
    let keys: Arc<dyn KeyStore> = Arc::new(MemoryKeyStore::new());
    let tenants: Arc<dyn TenantStore> = Arc::new(MemoryTenantStore::new());
    let authenticator =
        KeyAuthenticator::builder(Arc::clone(&keys), Arc::clone(&tenants), catalog.clone());
    Parts {
        authenticator: authenticator.build().expect("legal settings"),
        keys: issue(&Keys::new(keys, tenants, catalog, SystemClock::shared())),
        recorder: Recorder::new(nowhere()).expect("a recorder"),
    }
}

/// Three layers: identify, limit by two rules without header fields that tell of it, meter.
pub(crate) fn three_layers() -> Guarded<
    impl Service<Request<String>, Response = Response<impl Sized>, Error = Infallible> + Clone,
> {
    let Parts {
        authenticator,
        keys,
        recorder,
    } = parts();
    let layers = ServiceBuilder::new()
        .layer(MeterLayer::new(recorder.clone()))
        .layer(AuthLayer::new(authenticator))
        .layer(LimitLayer::by_identity(MemoryLimits::new()).headers(HeaderStyle::Off));
    Guarded {
        service: layers.service(bare()),
        keys,
        recorder,
    }
}

/// A whole gate: request id, problems, meter, identity, access, ceiling, two rules.
pub(crate) fn whole_gate(headers: HeaderStyle, extensions: bool) -> Tollgate {
    Tollgate::builder()
        .plans([plan()])
        .usage(nowhere())
        .headers(headers)
        .extensions(extensions)
        .build()
        .expect("a legal gate")
}

/// A service behind a whole gate.
pub(crate) fn gate(
    headers: HeaderStyle,
    extensions: bool,
) -> Guarded<
    impl Service<Request<String>, Response = Response<impl Sized>, Error = Infallible> + Clone,
> {
    let gate = whole_gate(headers, extensions);
    Guarded {
        service: gate.layer().layer(bare()),
        keys: issue(gate.keys()),
        recorder: gate.usage().clone(),
    }
}

/// One call with the key.
pub(crate) fn call(service: &mut impl Service<Request<String>, Error = Infallible>, key: &str) {
    let request = Request::get("/")
        .header("x-api-key", key)
        .body(String::new());
    let response = finish(service.call(request.expect("a legal request")));
    assert!(black_box(response).is_ok());
}
