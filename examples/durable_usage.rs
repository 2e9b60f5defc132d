// cargo run --example durable_usage
//! Usage that survives `kill -9`: events are appended to files before they are delivered.
//!
//! The example starts itself once more as a service whose usage goes nowhere, as its sink is down. It kills that one by
//! `kill -9`, opens the same directory with a sink that works, and shows what was delivered.

use std::{
    env,
    error::Error,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use async_trait::async_trait;
use axum::{Router, body::Body, http::Request, routing::get};
use tollgate::{
    Tollgate,
    identity::NewKey,
    meter::{Durability, Meter, Recorder, UsageEvent},
    plan::Plan,
    sink::{MemorySink, SinkError, UsageSink, Verdicts},
};
use tower::ServiceExt;

/// Where the child keeps its usage.
const DIRECTORY: &str = "USAGE_DIRECTORY";

#[derive(Debug)]
struct Down;

#[async_trait]
impl UsageSink for Down {
    async fn write(&self, _: &[UsageEvent]) -> Result<Verdicts, SinkError> {
        Err(SinkError::unavailable("the warehouse does not answer"))
    }
}

/// The service: three calls, and a word when they are on the disk. It is killed while it waits.
async fn serve(directory: &Path) -> Result<(), Box<dyn Error>> {
    let gate = Tollgate::builder()
        .plans([Plan::new("free")])
        .usage(Down)
        .usage_durability(Durability::spool(directory))
        .build()?;
    let key = gate
        .keys()
        .issue(NewKey::for_tenant("acme").plan("free"))
        .await?
        .key;
    let chat = async |meter: Meter| {
        meter.add("tokens", 100);
        "hello\n"
    };
    let app = Router::new()
        .route("/v1/chat", get(chat))
        .layer(gate.layer());
    for _ in 0..3 {
        let call = Request::get("/v1/chat").header("x-api-key", key.expose());
        drop(app.clone().oneshot(call.body(Body::empty())?).await?);
    }
    // Without this they would be on the disk within a tick, 100 ms.
    if gate.usage().persist().await {
        println!("promised {}", gate.usage().counters().settled);
        std::io::stdout().flush()?;
    }
    tokio::time::sleep(Duration::from_secs(3600)).await;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    if let Some(directory) = env::var_os(DIRECTORY) {
        return serve(Path::new(&directory)).await;
    }
    let directory = tempfile::tempdir()?;
    let mut child = Command::new(env::current_exe()?)
        .env(DIRECTORY, directory.path())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    let promised = lines.next().ok_or("the service ended")??;
    child.kill()?;
    child.wait()?;
    println!("the service {promised} events and was killed");

    let warehouse = MemorySink::new();
    let recorder = Recorder::builder(warehouse.clone())
        .durability(Durability::spool(directory.path()))
        .build()?;
    println!("found on the disk: {}", recorder.counters().recovered);
    let report = recorder.shutdown(Duration::from_secs(10)).await;
    let tokens: u64 = warehouse
        .events()
        .iter()
        .map(|event| event.quantities["tokens"])
        .sum();
    println!(
        "{promised} delivered={} tokens={tokens} lost={} doubled={}",
        report.acked,
        3 - warehouse.len(),
        warehouse.duplicates()
    );
    Ok(())
}
