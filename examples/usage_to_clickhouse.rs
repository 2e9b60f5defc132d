// cargo run --example usage_to_clickhouse
//! Usage in ClickHouse: 600 calls, some of them delivered twice, and what the views say of them.
//!
//! It starts ClickHouse's engine by itself, as the tests do (`scripts/install-test-servers` installs it);
//! `CLICKHOUSE_URL=http://host:8123` names a server. The last line is `calls=600 counted=600 errors=60`.

use std::{
    convert::Infallible,
    env,
    error::Error,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use clickhouse::Client;
use http::{Request, Response, StatusCode};
use tollgate::{
    Tollgate,
    identity::NewKey,
    limit::Rate,
    plan::Plan,
    sink::{ClickHouseSink, FanOut, MemorySink, UsageSink},
};
use tower::{Layer, ServiceExt, service_fn};

const CALLS: usize = 600;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A server of the example's own, which ends with its input.
fn start_server(folder: &std::path::Path) -> Outcome<(Child, String)> {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut server = Command::new(format!("{root}/target/test-servers/bin/python"))
        .arg(format!("{root}/tests/common/clickhouse/server.py"))
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("ClickHouse: {error}; run scripts/install-test-servers"))?;
    let mut said = BufReader::new(server.stdout.take().ok_or("no output")?).lines();
    let said = said.next().ok_or("ClickHouse did not start")??;
    let port = said.strip_prefix("listening on ").ok_or("no port")?;
    Ok((server, format!("http://127.0.0.1:{port}")))
}

/// Serves the calls behind a gate that writes to the sink, and delivers their events once more.
async fn serve(sink: ClickHouseSink) -> Outcome<()> {
    let copy = MemorySink::new();
    let sink = Arc::new(sink);
    let gate = Tollgate::builder()
        .plans([Plan::new("pro").rule(Rate::per_second(1_000_000))])
        .usage(FanOut::new().with(Arc::clone(&sink)).with(copy.clone()))
        .build()?;
    let new = NewKey::for_tenant("acme").plan("pro");
    let key = gate.keys().issue(new).await?.key;
    let service = gate
        .layer()
        .layer(service_fn(async |request: Request<String>| {
            let mut answer = Response::new(String::new());
            if request.uri().path().ends_with('0') {
                *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            }
            Ok::<_, Infallible>(answer)
        }));
    for n in 0..CALLS {
        let request = Request::get(format!("/v1/items/{n}")).header("x-api-key", key.expose());
        service
            .clone()
            .oneshot(request.body(String::new())?)
            .await?;
    }
    gate.usage().flush().await;
    // As after a crash between the insert and its note: the same events again, in other batches.
    for batch in copy.events().chunks(70) {
        sink.write(batch).await?;
    }
    Ok(())
}

/// Prints what the views say.
async fn report(client: &Client) -> Outcome<()> {
    let days = "SELECT toString(day), p50_micros, p99_micros FROM usage_latency_daily";
    for (day, p50, p99) in client.query(days).fetch_all::<(String, u64, u64)>().await? {
        println!("{day}: half within {p50} µs, 99 of 100 within {p99} µs");
    }
    let totals = "SELECT sum(requests), sum(errors) FROM usage_errors_by_endpoint";
    let (counted, errors) = client.query(totals).fetch_one::<(u64, u64)>().await?;
    println!("calls={CALLS} counted={counted} errors={errors}");
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome<()> {
    // Another database for each run.
    let name = format!("tollgate_example_{}", std::process::id());
    let folder = env::temp_dir().join(&name);
    let (server, url) = match env::var("CLICKHOUSE_URL") {
        Ok(url) => (None, url),
        Err(_) => start_server(&folder).map(|(server, url)| (Some(server), url))?,
    };
    let sink = ClickHouseSink::builder(&url)?
        .database(&*name)
        .migrate()
        .connect()
        .await?;
    serve(sink).await?;
    let client = Client::default().with_url(&url).with_database(&name);
    report(&client).await?;
    client
        .query(&format!("DROP DATABASE {name}"))
        .execute()
        .await?;
    if let Some(mut server) = server {
        server.kill()?;
        server.wait()?;
        std::fs::remove_dir_all(folder)?;
    }
    Ok(())
}
