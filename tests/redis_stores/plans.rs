//! One document governs the plans of every process.

use tollgate::{
    limit::{Quota, Rate, Scope},
    plan::{Plan, PlanCatalog, PlanDocument, RedisPlans, RedisPlansError},
};

use super::{plan, redis, subscribed, within};
use crate::common::redis::RedisServer;

fn document(names: &[&str]) -> PlanDocument {
    names.iter().map(|name| Plan::new(*name)).collect()
}

fn has(catalog: &PlanCatalog, name: &str) -> bool {
    catalog.find(&plan(name)).is_some()
}

fn own_plans() -> PlanCatalog {
    PlanCatalog::new([Plan::new("own")]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edited_plan_governs_every_process_and_only_the_version_that_was_read_is_replaced() {
    let server = RedisServer::start();
    let plans = [
        RedisPlans::new(&redis(&server).await),
        RedisPlans::new(&redis(&server).await),
    ];
    let catalogs = [own_plans(), own_plans()];
    for (plans, catalog) in std::iter::zip(&plans, &catalogs) {
        assert_eq!(plans.govern(catalog).await.unwrap(), None);
        assert!(has(catalog, "own"), "until something is published");
    }
    let everywhere = async |name: &str| {
        within(10, name, || {
            catalogs.iter().all(|catalog| has(catalog, name))
        })
        .await;
    };
    let first = plans[0].publish(&document(&["free"]), None).await.unwrap();
    assert_eq!(first, 1);
    everywhere("free").await;
    assert!(catalogs.iter().all(|catalog| !has(catalog, "own")));
    let published = plans[1].load().await.unwrap().unwrap();
    assert_eq!(published.version, 1);
    let next = document(&["free", "pro"]);
    assert_eq!(plans[1].publish(&next, Some(1)).await.unwrap(), 2);
    everywhere("pro").await;
    for read in [None, Some(1), Some(3)] {
        let late = plans[0].publish(&document(&["late"]), read).await;
        assert!(matches!(late, Err(RedisPlansError::Conflict)), "{late:?}");
    }
    assert!(catalogs.iter().all(|catalog| !has(catalog, "late")));
    // A process that starts later.
    let late = own_plans();
    assert_eq!(plans[0].govern(&late).await.unwrap(), Some(2));
    assert!(has(&late, "pro") && !has(&late, "own"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalog_is_governed_for_as_long_as_anybody_has_it() {
    let server = RedisServer::start();
    let catalog = own_plans();
    RedisPlans::new(&redis(&server).await)
        .govern(&catalog)
        .await
        .unwrap();
    let own = redis(&server).await;
    let plans = RedisPlans::new(&own);
    plans.publish(&document(&["free"]), None).await.unwrap();
    within(10, "the new plans", || has(&catalog, "free")).await;
    subscribed(&server, 2).await;
    drop(catalog);
    subscribed(&server, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_racing_publications_of_one_version_exactly_one_succeeds() {
    let server = RedisServer::start();
    let plans = RedisPlans::new(&redis(&server).await);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..16 {
        let plans = plans.clone();
        tasks.spawn(async move {
            let name = format!("plan-{n}");
            plans.publish(&document(&[&name]), None).await.is_ok()
        });
    }
    let n_published = tasks.join_all().await.into_iter().filter(|ok| *ok).count();
    assert_eq!(n_published, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_document_is_named_by_its_field_and_the_old_plans_stay() {
    let server = RedisServer::start();
    let redis = redis(&server).await;
    let (plans, catalog) = (RedisPlans::new(&redis), own_plans());
    plans.publish(&document(&["free"]), None).await.unwrap();
    plans.govern(&catalog).await.unwrap();
    subscribed(&server, 1).await;
    let bad: PlanDocument = [
        Plan::new("free"),
        Plan::new("pro").rule(Rate::per_second(5).burst(0)),
    ]
    .into_iter()
    .collect();
    match plans.publish(&bad, Some(1)).await {
        Err(RedisPlansError::Invalid(error)) => {
            assert_eq!(error.path(), "plans[1].rules[0].burst");
        }
        other => panic!("{other:?}"),
    }
    // Somebody writes past the library.
    for (text, path) in [
        (r#"{"plans":[{"name":"pro","ruls":[]}]}"#, "plans[0].ruls"),
        (r#"{"plans":[{"name":""}]}"#, "plans[0].name"),
        ("", ""),
    ] {
        let _: i64 = server.query(&["HSET", "tg:1:{accounts}:p", "r", text]);
        let _: i64 = server.query(&["HINCRBY", "tg:1:{accounts}:p", "v", "1"]);
        let _: i64 = server.query(&["INCR", "tg:1:{accounts}:n"]);
        match plans.load().await {
            Err(RedisPlansError::Invalid(error)) => assert_eq!(error.path(), path, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
        let refused = own_plans();
        plans.govern(&refused).await.unwrap_err();
        assert!(has(&refused, "own"), "a catalog keeps what it had");
    }
    assert!(has(&catalog, "free"));
    // The next good one is taken, and nothing before it has taken the task down.
    let version: u64 = server.query(&["HGET", "tg:1:{accounts}:p", "v"]);
    plans
        .publish(&document(&["mended"]), Some(version))
        .await
        .unwrap();
    within(10, "the mended plans", || has(&catalog, "mended")).await;
}

/// A rule of a scope that one service has a hook for and another does not: each takes what it can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_that_one_gate_cannot_take_are_refused_there_alone() {
    let server = RedisServer::start();
    let (able, unable) = (own_plans(), own_plans());
    let gates = [
        tollgate::Tollgate::builder()
            .catalog(able.clone())
            .scope("team", |_: &tollgate::head::RequestHead<'_>| {
                Some(std::sync::Arc::<str>::from("red"))
            })
            .build()
            .unwrap(),
        tollgate::Tollgate::builder()
            .catalog(unable.clone())
            .build()
            .unwrap(),
    ];
    let of_able = RedisPlans::new(&redis(&server).await);
    let of_unable = RedisPlans::new(&redis(&server).await);
    of_able.govern(&able).await.unwrap();
    of_unable.govern(&unable).await.unwrap();
    let team: PlanDocument = [
        Plan::new("own"),
        Plan::new("team").rule(Quota::monthly(9).scope(Scope::Custom("team".into()))),
    ]
    .into_iter()
    .collect();
    of_unable.publish(&team, None).await.unwrap_err();
    of_able.publish(&team, None).await.unwrap();
    within(10, "the plan of teams", || has(&able, "team")).await;
    within(10, "a look", || !has(&unable, "team")).await;
    of_able
        .publish(&document(&["own", "last"]), Some(1))
        .await
        .unwrap();
    within(10, "the last plans", || {
        has(&able, "last") && has(&unable, "last")
    })
    .await;
    drop(gates);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_published_while_the_server_was_away_are_found() {
    let mut server = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (plans, catalog) = (RedisPlans::new(&redis(&server).await), own_plans());
    plans.publish(&document(&["free"]), None).await.unwrap();
    plans.govern(&catalog).await.unwrap();
    server.kill();
    assert!(has(&catalog, "free"), "plans outlive their server");
    server.restart();
    RedisPlans::new(&redis(&server).await)
        .publish(&document(&["free", "new"]), Some(1))
        .await
        .unwrap();
    within(15, "the new plans", || has(&catalog, "new")).await;
}
