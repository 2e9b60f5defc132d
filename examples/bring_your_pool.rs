// cargo run --example bring_your_pool
//! Limits over the deadpool pool that a service has already: nothing else connects to Redis.
//!
//! It starts a `redis-server` of its own; `REDIS_URL=redis://host:6379` names another. The service's own commands and the
//! limits take turns at one pool of four connections. The last line is `admitted=10 limit=10 visits=25`.

use std::{
    convert::Infallible,
    error::Error,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use deadpool_redis::{Config, Pool, PoolConfig, Runtime};
use http::{Request, Response};
use redis::AsyncCommands;
use tollgate::{
    limit::{LimitLayer, RedisLimits, Window},
    redis_support::RedisConnector,
};
use tower::{Layer, ServiceExt, service_fn};

const LIMIT: u64 = 10;
const CALLS: usize = 25;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A server of the example's own, on a socket.
fn start_server(socket: &Path) -> Outcome<Child> {
    let mut server = Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--unixsocket"])
        .arg(socket)
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| format!("redis-server: {error}; apt-get install -y redis-server"))?;
    while !socket.exists() && server.try_wait()?.is_none() {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(server)
}

/// The pool as a service makes it.
fn pool(url: &str) -> Outcome<Pool> {
    let config = Config {
        pool: Some(PoolConfig::new(4)),
        ..Config::from_url(url)
    };
    Ok(config.create_pool(Some(Runtime::Tokio1))?)
}

async fn run(url: &str) -> Outcome<()> {
    let pool = pool(url)?;
    // The service's own use of it.
    let name = format!("visits-{}", std::process::id());
    let mut own = pool.get().await?;
    let _: () = own.del(&name).await?;
    drop(own);

    // Each batch of decisions checks a connection out, which costs a PING: a connector of its own is cheaper.
    let connector = RedisConnector::pool(pool.clone()).response_timeout(Duration::from_secs(2));
    let limits = RedisLimits::builder(connector).connect().await?;
    let rule = Window::new(LIMIT, Duration::from_secs(24 * 60 * 60));
    let layer = LimitLayer::new(limits, [rule])?.named(format!("pool-{}", std::process::id()));
    let answer =
        service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(String::new())));
    let service = layer.deadline(Duration::from_secs(2)).layer(answer);

    let calls: Vec<_> = (0..CALLS)
        .map(|_| {
            let (service, pool, name) = (service.clone(), pool.clone(), name.clone());
            tokio::spawn(async move {
                let visits: u64 = pool.get().await?.incr(&name, 1).await?;
                let status = service.oneshot(Request::new(())).await?.status();
                Outcome::Ok((visits, status.is_success()))
            })
        })
        .collect();
    let (mut admitted, mut visits) = (0, 0);
    for call in calls {
        let (seen, passed) = call.await??;
        admitted += u64::from(passed);
        visits = visits.max(seen);
    }
    println!("connections of the pool: {}", pool.status().size);
    println!("admitted={admitted} limit={LIMIT} visits={visits}");
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome<()> {
    if let Ok(url) = std::env::var("REDIS_URL") {
        return run(&url).await;
    }
    let socket = std::env::temp_dir().join(format!("tollgate-pool-{}", std::process::id()));
    let mut server = start_server(&socket)?;
    let ran = run(&format!("redis+unix://{}", socket.display())).await;
    server.kill()?;
    server.wait()?;
    std::fs::remove_file(socket)?;
    ran
}
