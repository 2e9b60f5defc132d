//! Every way in which Redis gives no usable answer, through the layer, under each policy.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tollgate::{
    limit::{
        Concurrency, Cost, LimitDegraded, LimitLayer, LimitStoreError, OnStoreFailure, Quota,
        RedisLimits, Rule, ScopeValues,
    },
    redis_support::{RedisConnector, RedisFault},
};
use tower::{Layer, ServiceExt, service_fn};

use super::{ask, call, limits, patient, set_of};
use crate::common::{
    fault_proxy::{Fault, FaultProxy},
    redis::RedisServer,
};

const DEADLINE: Duration = Duration::from_millis(250);

async fn hello(_: Request<()>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from("hello")))
}

/// A store that gives an answer 250 ms: a busy machine keeps that while nothing is wrong.
async fn impatient(url: &str) -> RedisLimits {
    let connector = RedisConnector::single(url)
        .unwrap()
        .connect_timeout(Duration::from_secs(5))
        .response_timeout(DEADLINE);
    RedisLimits::builder(connector).connect().await.unwrap()
}

fn rule(policy: OnStoreFailure) -> Rule {
    Quota::monthly(2).on_store_failure(policy)
}

/// The status of a call, and the mark of one that the store did not decide.
async fn outcome(
    limits: &RedisLimits,
    name: &str,
    policy: OnStoreFailure,
) -> (StatusCode, Option<bool>) {
    let layer = LimitLayer::new(limits.clone(), [rule(policy)])
        .unwrap()
        .named(name)
        .deadline(Duration::from_secs(5));
    let response = layer
        .layer(service_fn(hello))
        .oneshot(Request::new(()))
        .await
        .unwrap();
    let degraded = response.extensions().get::<LimitDegraded>();
    (
        response.status(),
        degraded.map(|degraded| degraded.indeterminate),
    )
}

/// Waits until a call is decided by the store again.
async fn recovers(limits: &RedisLimits, name: &str) {
    let set = set_of(name, [Quota::monthly(1_000_000)]);
    for _ in 0..400 {
        if call(limits, &set).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the store does not recover from {name}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_the_network_is_met_by_the_rule_s_policy_and_passes() {
    let server = RedisServer::start();
    let proxy = FaultProxy::before(server.port).await;
    let limits = impatient(&proxy.url()).await;
    let faults = [
        // The answer was on its way: the call was executed, and nobody may repeat it.
        (Fault::Hold, Some(true)),
        (Fault::Delay(4 * DEADLINE), Some(true)),
        (Fault::CutAfter(0), Some(true)),
        (Fault::CutAfter(3), Some(true)),
        // Nothing was executed.
        (
            Fault::Answer("-LOADING Redis is loading the dataset in memory".into()),
            Some(false),
        ),
        (
            Fault::Answer("-BUSY Redis is busy running a script".into()),
            Some(false),
        ),
        // Not what Redis says.
        (Fault::Answer("+OK".into()), Some(true)),
        (Fault::Answer("*2\r\n:1\r\n:99".into()), Some(true)),
        (Fault::Answer("*1\r\n$1\r\nx".into()), Some(true)),
        (Fault::Answer("HTTP/1.1 400 Bad Request".into()), Some(true)),
    ];
    for (number, (fault, indeterminate)) in faults.into_iter().enumerate() {
        for (policy, status) in [
            (OnStoreFailure::Allow, StatusCode::OK),
            (OnStoreFailure::Local, StatusCode::OK),
            (OnStoreFailure::Deny, StatusCode::SERVICE_UNAVAILABLE),
        ] {
            proxy.set(Fault::None);
            recovers(&limits, &format!("fault-{number}-{policy:?}")).await;
            proxy.set(fault.clone());
            let name = format!("count-{number}-{policy:?}");
            let got = outcome(&limits, &name, policy).await;
            assert_eq!(got, (status, indeterminate), "{fault:?} {policy:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_whose_answer_was_lost_is_charged_once_and_never_repeated() {
    let server = RedisServer::start();
    let proxy = FaultProxy::before(server.port).await;
    let (limits, direct) = (impatient(&proxy.url()).await, limits(&server).await);
    for (number, fault) in [Fault::Hold, Fault::CutAfter(0), Fault::CutAfter(5)]
        .into_iter()
        .enumerate()
    {
        let set = set_of(&format!("lost-{number}"), [Quota::monthly(100)]);
        recovers(&limits, "warm").await;
        proxy.set(fault.clone());
        let lost = call(&limits, &set).await;
        assert!(
            matches!(lost, Err(LimitStoreError::Indeterminate(_))),
            "{lost:?}"
        );
        proxy.set(Fault::None);
        recovers(&limits, "warm").await;
        let states = direct.peek(&set, &ScopeValues::default()).await.unwrap();
        assert_eq!(states[0].remaining, 99, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_gone_charges_nothing_and_is_found_again() {
    let mut server = RedisServer::start();
    let limits = impatient(&server.url()).await;
    let set = set_of("acme", [Quota::monthly(2)]);
    assert!(call(&limits, &set).await.unwrap().is_admitted());
    server.kill();
    // The first call may still find the broken connection.
    let _ = call(&limits, &set).await;
    let gone = call(&limits, &set).await;
    assert!(
        matches!(gone, Err(LimitStoreError::Unavailable(_))),
        "{gone:?}"
    );
    for (policy, status) in [
        (OnStoreFailure::Allow, StatusCode::OK),
        (OnStoreFailure::Local, StatusCode::OK),
        (OnStoreFailure::Deny, StatusCode::SERVICE_UNAVAILABLE),
    ] {
        assert_eq!(
            outcome(&limits, "gone", policy).await,
            (status, Some(false)),
            "{policy:?}"
        );
    }
    server.restart();
    recovers(&limits, "again").await;
    // Its data is lost: at most the whole limit again, once.
    let mut n_admitted = 0;
    for _ in 0..5 {
        n_admitted += u32::from(call(&limits, &set).await.unwrap().is_admitted());
    }
    assert_eq!(n_admitted, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_refusal_of_the_server_is_one_that_charged_nothing() {
    let server = RedisServer::start();
    let proxy = FaultProxy::before(server.port).await;
    let limits = impatient(&proxy.url()).await;
    for code in [
        "LOADING",
        "READONLY",
        "MOVED 1 127.0.0.1:1",
        "ASK 1 127.0.0.1:1",
        "CLUSTERDOWN",
        "TRYAGAIN",
        "MASTERDOWN",
        "CROSSSLOT",
        "OOM",
        "NOREPLICAS",
        "MISCONF",
        "BUSY",
        "NOAUTH",
        "NOPERM",
        "WRONGTYPE",
        "ERR",
        "UNKNOWNCODE",
    ] {
        let set = set_of("acme", [Quota::monthly(1_000)]);
        proxy.set(Fault::None);
        recovers(&limits, "warm").await;
        proxy.set(Fault::Answer(format!("-{code} as a test says")));
        let refused = call(&limits, &set).await;
        let Err(LimitStoreError::Unavailable(cause)) = refused else {
            panic!("{code}: {refused:?}")
        };
        assert!(
            matches!(cause.downcast_ref(), Some(RedisFault::NotRun(_))),
            "{code}: {cause:?}"
        );
    }
    // Once more in full and not a third time, for a server that says so each time.
    proxy.set(Fault::Answer("-NOSCRIPT No matching script".into()));
    let set = set_of("acme", [Quota::monthly(1_000)]);
    assert!(matches!(
        call(&limits, &set).await,
        Err(LimitStoreError::Unavailable(_))
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_takes_no_writes_charges_nothing() {
    let server = RedisServer::start();
    let limits = impatient(&server.url()).await;
    let set = set_of("acme", [Quota::monthly(1_000)]);
    assert!(call(&limits, &set).await.unwrap().is_admitted());
    let refused = async |what: &str| {
        let answer = call(&limits, &set).await;
        assert!(
            matches!(answer, Err(LimitStoreError::Unavailable(_))),
            "{what}: {answer:?}"
        );
    };
    let set_config = |name: &str, value: &str| {
        let () = server.query(&["CONFIG", "SET", name, value]);
    };
    set_config("maxmemory", "1");
    refused("OOM").await;
    set_config("maxmemory", "0");
    recovers(&limits, "memory").await;
    set_config("min-replicas-to-write", "1");
    refused("NOREPLICAS").await;
    set_config("min-replicas-to-write", "0");
    recovers(&limits, "replicas").await;
    // A master that nobody can reach: the server becomes a replica that still answers.
    let () = server.query(&["REPLICAOF", "127.0.0.1", "1"]);
    refused("READONLY").await;
    let () = server.query(&["REPLICAOF", "NO", "ONE"]);
    recovers(&limits, "master").await;
    let states = limits.peek(&set, &ScopeValues::default()).await.unwrap();
    assert_eq!(states[0].remaining, 999);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_at_once() {
    let server = RedisServer::start();
    let proxy = FaultProxy::before(server.port).await;
    let connector = RedisConnector::single(proxy.url())
        .unwrap()
        .response_timeout(Duration::from_secs(30));
    let limits = RedisLimits::builder(connector)
        .max_queued(4)
        .connect()
        .await
        .unwrap();
    proxy.set(Fault::Hold);
    let set = set_of("acme", [Quota::monthly(1_000)]);
    let mut tasks = tokio::task::JoinSet::new();
    let mut n_refused = 0;
    // One batch is on its way, at most 128 calls in it, and four more wait.
    for _ in 0..400 {
        let (limits, set) = (limits.clone(), Arc::clone(&set));
        tasks.spawn(async move { call(&limits, &set).await });
    }
    while let Ok(Some(answer)) =
        tokio::time::timeout(Duration::from_millis(300), tasks.join_next()).await
    {
        let answer = answer.unwrap();
        assert!(
            matches!(answer, Err(LimitStoreError::Unavailable(_))),
            "{answer:?}"
        );
        n_refused += 1;
    }
    assert!(n_refused >= 400 - 128 - 4, "{n_refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_dies_frees_its_slots_within_the_lease_and_one_that_lives_keeps_them() {
    let server = RedisServer::start();
    let lease = Duration::from_millis(900);
    let set = || set_of("acme", [Concurrency::new(2).lease(lease)]);
    let limits = limits(&server).await;
    let kept = call(&limits, &set()).await.unwrap();
    assert!(kept.is_admitted());
    // A runtime that ends without a word stands for a killed process: nobody renews or settles.
    let url = server.url();
    let other = set();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let died = runtime.block_on(async {
            let limits = patient(RedisConnector::single(url).unwrap()).await;
            call(&limits, &other).await.unwrap()
        });
        assert!(died.is_admitted());
        runtime.shutdown_background();
    })
    .join()
    .unwrap();
    assert!(!call(&limits, &set()).await.unwrap().is_admitted());
    let mut waited = Duration::ZERO;
    let freed = loop {
        let again = call(&limits, &set()).await.unwrap();
        if again.is_admitted() {
            break again;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        waited += Duration::from_millis(50);
        assert!(waited < 4 * lease, "the dead process keeps its slot");
    };
    // The living one holds its slot for three leases and more.
    tokio::time::sleep(3 * lease).await;
    assert!(!call(&limits, &set()).await.unwrap().is_admitted());
    assert_eq!(limits.n_open_holds(), 2);
    drop((kept, freed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_of_the_layer_that_passes_gives_the_slot_back_later() {
    let server = RedisServer::start();
    let proxy = FaultProxy::before(server.port).await;
    let connector = RedisConnector::single(proxy.url())
        .unwrap()
        .response_timeout(Duration::from_secs(5));
    let limits = RedisLimits::builder(connector).connect().await.unwrap();
    let set = set_of("acme", [Concurrency::new(3)]);
    proxy.set(Fault::Delay(Duration::from_millis(300)));
    let left = tokio::time::timeout(Duration::from_millis(50), call(&limits, &set)).await;
    assert!(left.is_err());
    proxy.set(Fault::None);
    limits.flush().await;
    limits.flush().await;
    let states = limits.peek(&set, &ScopeValues::default()).await.unwrap();
    assert_eq!(states[0].remaining, 3);
    let held = ask(&limits, &set, &ScopeValues::default(), &Cost::requests(3))
        .await
        .unwrap();
    assert!(held.is_admitted());
}
