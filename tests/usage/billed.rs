//! What a tenant is billed for, from the events in PostgreSQL.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tollgate::{
    id::PlanName,
    pricing::UsageTotals,
    sink::{PostgresSink, UsageSink},
    usage::{PostgresUsage, UsageQueryError},
};

use crate::{
    common::postgres::PostgresServer,
    support::{deliver, events},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_billed_for_each_of_its_events_once_and_by_the_rules_of_pricing() {
    let server = PostgresServer::start();
    let postgres = server.migrated("usage").await;
    let sink = PostgresSink::connect(&postgres).await.expect("a sink");
    // More than a page, and all of it twice.
    let mut all = events(12_000, 3);
    for event in all.iter_mut().step_by(3) {
        event.plan = PlanName::new("free").expect("a name");
    }
    for batch in all.chunks(1_000).chain(all.chunks(700)) {
        deliver(&sink, batch.to_vec()).await;
    }
    let usage = PostgresUsage::new(&postgres);
    let from = all.iter().map(|event| event.time).min().expect("events");
    let last = all.iter().map(|event| event.time).max().expect("events");
    let middle = from.saturating_add(last.saturating_since(from) / 2);
    let tenants: BTreeSet<_> = all.iter().map(|event| event.tenant.clone()).collect();
    assert!(tenants.len() > 1);
    for tenant in &tenants {
        for (from, until) in [
            (from, last.saturating_add(Duration::from_micros(1))),
            (from, middle),
            (middle, last),
        ] {
            let billed = usage.billed(tenant, from, until).await.expect("totals");
            let own = all.iter().filter(|event| {
                event.tenant == *tenant && event.time >= from && event.time < until
            });
            let mut expected = BTreeMap::<_, UsageTotals>::new();
            for event in own {
                expected
                    .entry(event.plan.clone())
                    .or_default()
                    .record(event);
            }
            assert_eq!(billed, expected);
        }
    }

    // Of a period whose beginning was dropped nothing is billed.
    let tomorrow = last.saturating_add(Duration::from_secs(86_400));
    sink.forget_days_before(tomorrow).await.expect("dropped");
    for tenant in &tenants {
        let error = usage.billed(tenant, from, last).await.expect_err("dropped");
        assert!(matches!(error, UsageQueryError::Corrupt(_)), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_which_only_totals_were_kept_are_billed_to_nobody() {
    let server = PostgresServer::start();
    let postgres = server.migrated("usage").await;
    let sink = PostgresSink::builder(&postgres)
        .totals_only()
        .connect()
        .await
        .expect("a sink");
    let all = events(10, 4);
    sink.write(&all).await.expect("verdicts");
    let from = all.iter().map(|event| event.time).min().expect("events");
    let until = from.saturating_add(Duration::from_secs(3 * 86_400));
    let error = PostgresUsage::new(&postgres)
        .billed(&all[0].tenant, from, until)
        .await
        .expect_err("nothing to bill by");
    assert!(matches!(error, UsageQueryError::Corrupt(_)), "{error:?}");
}
