//! The limit on failed attempts, turned against those who share an address with the attacker.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::Request;
use tollgate::{
    auth::{AuthEvent, AuthEventSink, AuthRefusal, FailureLimit, MemoryKeyStore},
    head::PeerAddress,
};
use tower::{Layer as _, service_fn};

use super::{call, get, invented, stand, who};
use crate::common::far_stores::{FakeKeys, FarTenants};

type Full = http_body_util::Full<bytes::Bytes>;

/// The address that everybody in a test shares: none at all, as behind a server that tells none, or one.
const SHARED: [Option<&str>; 2] = [None, Some("192.0.2.7:1000")];

fn from(address: Option<&str>, key: &str) -> Request<Full> {
    let mut request = get("/", &[("x-api-key", key)]);
    if let Some(address) = address {
        let address: SocketAddr = address.parse().expect("an address");
        request.extensions_mut().insert(PeerAddress(address));
    }
    request
}

#[tokio::test]
async fn an_attacker_at_the_same_address_locks_out_no_key_that_works() {
    for address in SHARED {
        let keys = FakeKeys::slow();
        let store = Arc::clone(&keys);
        let stand = stand(|builder| builder.keys(store).tenants(FarTenants::slow()));
        let key = stand.issue("acme").await;
        let new_key = stand.issue("other").await;
        let service = stand.gate.layer().layer(service_fn(who));
        assert_eq!(call(&service, from(address, &key)).await.0, 200);
        let mut seen = Vec::new();
        for n in 0..200 {
            let bad = if n % 2 == 0 {
                invented()
            } else {
                format!("junk-{n}")
            };
            seen.push(call(&service, from(address, &bad)).await.0);
            assert_eq!(
                call(&service, from(address, &key)).await.0,
                200,
                "{address:?} {n}"
            );
        }
        assert!(seen[..30].iter().all(|status| *status == 401));
        assert!(seen[31..].iter().all(|status| *status == 429));
        // What is cached runs out, and the key must be looked up once more, which the attacker does not stop.
        for _ in 0..5 {
            stand.clock.advance(Duration::from_secs(11));
            for _ in 0..30 {
                call(&service, from(address, &invented())).await;
            }
            let n_asked = keys.behaviour.n_asked();
            assert_eq!(
                call(&service, from(address, &key)).await.0,
                200,
                "{address:?}"
            );
            assert_eq!(keys.behaviour.n_asked(), n_asked + 1);
        }
        // A key of which nothing is known is not told from a guess without asking the store.
        let n_asked = keys.behaviour.n_asked();
        assert_eq!(call(&service, from(address, &new_key)).await.0, 429);
        assert_eq!(call(&service, from(address, &invented())).await.0, 429);
        assert_eq!(keys.behaviour.n_asked(), n_asked);
        stand.clock.advance(Duration::from_secs(60));
        assert_eq!(call(&service, from(address, &new_key)).await.0, 200);
    }
}

#[tokio::test]
async fn a_store_that_answers_at_once_lets_new_keys_in_under_attack_too() {
    let stand = stand(|builder| builder);
    let service = stand.gate.layer().layer(service_fn(who));
    for _ in 0..100 {
        call(&service, from(None, &invented())).await;
    }
    assert_eq!(call(&service, from(None, &invented())).await.0, 429);
    for n in 0..10 {
        let tenant = format!("new-{n}");
        let key = stand.issue(&tenant).await;
        assert_eq!(call(&service, from(None, &key)).await, (200, tenant));
    }
}

#[tokio::test]
async fn who_sends_no_credential_or_two_is_told_so_whatever_others_have_done() {
    let stand = stand(|builder| builder);
    let key = stand.issue("acme").await;
    let service = stand.gate.layer().layer(service_fn(who));
    for _ in 0..100 {
        call(&service, from(None, &invented())).await;
    }
    assert_eq!(call(&service, get("/", &[])).await.0, 401);
    let twice = [("x-api-key", &*key), ("x-api-key", &*key)];
    assert_eq!(call(&service, get("/", &twice)).await.0, 400);
}

#[derive(Debug, Default)]
struct Heard(Mutex<Vec<AuthRefusal>>);

impl AuthEventSink for Heard {
    fn auth_event(&self, event: &AuthEvent) {
        self.0.lock().unwrap().push(event.refusal);
    }
}

#[tokio::test]
async fn no_answer_tells_a_key_whose_tenant_is_gone_from_one_that_never_was() {
    let heard = Arc::new(Heard::default());
    // A key in the store whose tenant is not: as after a tenant store was restored from a backup.
    let other = stand(|builder| builder);
    let orphan = other.issue("gone").await;
    let keys = MemoryKeyStore::from_document(other.keys.to_document()).expect("a legal document");
    let stand = stand(|builder| {
        let limit = FailureLimit::new(1, 3).expect("a legal limit");
        builder
            .keys(keys)
            .failure_limit(limit)
            .auth_events(Arc::clone(&heard) as _)
    });
    let service = stand.gate.layer().layer(service_fn(who));
    let mut answers = Vec::new();
    for key in [orphan, invented()] {
        let mut statuses = Vec::new();
        for _ in 0..6 {
            statuses.push(call(&service, from(None, &key)).await.0);
        }
        answers.push(statuses);
        stand.clock.advance(Duration::from_secs(600));
    }
    assert_eq!(answers[0], [401, 401, 401, 429, 429, 429]);
    assert_eq!(answers[0], answers[1]);
    let heard = heard.0.lock().unwrap();
    assert_eq!(heard[0], AuthRefusal::TenantUnknown);
}
