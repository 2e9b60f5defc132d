//! A real process, killed by `kill -9`.

use std::{env, path::Path, time::Duration};

use tollgate::{Tollgate, gate::Document};

use super::{DIGEST, KEY, call};
use crate::common::child::Child;

/// Set for the child: where its quotas are kept.
const FILE: &str = "TOLLGATE_TEST_QUOTAS";
const LIMIT: u64 = 1_000_000;

fn start(file: &Path) -> Child {
    Child::start("restart::kill::quotas_survive_kill_9", FILE, file)
}

fn ask(server: &mut Child, what: &str) -> u64 {
    server.ask(what).parse().unwrap()
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

    let mut server = start(&file);
    assert_eq!(ask(&mut server, "call 37"), 37);
    assert_eq!(ask(&mut server, "wait 0"), 0);
    // The lock of a killed process is free.
    server.kill();
    let mut server = start(&file);
    assert_eq!(ask(&mut server, "call 1"), 38, "the count goes on");
    let mut kept = ask(&mut server, "wait 38");
    server.kill();

    // Killed at any moment of a write: what was on the disk stays, and nothing is made up.
    for round in 0..8 {
        let mut server = start(&file);
        let found = ask(&mut server, "call 1");
        assert!(
            found > kept,
            "round {round}: {found} used, {kept} were on the disk"
        );
        assert!(
            found <= kept + 41,
            "round {round}: {found} used, {kept} were on the disk"
        );
        server.send("run");
        for _ in 0..=round * 3 {
            kept = server.line().parse().unwrap();
        }
        if let Some(last) = server.kill().last() {
            kept = last.parse().unwrap();
        }
    }
}
