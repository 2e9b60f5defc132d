// cargo run --example graceful_shutdown
//! A service that ends without losing anything: answers under way are finished and metered, usage is written, and the
//! quotas go on after the next start, also when that follows a `kill -9`.
//!
//! Start a stream (`curl -N -H "X-API-Key: $KEY" localhost:3000/v1/stream`) and press Ctrl-C, or send a SIGTERM: no
//! new connection is accepted, the stream ends as it should, and the report says that its event was written. Then
//! start again: the field `ratelimit` of `/v1/hello` counts on. `QUOTAS` names the file of the quotas.

use std::{convert::Infallible, env, error::Error, net::SocketAddr, time::Duration};

use axum::{Router, body::Body, response::Response, routing::get};
use tokio_stream::{StreamExt, wrappers::IntervalStream};
use tollgate::{Document, prelude::*};

const KEY: &str = "tg_live_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ3d9ffH";
/// Longer than any answer takes, shorter than whoever stops the process waits before a SIGKILL.
const DEADLINE: Duration = Duration::from_secs(10);

async fn hello(tenant: Tenant) -> String {
    format!("hello {}\n", tenant.id())
}

/// Twenty words in two seconds, each a token.
async fn stream(meter: Meter) -> Response {
    let ticks = IntervalStream::new(tokio::time::interval(Duration::from_millis(100)));
    let words = ticks.take(20).map(move |_| {
        meter.add("tokens", 1);
        Ok::<_, Infallible>("word ")
    });
    Response::new(Body::from_stream(words))
}

/// Ctrl-C, or what a process manager sends.
async fn asked_to_stop() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            return;
        }
    }
    drop(tokio::signal::ctrl_c().await);
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt()
        .with_env_filter("info")
        .with_writer(std::io::stderr)
        .init();
    let quotas = env::var("QUOTAS").map_or_else(
        |_| env::temp_dir().join(format!("tollgate-{}", std::process::id())),
        Into::into,
    );
    let gate = Tollgate::builder()
        .document(Document::read("examples/tollgate.toml")?)
        // After a kill at most the last second is forgotten, after a shutdown nothing.
        .quota_snapshot(quotas, Duration::from_secs(1))
        .build()?;

    let app = Router::new()
        .route("/v1/hello", get(hello))
        .route("/v1/stream", get(stream))
        .layer(gate.layer())
        .route_service("/health", gate.health());
    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    println!("key: {KEY}");

    // axum waits for open connections without an end; a client that never reads must not hold the process.
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    let (stopping, stopped) = tokio::sync::oneshot::channel::<()>();
    let stop = async move {
        asked_to_stop().await;
        println!("stopping: no new connections");
        drop(stopping);
    };
    let serve = axum::serve(listener, service).with_graceful_shutdown(stop);
    tokio::select! {
        served = serve => served?,
        () = async { drop(stopped.await); tokio::time::sleep(DEADLINE).await } => {
            println!("some connections took too long");
        }
    }
    let report = gate.shutdown(DEADLINE).await;
    println!("stopped: {report:?}");
    Ok(())
}
