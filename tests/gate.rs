//! The whole gate around an axum router, over real connections.

mod accounts;
mod answers;
mod limits;
mod parts;

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::DefaultBodyLimit,
    http::StatusCode,
    response::Response,
    routing::{get, post},
};
use tollgate::{
    clock::ManualClock, identity::IssuedKey, meter::UsageEvent, prelude::*, sink::MemorySink,
};

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
