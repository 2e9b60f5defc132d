// cargo run --example redis_stores
//! Two gates share keys, tenants and plans in Redis, as two processes would: what one changes governs the other's next
//! call.
//!
//! It starts a `redis-server` of its own. One gate issues a key, suspends its tenant, publishes other plans and revokes
//! the key. The last line says how the other one answered:
//! `issued=200 suspended=402 paid=200 plan_of_zero=429 plan_of_ten=200 revoked=401`.

use std::{
    convert::Infallible,
    error::Error,
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use http::{Request, Response};
use tollgate::{
    auth::RedisKeyStore,
    plan::{PlanCatalog, PlanDocument, RedisPlans},
    prelude::*,
    redis_support::{Redis, RedisConnector},
    tenant::RedisTenantStore,
};
use tower::{Layer, ServiceExt, service_fn};

const PATIENCE: Duration = Duration::from_secs(10);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A gate over connections of its own, whose keys, tenants and plans are those of all.
async fn gate(url: &str) -> Outcome<(Tollgate, RedisPlans)> {
    let connector = RedisConnector::single(url)?.connect_timeout(PATIENCE);
    let redis = Redis::builder(connector.response_timeout(PATIENCE));
    let redis = redis.connect().await?;
    let catalog = PlanCatalog::new([Plan::new("free")])?;
    let plans = RedisPlans::new(&redis);
    plans.govern(&catalog).await?;
    let gate = Tollgate::builder()
        .catalog(catalog)
        .keys(RedisKeyStore::new(&redis))
        .tenants(RedisTenantStore::new(&redis));
    Ok((gate.build()?, plans))
}

/// Calls until it is answered so: a change takes some milliseconds.
async fn answer(gate: &Tollgate, key: &str, wanted: u16) -> Outcome<u16> {
    let hello = async |_: Request<String>| Ok::<_, Infallible>(Response::new("hello".to_owned()));
    let service = gate.layer().layer(service_fn(hello));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let request = Request::get("/").header("x-api-key", key);
        let request = request.body(String::new())?;
        let status = service.clone().oneshot(request).await?.status().as_u16();
        if status == wanted || Instant::now() > deadline {
            return Ok(status);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn share(url: &str) -> Outcome<()> {
    let ((one, plans), (other, _plans)) = (gate(url).await?, gate(url).await?);
    let new = NewKey::for_tenant("acme").plan("free");
    let issued = one.keys().issue(new).await?;
    let (key, acme) = (issued.key.expose(), &issued.record.tenant);
    let worked = answer(&other, key, 200).await?;

    let suspended = AccessState::Suspended;
    one.tenants().set_access(acme, suspended).await?;
    let suspended = answer(&other, key, 402).await?;
    one.tenants().set_access(acme, AccessState::Active).await?;
    let paid = answer(&other, key, 200).await?;

    let free = |limit| PlanDocument::from_iter([Plan::new("free").rule(Quota::daily(limit))]);
    let version = plans.publish(&free(0), None).await?;
    let zero = answer(&other, key, 429).await?;
    plans.publish(&free(10), Some(version)).await?;
    let ten = answer(&other, key, 200).await?;

    one.keys().revoke(&issued.record.id).await?;
    let revoked = answer(&other, key, 401).await?;
    println!(
        "issued={worked} suspended={suspended} paid={paid} plan_of_zero={zero} plan_of_ten={ten} revoked={revoked}"
    );
    Ok(())
}

/// A server of the example's own, on a socket.
fn start_server(socket: &Path) -> Outcome<Child> {
    let mut server = Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--unixsocket"])
        .arg(socket)
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| format!("redis-server: {error}; apt-get install -y redis-server"))?;
    while UnixStream::connect(socket).is_err() && server.try_wait()?.is_none() {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(server)
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let socket = std::env::temp_dir().join(format!("tollgate-stores-{}", std::process::id()));
    let mut server = start_server(&socket)?;
    let shared = share(&format!("unix://{}", socket.display())).await;
    server.kill()?;
    server.wait()?;
    std::fs::remove_file(socket)?;
    shared
}
