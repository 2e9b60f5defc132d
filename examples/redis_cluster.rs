// cargo run --example redis_cluster
//! Limits in a Redis Cluster go on when a master dies: no restart, and not one call more than the limit.
//!
//! It starts three masters and three replicas of its own, uses half of a limit, kills the master that counts it, and
//! calls until the limit is used up. The last line is `admitted=200 limit=200 was_away=true`; calls that nobody
//! could decide are refused here, by `OnStoreFailure::Deny`.

use std::{
    convert::Infallible,
    error::Error,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use http::{Request, Response, StatusCode};
use tollgate::{
    limit::{LimitLayer, OnStoreFailure, Quota, RedisLimits},
    redis_support::RedisConnector,
};
use tower::{Layer, ServiceExt, service_fn};

const LIMIT: u64 = 200;
const PATIENCE: Duration = Duration::from_secs(30);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A node, killed when it is dropped.
struct Node(Child, u16);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_node(folder: &Path) -> Outcome<Node> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let folder = folder.join(port.to_string());
    fs::create_dir_all(&folder)?;
    let node = Command::new("redis-server")
        .args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
        ])
        .args(["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"])
        .args(["--repl-diskless-sync-delay", "0", "--dir"])
        .arg(folder)
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| format!("redis-server: {error}; apt-get install -y redis-server"))?;
    Ok(Node(node, port))
}

/// What a node says to a command.
fn ask(port: u16, command: &[&str]) -> Outcome<String> {
    let asked = Command::new("redis-cli")
        .args(["-p", &port.to_string()])
        .args(command)
        .output()?;
    Ok(String::from_utf8(asked.stdout)?)
}

fn start_cluster(folder: &Path) -> Outcome<Vec<Node>> {
    let nodes = (0..6)
        .map(|_| start_node(folder))
        .collect::<Outcome<Vec<_>>>()?;
    let addresses = nodes.iter().map(|node| format!("127.0.0.1:{}", node.1));
    let mut create = Command::new("redis-cli");
    create.args(["--cluster", "create"]).args(addresses).args([
        "--cluster-replicas",
        "1",
        "--cluster-yes",
    ]);
    let until = Instant::now() + PATIENCE;
    while nodes
        .iter()
        .any(|node| !ask(node.1, &["PING"]).is_ok_and(|it| it.starts_with("PONG")))
    {
        std::thread::sleep(Duration::from_millis(20));
    }
    create.stdout(Stdio::null()).status()?;
    for node in &nodes {
        let is_up = || -> Outcome<bool> {
            let replication = ask(node.1, &["INFO", "replication"])?;
            let follows = replication.contains("connected_slaves:1")
                || replication.contains("link_status:up");
            Ok(follows && ask(node.1, &["CLUSTER", "INFO"])?.contains("cluster_state:ok"))
        };
        while !is_up()? {
            if Instant::now() > until {
                return Err("the Cluster does not come up".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(nodes)
}

async fn run(folder: &Path) -> Outcome<()> {
    let mut nodes = start_cluster(folder)?;
    let urls = nodes
        .iter()
        .map(|node| format!("redis://127.0.0.1:{}", node.1));
    let connector = RedisConnector::cluster(urls)?.connect_timeout(Duration::from_secs(2));
    let limits = RedisLimits::builder(connector).connect().await?;
    let rule = Quota::monthly(LIMIT).on_store_failure(OnStoreFailure::Deny);
    let layer = LimitLayer::new(limits, [rule])?.named("example");
    let answer =
        service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(String::new())));
    let service = layer.layer(answer);
    let (mut admitted, mut away) = (0, 0);
    loop {
        match service.clone().oneshot(Request::new(())).await?.status() {
            StatusCode::OK => admitted += 1,
            StatusCode::SERVICE_UNAVAILABLE => away += 1,
            // The quota is used up.
            _ => break,
        }
        if admitted == LIMIT / 2 && away == 0 {
            // The one of the masters that holds the count.
            let holder =
                |node: &Node| ask(node.1, &["KEYS", "tg:1:{*"]).map(|keys| keys.contains("tg:"));
            let is_master =
                |node: &Node| ask(node.1, &["ROLE"]).map(|role| role.starts_with("master"));
            let place = nodes
                .iter()
                .position(|node| holder(node).unwrap_or(false) && is_master(node).unwrap_or(false));
            let place = place.ok_or("no master has the count")?;
            ask(nodes[place].1, &["WAIT", "1", "1000"])?;
            println!(
                "killed the master on port {} after {admitted} calls",
                nodes.remove(place).1
            );
        }
        if away > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    println!("the Cluster answered again without a restart");
    println!("admitted={admitted} limit={LIMIT} was_away={}", away > 0);
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let folder: PathBuf =
        std::env::temp_dir().join(format!("tollgate-cluster-{}", std::process::id()));
    let ran = run(&folder).await;
    fs::remove_dir_all(&folder)?;
    ran
}
