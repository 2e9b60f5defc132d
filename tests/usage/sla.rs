//! Objectives, their budgets, and who is told when they are broken.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use proptest::prelude::*;
use tollgate::{
    clock::Timestamp,
    usage::{
        UsageFilter, UsageTotals,
        sla::{
            AlertError, AlertSink, Objective, PostgresAlertMemory, Promise, SlaAlert, SlaError,
            SlaMonitor, UsageSource,
        },
    },
};

use super::minutes::{at, minute, sum, tenant, write};
use crate::common::postgres::PostgresServer;

const HOUR: Duration = Duration::from_secs(3_600);
const NOON: u64 = 1_768_478_400;

#[derive(Debug, Default)]
struct Told {
    alerts: Mutex<Vec<SlaAlert>>,
    refuses: AtomicBool,
}

#[async_trait]
impl AlertSink for Told {
    async fn breached(&self, alert: &SlaAlert) -> Result<(), AlertError> {
        if self.refuses.load(Ordering::Acquire) {
            return Err("the pager is off".into());
        }
        self.alerts.lock().unwrap().push(alert.clone());
        Ok(())
    }
}

impl Told {
    fn count(&self) -> usize {
        self.alerts.lock().unwrap().len()
    }
}

/// Totals that a test sets.
#[derive(Clone, Debug, Default)]
struct Source(Arc<Mutex<UsageTotals>>, Arc<AtomicUsize>);

#[async_trait]
impl UsageSource for Source {
    async fn totals(&self, filter: &UsageFilter) -> Result<UsageTotals, AlertError> {
        assert_eq!(filter.duration(), HOUR);
        if self.1.fetch_add(1, Ordering::AcqRel) == 1_000 {
            return Err("no answer".into());
        }
        Ok(self.0.lock().unwrap().clone())
    }
}

impl Source {
    fn set(&self, calls: u64, failed: u64) {
        let minute = minute("acme", "/v1", at(NOON), calls, failed, 1_000);
        *self.0.lock().unwrap() = minute.totals;
    }
}

fn objective() -> Objective {
    Objective::new("chat", HOUR)
        .unwrap()
        .availability(990_000)
        .unwrap()
}

#[tokio::test]
async fn a_breach_is_told_once_until_it_is_over() {
    let (source, told) = (Source::default(), Arc::new(Told::default()));
    let monitor = SlaMonitor::new(source.clone(), [objective().tenant(tenant("acme"))])
        .alerts(Arc::<Told>::clone(&told));
    let check = async || monitor.check(at(NOON)).await.expect("checked");
    assert!(
        check().await[0].budgets[0].left() == 0,
        "no calls, no budget, no breach"
    );
    assert_eq!(told.count(), 0);
    source.set(1_000, 10);
    check().await;
    assert_eq!(told.count(), 0, "all that is allowed is allowed");
    source.set(1_000, 11);
    for _ in 0..3 {
        check().await;
    }
    assert_eq!(told.count(), 1);
    source.set(1_000, 0);
    check().await;
    source.set(1_000, 500);
    check().await;
    assert_eq!(told.count(), 2, "it was met in between");
    let alerts = told.alerts.lock().unwrap();
    assert_eq!((&*alerts[0].objective, alerts[0].at), ("chat", at(NOON)));
    assert_eq!(alerts[0].tenant, Some(tenant("acme")));
    assert_eq!((alerts[0].budget.bad, alerts[0].budget.allowed), (11, 10));
}

#[tokio::test]
async fn an_alert_that_was_not_taken_is_told_again() {
    let (source, told) = (Source::default(), Arc::new(Told::default()));
    source.set(10, 10);
    let other = Objective::new("other", HOUR)
        .unwrap()
        .availability(1_000_000)
        .unwrap();
    let monitor =
        SlaMonitor::new(source.clone(), [objective(), other]).alerts(Arc::<Told>::clone(&told));
    told.refuses.store(true, Ordering::Release);
    let error = monitor.check(at(NOON)).await.expect_err("not taken");
    assert!(
        matches!(&error, SlaError::Sink { objective, .. } if &**objective == "chat"),
        "{error:?}"
    );
    told.refuses.store(false, Ordering::Release);
    monitor.check(at(NOON)).await.expect("taken");
    monitor.check(at(NOON)).await.expect("taken");
    assert_eq!(told.count(), 2, "both objectives, once each");
    source.1.store(1_000, Ordering::Release);
    let error = monitor.check(at(NOON)).await.expect_err("no totals");
    assert!(matches!(error, SlaError::Usage { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_processes_one_tells_also_after_a_restart_and_a_crash() {
    let server = PostgresServer::start();
    let postgres = server.migrated("api").await;
    let told = Arc::new(Told::default());
    let usage = tollgate::usage::PostgresUsage::new(&postgres);
    let minutes: Vec<_> = (0..30)
        .map(|n| minute("acme", "/v1", at(NOON - 60 * (n + 1)), 10, 1, 300_000))
        .collect();
    write(&postgres, &minutes).await;
    let objective = || {
        objective()
            .api("default")
            .latency(Duration::from_millis(200), 900_000)
            .unwrap()
    };
    let process = || {
        SlaMonitor::new(usage.clone(), [objective()])
            .alerts(Arc::<Told>::clone(&told))
            .memory(Arc::new(PostgresAlertMemory::new(&postgres)))
    };
    let mut checks = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let monitor = process();
        checks.spawn(async move {
            for _ in 0..3 {
                monitor.check(at(NOON)).await.expect("checked");
            }
        });
    }
    while let Some(done) = checks.join_next().await {
        done.unwrap();
    }
    let standing = process().check(at(NOON)).await.unwrap();
    assert_eq!(told.count(), 2, "availability and latency, once each");
    assert_eq!(standing[0].budgets, objective().budgets(&sum(&minutes)));

    // A process that died between its claim and telling: another may a minute later.
    sqlx::query("UPDATE tollgate.usage_alerts SET told = false")
        .execute(postgres.pool())
        .await
        .unwrap();
    process().check(at(NOON + 59)).await.unwrap();
    assert_eq!(told.count(), 2);
    process().check(at(NOON + 60)).await.unwrap();
    assert_eq!(told.count(), 4);
}

#[tokio::test]
async fn a_memory_in_this_process_forgets_with_it() {
    let source = Source::default();
    source.set(10, 10);
    let told = Arc::new(Told::default());
    for _ in 0..2 {
        let monitor =
            SlaMonitor::new(source.clone(), [objective()]).alerts(Arc::<Told>::clone(&told));
        monitor.check(at(NOON)).await.unwrap();
    }
    assert_eq!(told.count(), 2, "a new process tells again");
}

#[test]
fn settings_that_cannot_be_kept_are_refused() {
    for window in [
        Duration::ZERO,
        Duration::from_secs(59),
        Duration::from_secs(400 * 86_400),
    ] {
        let error = Objective::new("x", window).expect_err("a window");
        assert_eq!(error.path(), "window");
    }
    for share in [0, 1_000_001, u32::MAX] {
        let objective = || Objective::new("x", HOUR).unwrap();
        assert_eq!(
            objective().availability(share).unwrap_err().path(),
            "availability"
        );
        assert_eq!(
            objective().latency(HOUR, share).unwrap_err().path(),
            "latency"
        );
    }
    let error = Objective::new("x", HOUR)
        .unwrap()
        .latency(Duration::ZERO, 1)
        .unwrap_err();
    assert_eq!(error.path(), "latency");
    let early = objective().filter(Timestamp::UNIX_EPOCH);
    assert_eq!(early.duration(), Duration::ZERO, "no time before 1970");
}

proptest! {
    #[test]
    fn a_budget_is_that_of_exact_shares(
        target in 1_u32..=1_000_000, calls in any::<u64>(), refused in any::<u64>(), failed in any::<u64>(),
    ) {
        let mut totals = UsageTotals::default();
        (totals.calls, totals.refused, totals.failed) = (calls, refused, failed);
        let objective = Objective::new("x", HOUR).unwrap().availability(target).unwrap();
        let budget = objective.budgets(&totals)[0];
        let counted = u128::from(calls.saturating_sub(refused));
        prop_assert_eq!(budget.promise, Promise::Availability);
        // Breached exactly when less than the target's share of the calls was good.
        let may_fail = counted * u128::from(1_000_000 - target);
        prop_assert_eq!(budget.is_breached(), u128::from(failed) * 1_000_000 > may_fail);
        match budget.burn_percent() {
            None => prop_assert_eq!(may_fail, 0),
            Some(burn) => {
                let is_above = u128::from(failed) * 1_000_000 > may_fail;
                prop_assert_eq!(burn > 100, is_above);
            }
        }
    }
}
