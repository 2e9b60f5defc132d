//! A Redis Cluster of three masters and three replicas, and a master with a replica and three Sentinels.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::redis::{RedisServer, TempDir, free_port};

const PATIENCE: Duration = Duration::from_secs(30);

fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !ready() {
        assert!(Instant::now() < deadline, "{what} within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A Cluster.
#[derive(Debug)]
pub(crate) struct RedisCluster {
    pub(crate) nodes: Vec<RedisServer>,
}

impl RedisCluster {
    pub(crate) fn start() -> Self {
        let nodes: Vec<_> = (0..6)
            .map(|_| {
                RedisServer::with(&[
                    "--cluster-enabled",
                    "yes",
                    "--cluster-config-file",
                    "nodes.conf",
                    "--cluster-node-timeout",
                    "1000",
                    "--repl-diskless-sync-delay",
                    "0",
                ])
            })
            .collect();
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]);
        create.args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)));
        create.args(["--cluster-replicas", "1", "--cluster-yes"]);
        let output = create
            .stdin(Stdio::null())
            .output()
            .expect("redis-cli, of the package redis-tools");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        let cluster = Self { nodes };
        wait_for("the cluster is up", || {
            cluster.nodes.iter().all(|node| {
                let info: String = node.query(&["CLUSTER", "INFO"]);
                let replication: String = node.query(&["INFO", "replication"]);
                info.contains("cluster_state:ok")
                    && (replication.contains("connected_slaves:1")
                        || replication.contains("master_link_status:up"))
            })
        });
        cluster
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::url).collect()
    }

    /// The place of the master that serves a key.
    pub(crate) fn master_of(&self, key: &str) -> usize {
        self.nodes
            .iter()
            .position(|node| {
                let answer = node.raw(&format!("*2\r\n$3\r\nTTL\r\n${}\r\n{key}\r\n", key.len()));
                answer.starts_with(':')
            })
            .expect("a master")
    }
}

/// A master, its replica, and the Sentinels that watch them.
#[derive(Debug)]
pub(crate) struct Sentinels {
    pub(crate) master: RedisServer,
    pub(crate) replica: RedisServer,
    sentinels: Vec<(Child, u16)>,
    _dir: TempDir,
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        for (sentinel, _) in &mut self.sentinels {
            let _ = sentinel.kill();
            let _ = sentinel.wait();
        }
    }
}

impl Sentinels {
    pub(crate) fn start() -> Self {
        let master = RedisServer::with(&["--repl-diskless-sync-delay", "0"]);
        let replica = RedisServer::with(&["--replicaof", &format!("127.0.0.1 {}", master.port)]);
        wait_for("the replica follows", || {
            replica
                .query::<String>(&["INFO", "replication"])
                .contains("master_link_status:up")
        });
        let dir = TempDir::new();
        let sentinels: Vec<_> = (0..3)
            .map(|number| {
                let port = free_port();
                let folder = dir.path().join(number.to_string());
                fs::create_dir_all(&folder).expect("a folder");
                let file = folder.join("sentinel.conf");
                let text = format!(
                    "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor main 127.0.0.1 {} 2\nsentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n",
                    folder.display(),
                    master.port
                );
                fs::write(&file, text).expect("a configuration");
                let child = Command::new("redis-server")
                    .arg(&file)
                    .arg("--sentinel")
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("redis-server");
                (child, port)
            })
            .collect();
        let all = Self {
            master,
            replica,
            sentinels,
            _dir: dir,
        };
        wait_for("the Sentinels know each other", || {
            all.urls().iter().all(|url| {
                let Ok(client) = redis::Client::open(url.as_str()) else {
                    return false;
                };
                let Ok(mut connection) = client.get_connection() else {
                    return false;
                };
                let info: redis::RedisResult<String> =
                    redis::cmd("INFO").arg("sentinel").query(&mut connection);
                info.is_ok_and(|info| {
                    info.contains("status=ok")
                        && info.contains("slaves=1")
                        && info.contains("sentinels=3")
                })
            })
        });
        all
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.sentinels
            .iter()
            .map(|(_, port)| format!("redis://127.0.0.1:{port}"))
            .collect()
    }
}
