// cargo run --example custom_usage_sink
//! Usage written to a place of one's own: here a file of JSON lines, one for each event.
//!
//! A sink is one trait with one method. It may be slow or fail: no request waits for it, and what it has not
//! accepted is offered again.

use std::{
    collections::HashSet, env, error::Error, net::SocketAddr, path::PathBuf, time::Duration,
};

use async_trait::async_trait;
use axum::{Router, routing::get};
use tokio::{fs::OpenOptions, io::AsyncWriteExt, sync::Mutex};
use tollgate::{
    Tollgate,
    identity::NewKey,
    limit::Rate,
    meter::{EventId, UsageEvent},
    plan::Plan,
    sink::{SinkError, UsageSink, Verdicts},
    tenant::Tenant,
};

#[derive(Debug)]
struct JsonLines {
    path: PathBuf,
    /// A batch may be offered twice (after a time-out, say): what is in the file already is not written again.
    written: Mutex<HashSet<EventId>>,
}

#[async_trait]
impl UsageSink for JsonLines {
    async fn write(&self, batch: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        let mut written = self.written.lock().await;
        let mut lines = Vec::new();
        for event in batch.iter().filter(|event| !written.contains(&event.id)) {
            serde_json::to_writer(&mut lines, event)
                .map_err(|e| SinkError::Unavailable(e.into()))?;
            lines.push(b'\n');
        }
        let append = async {
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&self.path)
                .await?;
            file.write_all(&lines).await?;
            file.sync_data().await
        };
        append
            .await
            .map_err(|error| SinkError::Unavailable(error.into()))?;
        written.extend(batch.iter().map(|event| event.id));
        Ok(Verdicts::AllAccepted)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let path = env::var_os("USAGE_FILE")
        .map_or_else(|| env::temp_dir().join("usage.jsonl"), PathBuf::from);
    let gate = Tollgate::builder()
        .plans([Plan::new("free").rule(Rate::per_second(5))])
        .usage(JsonLines {
            path: path.clone(),
            written: Mutex::default(),
        })
        .build()?;
    let issued = gate
        .keys()
        .issue(NewKey::for_tenant("acme").plan("free"))
        .await?;

    let usage = gate.usage().clone();
    let app = Router::new()
        .route(
            "/v1/hello",
            get(|tenant: Tenant| async move { format!("hello {}\n", tenant.id()) }),
        )
        .layer(gate.layer())
        // Outside the gate: how many events are in the file for good.
        .route(
            "/written",
            get(async move || {
                usage.flush().await;
                format!("{}\n", usage.counters().acked)
            }),
        );

    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("usage goes to {}", path.display());
    println!("listening on http://{}", listener.local_addr()?);
    println!("key: {}", issued.key.expose());
    axum::serve(
        listener,
        app.into_make_service_with_connect_info::<SocketAddr>(),
    )
    .with_graceful_shutdown(async {
        let _ = tokio::signal::ctrl_c().await;
    })
    .await?;
    println!("{:?}", gate.shutdown(Duration::from_secs(5)).await);
    Ok(())
}
