//! Many tenants at once: nobody is taken for another, whatever changes or breaks meanwhile.

use std::{
    convert::Infallible,
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tollgate::{
    clock::{Clock as _, Timestamp},
    id::{PlanName, TenantId},
    identity::{Identity, NewKey},
    limit::{HeaderStyle, LimitLayer, MemoryLimits, Quota, Rate},
    meter::Meter,
    plan::Plan,
    tenant::{AccessState, current_tenant},
};
use tower::{Layer as _, service_fn};

use super::{call, get, stand, who};
use crate::common::{self, eventually, serve};

fn id(name: &str) -> TenantId {
    TenantId::new(name).expect("a legal id")
}

/// Says on whose behalf it runs, by everything that can tell, and panics now and then.
async fn says(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let identity = request.extensions().get::<Identity>().expect("an identity");
    let name = identity.tenant().id().as_str().to_owned();
    tokio::task::yield_now().await;
    let meter = request.extensions().get::<Meter>().expect("a meter");
    assert_eq!(
        meter.identity().expect("identified").tenant().id().as_str(),
        name
    );
    assert_eq!(current_tenant().expect("a tenant").id().as_str(), name);
    assert_eq!(request.headers()["x-tenant-id"], *name);
    if request.uri().path() == "/panic" {
        // As a panic, but without a word on standard error.
        resume_unwind(Box::new("the service was told to panic"));
    }
    Ok(Response::new(Full::from(name)))
}

const N_TENANTS: usize = 64;
const N_CALLS: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_crosses_tenants_while_plans_keys_and_access_change_and_the_service_panics() {
    let stand = Arc::new(stand(|builder| {
        builder.task_local_tenant(true).forward_headers(true)
    }));
    let server = Arc::new(serve(stand.gate.layer().layer(service_fn(says))).await);
    let ended = Arc::new(AtomicBool::new(false));
    let n_served = Arc::new(AtomicUsize::new(0));

    let mut running = Vec::new();
    for n in 0..N_TENANTS {
        let name = format!("tenant-{n}");
        let key = stand.issue(&name).await;
        let (server, n_served) = (Arc::clone(&server), Arc::clone(&n_served));
        running.push(tokio::spawn(async move {
            for call in 0..N_CALLS {
                let panics = (call + n) % 100 == 99;
                let mut request = common::request("GET", if panics { "/panic" } else { "/" });
                let headers = request.headers_mut();
                headers.insert("x-api-key", key.parse().expect("a value"));
                headers.insert("x-tenant-id", "victim".parse().expect("a value"));
                let answer = server.send_http2(request).await;
                if panics {
                    assert_eq!(answer.status, 500, "{}", answer.text());
                } else {
                    assert_eq!((answer.status.as_u16(), answer.text()), (200, &*name));
                    n_served.fetch_add(1, Ordering::Relaxed);
                }
            }
        }));
    }

    let (changed, stop) = (Arc::clone(&stand), Arc::clone(&ended));
    let changing = tokio::spawn({
        let server = Arc::clone(&server);
        async move {
            let ask = async |key: &str| {
                let mut request = common::request("GET", "/");
                request
                    .headers_mut()
                    .insert("x-api-key", key.parse().expect("a value"));
                server.send_http2(request).await
            };
            let mut n_rounds = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                n_rounds += 1;
                let gate = &changed.gate;
                let plan = Plan::new("free").rule(Rate::per_second(1_000_000 + n_rounds));
                gate.plans().replace([plan]).expect("a legal plan");

                let new = NewKey::for_tenant("changing").plan("free");
                let issued = gate.keys().issue(new).await.expect("a key");
                let key = issued.key.expose();
                assert_eq!(ask(key).await.text(), "changing");
                let tenants = gate.tenants();
                let tenant = id("changing");
                tenants
                    .set_access(&tenant, AccessState::Suspended)
                    .await
                    .expect("suspended");
                assert_eq!(ask(key).await.status, 402);
                tenants
                    .set_access(&tenant, AccessState::Active)
                    .await
                    .expect("active");
                assert_eq!(ask(key).await.text(), "changing");
                gate.keys()
                    .revoke(&issued.record.id)
                    .await
                    .expect("revoked");
                let status = ask(key).await.status;
                // All callers share an address, and each revoked key is a failed attempt from it.
                assert!(status == 401 || status == 429, "{status}");
            }
            n_rounds
        }
    });
    for caller in running {
        caller.await.expect("no crossing");
    }
    ended.store(true, Ordering::Relaxed);
    assert!(changing.await.expect("every change took effect") > 3);

    let n_panics = (0..N_TENANTS)
        .map(|n| (0..N_CALLS).filter(|call| (call + n) % 100 == 99).count())
        .sum::<usize>();
    assert_eq!(
        n_served.load(Ordering::Relaxed),
        N_TENANTS * N_CALLS - n_panics
    );
    eventually(|| stand.gate.usage().counters().open == 0).await;
    stand.assert_balanced().await;
    for n in 0..N_TENANTS {
        let events = stand.sink.of_tenant(&id(&format!("tenant-{n}")));
        assert_eq!(events.len(), N_CALLS, "tenant-{n}");
    }
}

#[tokio::test]
async fn no_tenant_reaches_the_ceiling_by_its_name() {
    // The plan's rule and the ceiling have one kind, one name and one count, as they would in a small service.
    let stand = stand(|builder| {
        builder
            .plans([Plan::new("free").rule(Quota::daily(10))])
            .ceiling(Quota::daily(100))
    });
    let mut keys = Vec::new();
    for name in ["every-call", "acme"] {
        keys.push((name, stand.issue(name).await));
    }
    let service = stand.gate.layer().layer(service_fn(who));
    for (name, key) in &keys {
        for n in 0..15 {
            let (status, _) = call(&service, get("/", &[("x-api-key", key)])).await;
            assert_eq!(status, if n < 10 { 200 } else { 429 }, "{name} {n}");
        }
    }
}

#[tokio::test]
async fn a_value_of_a_hook_does_not_reach_the_counts_of_a_tenant_of_that_name() {
    let limits = Arc::new(MemoryLimits::new());
    let shared = Arc::clone(&limits);
    let stand = stand(|builder| {
        builder
            .plans([Plan::new("free").rule(Quota::daily(10))])
            .limits(shared)
    });
    let key = stand.issue("acme").await;
    let attacker = stand.issue("attacker").await;
    let by_header = LimitLayer::new(limits, [Quota::daily(10)])
        .expect("legal rules")
        .headers(HeaderStyle::Off)
        .by(|head: &tollgate::head::RequestHead<'_>| {
            let value = head.headers().get("x-campaign")?;
            Some(Arc::from(value.to_str().ok()?))
        });
    let service = by_header.layer(stand.gate.layer().layer(service_fn(who)));
    let attack = [("x-campaign", "acme"), ("x-api-key", &*attacker)];
    for n in 0..20 {
        let (status, _) = call(&service, get("/", &attack)).await;
        assert_eq!(status, if n < 10 { 200 } else { 429 }, "{n}");
    }
    for n in 0..12 {
        let (status, _) = call(&service, get("/", &[("x-api-key", &key)])).await;
        assert_eq!(status, if n < 10 { 200 } else { 429 }, "{n}");
    }
}

#[tokio::test]
async fn a_clock_that_steps_gives_no_more_calls_and_locks_nobody_out() {
    let stand = stand(|builder| {
        let rules = Plan::new("free")
            .rule(Rate::per_second(10).burst(10))
            .rule(Quota::daily(100));
        builder.plans([rules])
    });
    let key = stand.issue("acme").await;
    let service = stand.gate.layer().layer(service_fn(who));
    let admitted = async || {
        let mut n = 0;
        for _ in 0..30 {
            n += usize::from(call(&service, get("/", &[("x-api-key", &key)])).await.0 == 200);
        }
        n
    };
    let start = stand.clock.now().wall();
    let day = Duration::from_secs(86_400);
    assert_eq!(admitted().await, 10);
    for wall in [
        start.saturating_sub(day),
        start.saturating_add(day / 24),
        start.saturating_sub(day),
        start.saturating_add(day / 24),
        start,
    ] {
        stand.clock.set_wall(wall);
        assert_eq!(admitted().await, 0, "the bucket runs by the other clock");
        stand.clock.advance(Duration::from_secs(1));
        assert_eq!(admitted().await, 10, "nobody is locked out");
    }
    // 60 of the quota's 100 are used, whatever the wall clock said meanwhile.
    for expected in [10, 10, 10, 10, 0, 0] {
        stand.clock.advance(Duration::from_secs(1));
        assert_eq!(admitted().await, expected);
    }
    // Far ahead there is one more quota, and back again the old one is not reopened.
    stand.clock.set_wall(start.saturating_add(day));
    assert_eq!(admitted().await, 10);
    stand.clock.set_wall(start);
    let mut n = 0;
    for _ in 0..30 {
        stand.clock.advance(Duration::from_secs(1));
        n += admitted().await;
    }
    assert!(n <= 90, "{n}");
    for wall in [
        Timestamp::MAX,
        Timestamp::UNIX_EPOCH,
        start.saturating_add(day * 3),
    ] {
        stand.clock.set_wall(wall);
        stand.clock.advance(Duration::from_secs(1));
        admitted().await;
    }
    assert!(admitted().await <= 10);
    stand.assert_balanced().await;
}

#[tokio::test]
async fn a_key_of_a_plan_that_was_taken_off_sale_is_told_to_try_later() {
    let stand = stand(|builder| builder);
    let key = stand.issue("acme").await;
    let service = stand.gate.layer().layer(service_fn(who));
    assert_eq!(
        call(&service, get("/", &[("x-api-key", &key)])).await.0,
        200
    );
    stand
        .gate
        .plans()
        .replace([Plan::new("other")])
        .expect("a legal plan");
    assert_eq!(
        call(&service, get("/", &[("x-api-key", &key)])).await.0,
        503
    );
    let other = PlanName::new("other").expect("a name");
    stand
        .gate
        .tenants()
        .set_plan(&id("acme"), &other)
        .await
        .expect("set");
    assert_eq!(
        call(&service, get("/", &[("x-api-key", &key)])).await.0,
        200
    );
}

#[tokio::test]
async fn a_gate_with_many_tenants_is_still_shown_in_a_line() {
    let stand = stand(|builder| builder);
    let service = stand.gate.layer().layer(service_fn(who));
    for n in 0..200 {
        let key = stand.issue(&format!("tenant-{n}")).await;
        call(&service, get("/", &[("x-api-key", &key)])).await;
    }
    let shown = format!("{:?}", stand.gate);
    assert!(!shown.contains("tenant-1"), "{shown}");
    assert!(shown.len() < 4_000, "{} bytes: {shown}", shown.len());
}
