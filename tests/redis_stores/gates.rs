//! Gates that share everything but their memory.

use std::{convert::Infallible, time::Duration};

use axum::body::Body;
use http::{Request, Response};
use tollgate::{
    Tollgate, TollgateLayer,
    auth::RedisKeyStore,
    identity::{CacheSettings, NewKey},
    limit::Quota,
    plan::{Plan, PlanCatalog, PlanDocument, RedisPlans},
    redis_support::{Redis, RedisConnector},
    sink::MemorySink,
    tenant::{AccessState, RedisTenantStore},
};
use tower::{Layer, ServiceExt, service_fn};

use super::{connect, redis, subscribed, tenant};
use crate::common::{
    fault_proxy::{Fault, FaultProxy},
    redis::RedisServer,
};

/// Long enough that nothing in these tests is seen because it has ended.
const FOR_EVER: Duration = Duration::from_secs(24 * 60 * 60);

struct Gate {
    gate: Tollgate,
    _plans: RedisPlans,
}

async fn gate(redis: &Redis) -> Gate {
    let catalog = PlanCatalog::new([Plan::new("free")]).unwrap();
    let plans = RedisPlans::new(redis);
    plans.govern(&catalog).await.unwrap();
    let cache = CacheSettings::new().ttl(FOR_EVER).negative_ttl(FOR_EVER);
    let gate = Tollgate::builder()
        .catalog(catalog)
        .keys(RedisKeyStore::new(redis))
        .tenants(RedisTenantStore::new(redis))
        .cache(cache)
        .usage(MemorySink::new())
        .build()
        .unwrap();
    Gate {
        gate,
        _plans: plans,
    }
}

async fn status_of(layer: TollgateLayer, key: &str) -> u16 {
    let service = layer.layer(service_fn(async |_: Request<Body>| {
        Ok::<_, Infallible>(Response::new(Body::from("hello")))
    }));
    let request = Request::get("/v1/hello")
        .header("x-api-key", key)
        .body(Body::empty())
        .unwrap();
    service.oneshot(request).await.unwrap().status().as_u16()
}

impl Gate {
    async fn status(&self, key: &str) -> u16 {
        status_of(self.gate.layer(), key).await
    }

    /// Waits until a call is answered so; a busy machine may take its time.
    async fn answers(&self, key: &str, status: u16) {
        let asking = async {
            while self.status(key).await != status {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let answered = tokio::time::timeout(Duration::from_secs(30), asking).await;
        answered.unwrap_or_else(|_| panic!("not answered {status}"));
    }

    async fn issue(&self) -> tollgate::identity::IssuedKey {
        let new = NewKey::for_tenant("acme").plan("free");
        self.gate.keys().issue(new).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_gate_changes_governs_the_next_call_at_the_other() {
    let server = RedisServer::start();
    let (one, other) = (
        gate(&redis(&server).await).await,
        gate(&redis(&server).await).await,
    );
    subscribed(&server, 2).await;
    let issued = one.issue().await;
    let key = issued.key.expose();
    assert_eq!((one.status(key).await, other.status(key).await), (200, 200));

    let acme = tenant("acme");
    let tenants = one.gate.tenants();
    tenants
        .set_access(&acme, AccessState::Suspended)
        .await
        .unwrap();
    assert_eq!(one.status(key).await, 402, "one's own change at once");
    other.answers(key, 402).await;
    tenants
        .set_access(&acme, AccessState::Active)
        .await
        .unwrap();
    other.answers(key, 200).await;

    let document: PlanDocument = [Plan::new("free").rule(Quota::daily(0))]
        .into_iter()
        .collect();
    one._plans.publish(&document, None).await.unwrap();
    other.answers(key, 429).await;
    let document: PlanDocument = [Plan::new("free")].into_iter().collect();
    one._plans.publish(&document, Some(1)).await.unwrap();
    other.answers(key, 200).await;

    let next = one
        .gate
        .keys()
        .rotate(&issued.record.id, Duration::from_secs(3_600))
        .await
        .unwrap();
    let both = [key, next.key.expose()];
    for key in both {
        other.answers(key, 200).await;
    }
    one.gate.keys().revoke(&issued.record.id).await.unwrap();
    assert_eq!(one.status(key).await, 401);
    other.answers(key, 401).await;
    assert_eq!(other.status(next.key.expose()).await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_revoked_while_a_gate_was_cut_off_is_refused_once_it_is_back() {
    let server = RedisServer::start();
    let proxy = FaultProxy::before(server.port).await;
    let connector = RedisConnector::single(proxy.url()).unwrap();
    let connector = connector
        .connect_timeout(Duration::from_secs(2))
        .response_timeout(Duration::from_millis(250));
    let cut_off = gate(&connect(connector).await).await;
    let one = gate(&redis(&server).await).await;
    subscribed(&server, 2).await;
    for fault in [Fault::Refuse, Fault::Hold, Fault::CutAfter(3)] {
        let issued = one.issue().await;
        let key = issued.key.expose();
        cut_off.answers(key, 200).await;
        proxy.set(fault);
        one.gate.keys().revoke(&issued.record.id).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        proxy.set(Fault::None);
        cut_off.answers(key, 401).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_gate_tells_when_a_key_was_last_used_by_any() {
    let server = RedisServer::start();
    let (one, other) = (
        gate(&redis(&server).await).await,
        gate(&redis(&server).await).await,
    );
    let (used, unused) = (one.issue().await, one.issue().await);
    other.answers(used.key.expose(), 200).await;
    let _ = other.gate.shutdown(Duration::from_secs(5)).await;
    let last_used = one.gate.keys().last_used(&tenant("acme")).await.unwrap();
    assert_eq!(last_used.len(), 1);
    assert!(last_used.contains_key(&used.record.id) && !last_used.contains_key(&unused.record.id));
    assert_eq!(one.status(used.key.expose()).await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_seen_to_work_outlives_the_server_and_one_that_was_not_is_no_401() {
    let mut server = RedisServer::start();
    let one = gate(&redis_quick(&server).await).await;
    let (seen, unseen) = (one.issue().await, one.issue().await);
    one.answers(seen.key.expose(), 200).await;
    server.kill();
    assert_eq!(one.status(seen.key.expose()).await, 200);
    assert_eq!(one.status(unseen.key.expose()).await, 503);
}

async fn redis_quick(server: &RedisServer) -> Redis {
    let connector = RedisConnector::single(server.url()).unwrap();
    connect(connector.connect_timeout(Duration::from_secs(2))).await
}
