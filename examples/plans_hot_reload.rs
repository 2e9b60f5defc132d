// cargo run --example plans_hot_reload
//! Plans, tenants and keys from `examples/tollgate.toml`, changed while traffic flows: quotas keep what was used.
//!
//! Call `/v1/hello` some times, edit the file's `limit = 100`, send the process a SIGHUP (`kill -HUP <pid>`), and
//! call again: the field `ratelimit` counts on from there. `POST /reload` with a document as its body does the same;
//! a document with a fault is answered with its place, and changes nothing. `GET /document` shows what the gate holds.
//! `DOCUMENT` names another file.

use std::{env, error::Error, net::SocketAddr, time::Duration};

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use tollgate::{Document, prelude::*};

const KEY: &str = "tg_live_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ3d9ffH";

async fn hello(tenant: Tenant) -> String {
    format!("hello {}\n", tenant.id())
}

/// For the service's own people: in a service of yours behind their own authentication, or on another port.
async fn reload(State(gate): State<Tollgate>, text: String) -> (StatusCode, String) {
    match Document::from_toml(&text).and_then(|document| gate.reload(document)) {
        Ok(report) => (StatusCode::OK, format!("{report}\n")),
        Err(fault) => (StatusCode::BAD_REQUEST, format!("{fault}\n")),
    }
}

async fn document(State(gate): State<Tollgate>) -> String {
    gate.document()
        .to_toml()
        .unwrap_or_else(|error| error.to_string())
}

/// Reads the file again at each SIGHUP, as servers have done since before there were containers.
#[cfg(unix)]
async fn reload_at_hangup(gate: Tollgate, path: String) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangups = signal(SignalKind::hangup())?;
    while hangups.recv().await.is_some() {
        match Document::read(&path).and_then(|document| gate.reload(document)) {
            Ok(report) => println!("reloaded: {report}"),
            Err(fault) => println!("not reloaded: {fault}"),
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let path = env::var("DOCUMENT").unwrap_or_else(|_| "examples/tollgate.toml".to_owned());
    let gate = Tollgate::builder()
        .document(Document::read(&path)?)
        .quantities(["tokens"])
        .build()?;
    #[cfg(unix)]
    tokio::spawn(reload_at_hangup(gate.clone(), path));

    let app = Router::new()
        .route("/v1/hello", get(hello))
        .layer(gate.layer())
        .route("/reload", post(reload))
        .route("/document", get(document))
        .with_state(gate.clone());

    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    println!("key: {KEY}");
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    let stop = async { drop(tokio::signal::ctrl_c().await) };
    axum::serve(listener, service)
        .with_graceful_shutdown(stop)
        .await?;
    println!("{:?}", gate.shutdown(Duration::from_secs(5)).await);
    Ok(())
}
