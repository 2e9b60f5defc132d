//! The whole gate as an attacker and as a faulty service see it.

mod canary;
mod failures;
mod flood;
mod leave;
mod panics;
mod settings;
mod slow;
mod spoof;
mod stacks;
mod tenants;
mod wire;

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use tollgate::{
    Tollgate,
    auth::{KeyFormat, MemoryKeyStore},
    clock::ManualClock,
    id::Environment,
    identity::{Identity, NewKey},
    limit::Rate,
    plan::Plan,
    sink::MemorySink,
};
use tower::{Service, ServiceExt as _};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type TestBody = UnsyncBoxBody<Bytes, BoxError>;

fn boxed<B>(body: B) -> TestBody
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// A gate with the plan `free`, and what is needed to look into it.
struct Stand {
    gate: Tollgate,
    keys: Arc<MemoryKeyStore>,
    sink: MemorySink,
    clock: ManualClock,
}

fn stand(setup: impl FnOnce(tollgate::TollgateBuilder) -> tollgate::TollgateBuilder) -> Stand {
    let (sink, clock) = (MemorySink::new(), ManualClock::default());
    let keys = Arc::new(MemoryKeyStore::new());
    let builder = Tollgate::builder()
        .plans([Plan::new("free").rule(Rate::per_second(1_000_000))])
        .keys(Arc::clone(&keys))
        .usage(sink.clone())
        .trace(true)
        .clock(Arc::new(clock.clone()));
    let gate = setup(builder).build().expect("a legal gate");
    Stand {
        gate,
        keys,
        sink,
        clock,
    }
}

impl Stand {
    async fn issue(&self, tenant: &str) -> String {
        let new = NewKey::for_tenant(tenant).plan("free");
        let issued = self.gate.keys().issue(new).await.expect("a key");
        issued.key.expose().to_owned()
    }

    /// No call is open, each that was opened has been settled once, and each settled one was written once.
    async fn assert_balanced(&self) {
        self.gate.usage().flush().await;
        let counters = self.gate.usage().counters();
        assert!(counters.is_balanced(), "{counters:?}");
        assert_eq!(counters.open, 0, "{counters:?}");
        assert_eq!(counters.acked, counters.opened, "{counters:?}");
        assert_eq!(self.sink.duplicates(), 0);
    }
}

/// A key of the right form that nobody issued.
fn invented() -> String {
    let key = KeyFormat::default().generate(Environment::Live);
    key.expect("random bytes").expose().to_owned()
}

fn get<B: Default>(path: &str, headers: &[(&str, &str)]) -> Request<B> {
    let mut builder = Request::get(path);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(B::default()).expect("a valid request")
}

/// Answers with the name of the tenant it was called for.
async fn who(request: Request<Full<Bytes>>) -> Result<Response<TestBody>, Infallible> {
    let identity = request.extensions().get::<Identity>();
    let name = identity.map_or("nobody", |identity| identity.tenant().id().as_str());
    Ok(Response::new(boxed(Full::from(name.to_owned()))))
}

/// The status and the body of one call.
async fn call<S, B>(service: &S, request: Request<Full<Bytes>>) -> (u16, String)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone,
    S::Error: std::fmt::Debug,
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let response = service.clone().oneshot(request).await.expect("an answer");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("a whole body");
    let text = String::from_utf8(body.to_bytes().to_vec()).expect("a text");
    (status, text)
}
