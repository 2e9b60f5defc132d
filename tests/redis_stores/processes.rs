//! A second process, real.

use std::{env, time::Duration};

use tollgate::{
    auth::{KeyStore as _, RedisKeyStore},
    identity::{CacheSettings, KeyAuthenticator, Keys, NewKey},
    plan::{Plan, PlanCatalog},
    redis_support::Redis,
    tenant::{RedisTenantStore, TenantStore},
};

use super::{redis, redis_at, subscribed};
use crate::common::{child::Child, redis::RedisServer};

/// Set for the child: where its Redis is.
const URL: &str = "TOLLGATE_TEST_REDIS";
const N_KEYS: usize = 50;

/// Asks whether a key works, until the other process answers so.
fn answers(other: &mut Child, key: &str, expected: &str) {
    for _ in 0..2_000 {
        if other.ask(key) == expected {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("the other process does not answer {expected}");
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
    let test = "redis_stores::processes::a_revocation_reaches_another_process";
    let mut other = Child::start(test, URL, server.url());
    subscribed(&server, 2).await;
    for _ in 0..N_KEYS {
        let new = NewKey::for_tenant("acme").plan("free");
        let issued = admin.issue(new).await.unwrap();
        let key = issued.key.expose();
        answers(&mut other, key, "works");
        admin.revoke(&issued.record.id).await.unwrap();
        answers(&mut other, key, "refused");
    }
    let store = RedisKeyStore::new(&own);
    let kept = store.list(&super::tenant("acme")).await.unwrap();
    assert_eq!(kept.len(), N_KEYS, "nothing is deleted");
    assert!(kept.iter().all(|record| record.revoked_at.is_some()));
}
