// cargo run --example redis_cluster
//! Limits in a Redis Cluster go on when a master dies: no restart, and not one call above the limit.
//!
//! It starts three masters and three replicas of its own, uses half of a limit, kills the master that counts it, and calls
//! until the rest is used up. What nobody could decide meanwhile is refused, by `OnStoreFailure::Deny`. The last line is
//! `above_limit=0 went_on=true`.

use std::{
    convert::Infallible,
    error::Error,
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use http::{Request, Response, StatusCode};
use tollgate::{
    limit::{LimitLayer, OnStoreFailure, Quota, RedisLimits},
    redis_support::RedisConnector,
};
use tower::{Layer, ServiceExt, service_fn};

const LIMIT: u64 = 200;
const PATIENCE: Duration = Duration::from_secs(1);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A node and its port; killed when it is dropped.
struct Node(Child, String);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Node {
    fn start(folder: &Path) -> Outcome<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port()
            .to_string();
        let folder = folder.join(&port);
        fs::create_dir_all(&folder)?;
        let node = Command::new("redis-server")
            .args(["--port", &port, "--save", "", "--cluster-enabled", "yes"])
            .args([
                "--cluster-node-timeout",
                "1000",
                "--repl-diskless-sync-delay",
                "0",
                "--dir",
            ])
            .arg(folder)
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("redis-server: {error}; apt-get install -y redis-server"))?;
        let node = Self(node, port);
        node.wait_until(|node| node.ask(&["PING"]).starts_with("PONG"));
        Ok(node)
    }

    fn ask(&self, command: &[&str]) -> String {
        let asked = Command::new("redis-cli")
            .args(["-p", &self.1])
            .args(command)
            .output();
        asked.map_or_else(
            |_| String::new(),
            |asked| String::from_utf8_lossy(&asked.stdout).into_owned(),
        )
    }

    fn wait_until(&self, ready: impl Fn(&Self) -> bool) {
        while !ready(self) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_replicated(&self) -> bool {
        let (cluster, replication) = (
            self.ask(&["CLUSTER", "INFO"]),
            self.ask(&["INFO", "replication"]),
        );
        cluster.contains("cluster_state:ok")
            && (replication.contains("connected_slaves:1")
                || replication.contains("link_status:up"))
    }

    fn is_master_of_counts(&self) -> bool {
        self.ask(&["ROLE"]).starts_with("master") && self.ask(&["KEYS", "tg:1:{*"]).contains("tg:")
    }
}

async fn run(folder: &Path) -> Outcome<()> {
    let mut nodes = (0..6)
        .map(|_| Node::start(folder))
        .collect::<Outcome<Vec<_>>>()?;
    let addresses = nodes.iter().map(|node| format!("127.0.0.1:{}", node.1));
    let mut create = Command::new("redis-cli");
    create.args(["--cluster", "create"]).args(addresses);
    create
        .args(["--cluster-replicas", "1", "--cluster-yes"])
        .stdout(Stdio::null())
        .status()?;
    nodes
        .iter()
        .for_each(|node| node.wait_until(Node::is_replicated));

    let urls = nodes
        .iter()
        .map(|node| format!("redis://127.0.0.1:{}", node.1));
    let connector = RedisConnector::cluster(urls)?
        .connect_timeout(PATIENCE)
        .response_timeout(PATIENCE);
    let rule = Quota::monthly(LIMIT).on_store_failure(OnStoreFailure::Deny);
    let layer = LimitLayer::new(RedisLimits::builder(connector).connect().await?, [rule])?;
    let answer =
        service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(String::new())));
    let service = layer.named("example").deadline(PATIENCE).layer(answer);
    let (mut admitted, mut away) = (0, 0);
    loop {
        match service.clone().oneshot(Request::new(())).await?.status() {
            StatusCode::OK => admitted += 1,
            StatusCode::SERVICE_UNAVAILABLE => away += 1,
            // The quota is used up.
            _ => break,
        }
        if admitted == LIMIT / 2 && away == 0 {
            let place = nodes
                .iter()
                .position(Node::is_master_of_counts)
                .ok_or("nobody counts")?;
            // What its replica has acknowledged is not lost with it.
            nodes[place].ask(&["WAIT", "1", "1000"]);
            println!(
                "killed the master on port {} after {admitted} calls",
                nodes.remove(place).1
            );
        }
    }
    println!("admitted {admitted} of {LIMIT} in all; {away} calls came while nobody counted");
    let went_on = away > 0 && admitted > LIMIT / 2;
    println!(
        "above_limit={} went_on={went_on}",
        admitted.saturating_sub(LIMIT)
    );
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let folder = std::env::temp_dir().join(format!("tollgate-cluster-{}", std::process::id()));
    let ran = run(&folder).await;
    fs::remove_dir_all(&folder)?;
    ran
}
