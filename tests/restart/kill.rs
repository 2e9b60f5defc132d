//! A real process, killed by `kill -9`.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use tollgate::{Tollgate, gate::Document};

use super::{DIGEST, KEY, call};

/// Set for the child: where its quotas are kept.
const FILE: &str = "TOLLGATE_TEST_QUOTAS";
const LIMIT: u64 = 1_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// The test itself, run once more as a process of its own.
struct Server {
    child: Child,
    requests: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Server {
    fn start(file: &Path) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args([
                "restart::kill::quotas_survive_kill_9",
                "--exact",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(FILE, file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let requests = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // The runner of the child writes lines of its own.
                if let Some(line) = line.split("child: ").nth(1)
                    && sender.send(line.to_owned()).is_err()
                {
                    return;
                }
            }
        });
        Self {
            child,
            requests,
            lines,
        }
    }

    fn line(&self) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .expect("a line of the child")
    }

    fn ask(&mut self, what: &str) -> u64 {
        writeln!(self.requests, "{what}").unwrap();
        self.line().parse().unwrap()
    }

    fn kill(mut self) -> Vec<String> {
        // SIGKILL: nothing of the child runs any more.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.lines.iter().collect()
    }
}

/// What the child does: it answers `call <n>` by what is used then, `kept` by the same once it is on the disk, and
/// to `run` it writes what is on the disk again and again.
async fn serve(file: &Path) {
    let text = format!(
        "[[plans]]\nname = 'free'\nrules = [{{ kind = 'quota', limit = {LIMIT}, period = 'month' }}]\n\
         [[tenants]]\nid = 'acme'\nplan = 'free'\n[[keys]]\ndigest = '{DIGEST}'\ntenant = 'acme'\n"
    );
    let gate = Tollgate::builder()
        .document(Document::from_toml(&text).unwrap())
        .quota_snapshot(file, Duration::from_millis(10))
        .build()
        .unwrap();
    let snapshot = gate.quota_snapshot().unwrap();
    let used = async |n: u64| {
        let mut used = 0;
        for _ in 0..n {
            let (status, left) = call(&gate, KEY).await;
            assert_eq!(status, 200);
            used = LIMIT - left.unwrap();
        }
        used
    };
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        match line.split_once(' ') {
            Some(("call", n)) => println!("child: {}", used(n.parse().unwrap()).await),
            Some(("wait", n)) => {
                // Two writes that began after this: at least one saw everything.
                let until = snapshot.n_written() + 2;
                while snapshot.n_written() < until {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                println!("child: {n}");
            }
            _ => loop {
                let n = used(20).await;
                snapshot.save().unwrap();
                println!("child: {n}");
            },
        }
    }
}

#[test]
fn quotas_survive_kill_9() {
    if let Some(file) = env::var_os(FILE) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(serve(Path::new(&file)));
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("quotas");

    let mut server = Server::start(&file);
    assert_eq!(server.ask("call 37"), 37);
    assert_eq!(server.ask("wait 0"), 0);
    // The lock of a killed process is free.
    server.kill();
    let mut server = Server::start(&file);
    assert_eq!(server.ask("call 1"), 38, "the count goes on");
    let mut kept = server.ask("wait 38");
    server.kill();

    // Killed at any moment of a write: what was on the disk stays, and nothing is made up.
    for round in 0..8 {
        let mut server = Server::start(&file);
        let found = server.ask("call 1");
        assert!(
            found > kept,
            "round {round}: {found} used, {kept} were on the disk"
        );
        assert!(
            found <= kept + 41,
            "round {round}: {found} used, {kept} were on the disk"
        );
        writeln!(server.requests, "run").unwrap();
        for _ in 0..=round * 3 {
            kept = server.line().parse().unwrap();
        }
        if let Some(last) = server.kill().last() {
            kept = last.parse().unwrap();
        }
    }
}
