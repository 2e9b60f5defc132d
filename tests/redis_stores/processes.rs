//! A second process, real.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use tollgate::{
    auth::{KeyStore as _, RedisKeyStore},
    identity::{CacheSettings, KeyAuthenticator, Keys, NewKey},
    plan::{Plan, PlanCatalog},
    redis_support::Redis,
    tenant::{RedisTenantStore, TenantStore},
};

use super::{redis, redis_at, subscribed};
use crate::common::redis::RedisServer;

/// Set for the child: where its Redis is.
const URL: &str = "TOLLGATE_TEST_REDIS";
const N_KEYS: usize = 50;

/// The test itself, run once more as a process of its own.
struct Other {
    child: Child,
    requests: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Other {
    fn start(url: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args([
                "redis_stores::processes::a_revocation_reaches_another_process",
                "--exact",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(URL, url)
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

    /// Asks whether a key works, until it answers so.
    fn answers(&mut self, key: &str, expected: &str) {
        for _ in 0..2_000 {
            writeln!(self.requests, "{key}").unwrap();
            let answer = self.lines.recv_timeout(Duration::from_secs(60));
            if answer.expect("the child lives") == expected {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("the other process does not answer {expected}");
    }
}

/// Everything that one process holds.
struct Process {
    admin: Keys,
    auth: KeyAuthenticator,
}

fn process(redis: &Redis) -> Process {
    use std::sync::Arc;
    use tollgate::{auth::KeyStore, clock::SystemClock};
    let keys: Arc<dyn KeyStore> = Arc::new(RedisKeyStore::new(redis));
    let tenants: Arc<dyn TenantStore> = Arc::new(RedisTenantStore::new(redis));
    let catalog = PlanCatalog::new([Plan::new("free")]).unwrap();
    let admin = Keys::new(
        Arc::clone(&keys),
        Arc::clone(&tenants),
        catalog.clone(),
        SystemClock::shared(),
    );
    let for_ever = Duration::from_secs(24 * 60 * 60);
    let auth = KeyAuthenticator::builder(keys, tenants, catalog)
        .cache(CacheSettings::new().ttl(for_ever).negative_ttl(for_ever))
        .build()
        .unwrap();
    Process { admin, auth }
}

/// The child: says of each key on a line whether it works.
async fn work(url: &str) {
    use http::Request;
    use tollgate::{
        auth::Extractor,
        clock::{Clock as _, SystemClock},
        head::RequestHead,
        identity::{Attempt, Authenticate as _},
    };
    let Process { auth, .. } = process(&redis_at(url).await);
    let clock = SystemClock::new();
    for key in std::io::stdin().lines().map_while(Result::ok) {
        let request = Request::get("/").header("x-api-key", key).body(()).unwrap();
        let head = RequestHead::from(&request);
        let credential = Extractor::default().extract(&head).unwrap();
        let attempt = auth.authenticate(credential.as_ref(), &head, clock.now());
        let result = match attempt {
            Attempt::Done(result) => result,
            Attempt::Lookup(trip) | Attempt::Refresh(trip) => trip.await,
            other => panic!("{other:?}"),
        };
        println!(
            "child: {}",
            if result.is_ok() { "works" } else { "refused" }
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_reaches_another_process() {
    if let Ok(url) = env::var(URL) {
        return work(&url).await;
    }
    let server = RedisServer::start();
    let own = redis(&server).await;
    let Process { admin, auth: _auth } = process(&own);
    let mut other = Other::start(&server.url());
    subscribed(&server, 2).await;
    for _ in 0..N_KEYS {
        let new = NewKey::for_tenant("acme").plan("free");
        let issued = admin.issue(new).await.unwrap();
        let key = issued.key.expose();
        other.answers(key, "works");
        admin.revoke(&issued.record.id).await.unwrap();
        other.answers(key, "refused");
    }
    let store = RedisKeyStore::new(&own);
    let kept = store.list(&super::tenant("acme")).await.unwrap();
    assert_eq!(kept.len(), N_KEYS, "nothing is deleted");
    assert!(kept.iter().all(|record| record.revoked_at.is_some()));
}
