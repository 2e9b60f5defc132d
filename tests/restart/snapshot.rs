//! Quotas in a file.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;
use tempfile::TempDir;
use tollgate::{
    Tollgate,
    clock::{Clock, ManualClock, Timestamp},
    error::ConfigError,
    id::{Environment, KeyId, TenantId},
    limit::{
        Cost, LimitCall, LimitSet, LimitStore, LoadedFrom, MemoryLimits, OnDamage, Owner, Period,
        Quota, QuotaSnapshot, Rate, Rule, RuleSet, Scope, ScopeValues, Settlement, SnapshotError,
        Window,
    },
    plan::Plan,
};

/// Never comes round in a test: files are written when the test says so.
const NEVER: Duration = Duration::from_secs(86_400);

struct Disk {
    directory: TempDir,
    clock: ManualClock,
}

/// One life of a process: its counts, and the file that they are kept in.
struct Life {
    limits: Arc<MemoryLimits>,
    snapshot: QuotaSnapshot,
    clock: ManualClock,
}

impl Disk {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            clock: ManualClock::default(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("quotas")
    }

    fn file(&self, suffix: &str) -> PathBuf {
        self.directory.path().join(format!("quotas{suffix}"))
    }

    fn start(&self) -> Life {
        self.try_start(OnDamage::BeginAtZero).unwrap()
    }

    fn try_start(&self, on_damage: OnDamage) -> Result<Life, ConfigError> {
        let limits = Arc::new(MemoryLimits::new());
        let snapshot = QuotaSnapshot::at(self.path())
            .every(NEVER)
            .on_damage(on_damage)
            .clock(Arc::new(self.clock.clone()))
            .open(Arc::clone(&limits))?;
        Ok(Life {
            limits,
            snapshot,
            clock: self.clock.clone(),
        })
    }
}

fn acme() -> Owner {
    Owner::tenant(TenantId::new("acme").unwrap())
}

fn set(rules: impl IntoIterator<Item = impl Into<Rule>>) -> Arc<LimitSet> {
    Arc::new(LimitSet::new(acme(), RuleSet::compile(rules).unwrap()))
}

impl Life {
    /// What is left of the first rule after a call of `n` units.
    fn take(&self, set: &Arc<LimitSet>, n: u64) -> u64 {
        self.take_at(set, &ScopeValues::default(), n)
    }

    fn take_at(&self, set: &Arc<LimitSet>, scopes: &ScopeValues, n: u64) -> u64 {
        let cost = Cost::requests(n);
        let call = LimitCall::new(set, scopes, &cost, self.clock.now());
        self.limits.try_decide(&call).unwrap().unwrap().states[0].remaining
    }

    fn left(&self, rule: impl Into<Rule>) -> u64 {
        self.take(&set([rule]), 0)
    }
}

#[test]
fn a_quota_goes_on_after_a_restart_and_a_kill() {
    let disk = Disk::new();
    let first = disk.start();
    assert_eq!(first.snapshot.loaded().from, LoadedFrom::Nothing);
    first.take(&set([Quota::monthly(100)]), 30);
    first.snapshot.close().unwrap();
    let second = disk.start();
    assert_eq!(second.snapshot.loaded().from, LoadedFrom::Current);
    assert_eq!(second.snapshot.loaded().n_restored, 1);
    assert_eq!(
        second.snapshot.loaded().written_at,
        Some(disk.clock.now().wall())
    );
    assert_eq!(second.take(&set([Quota::monthly(100)]), 5), 65);
    assert_eq!(second.snapshot.save().unwrap(), 1);
    second.take(&set([Quota::monthly(100)]), 7);
    // Like a kill: what was used since the last write is forgotten, and nothing else.
    drop(second);
    assert_eq!(disk.start().left(Quota::monthly(100)), 65);
}

#[test]
fn every_scope_environment_and_owner_comes_back_as_it_was() {
    let disk = Disk::new();
    let owners = [
        acme(),
        acme().environment(Environment::Test),
        acme().key(KeyId::new("k").unwrap()),
        Owner::tenant(TenantId::new("Müller & Söhne").unwrap()),
    ];
    let scopes = [
        ScopeValues::default(),
        ScopeValues::default()
            .route("/v1/{id}")
            .address([192, 0, 2, 7].into()),
        ScopeValues::default()
            .address("2001:db8::1".parse().unwrap())
            .custom("team", "ß"),
    ];
    let kinds = [
        Scope::Tenant,
        Scope::Key,
        Scope::Route,
        Scope::Address,
        Scope::Custom("team".into()),
    ];
    let sets: Vec<_> = owners
        .iter()
        .flat_map(|owner| kinds.iter().map(move |kind| (owner, kind)))
        .map(|(owner, kind)| {
            let rules = RuleSet::compile([Quota::daily(1_000).scope(kind.clone())]).unwrap();
            Arc::new(LimitSet::new(owner.clone(), rules))
        })
        .collect();
    let applies = |set: &Arc<LimitSet>, scopes: &ScopeValues| set.rules()[0].applies_to(scopes);
    let first = disk.start();
    let mut n = 0;
    for set in &sets {
        for scopes in scopes.iter().filter(|scopes| applies(set, scopes)) {
            n += 1;
            first.take_at(set, scopes, n);
        }
    }
    let look = |life: &Life| -> Vec<u64> {
        sets.iter()
            .flat_map(|set| scopes.iter().map(move |scopes| (set, scopes)))
            .filter(|(set, scopes)| applies(set, scopes))
            .map(|(set, scopes)| life.take_at(set, scopes, 0))
            .collect()
    };
    let before = look(&first);
    assert!(before.iter().all(|left| *left < 1_000));
    first.snapshot.close().unwrap();
    assert_eq!(look(&disk.start()), before);
}

#[test]
fn buckets_and_windows_are_not_kept() {
    let disk = Disk::new();
    let first = disk.start();
    let rules: [Rule; 2] = [
        Rate::per_day(10).into(),
        Window::new(10, Duration::from_secs(86_400)).into(),
    ];
    for rule in rules.clone() {
        assert_eq!(first.take(&set([rule]), 4), 6);
    }
    first.snapshot.close().unwrap();
    let second = disk.start();
    for rule in rules {
        assert_eq!(second.left(rule), 10);
    }
}

#[test]
fn a_period_that_has_ended_is_not_restored() {
    let disk = Disk::new();
    let first = disk.start();
    first.take(&set([Quota::hourly(10)]), 4);
    first.take(&set([Quota::monthly(10).named("month")]), 4);
    first.snapshot.close().unwrap();
    disk.clock.advance(Duration::from_secs(3_600));
    let second = disk.start();
    assert_eq!(
        (
            second.snapshot.loaded().n_restored,
            second.snapshot.loaded().n_over
        ),
        (1, 1)
    );
    assert_eq!(second.left(Quota::hourly(10)), 10);
    assert_eq!(second.left(Quota::monthly(10).named("month")), 6);
}

#[test]
fn a_plan_that_changed_meanwhile_keeps_what_was_used() {
    let disk = Disk::new();
    let first = disk.start();
    first.take(&set([Quota::monthly(100)]), 90);
    first.snapshot.close().unwrap();
    let second = disk.start();
    assert_eq!(second.left(Quota::monthly(200)), 110);
    assert_eq!(second.left(Quota::monthly(50)), 0);
    assert_eq!(
        second.left(Quota::daily(50)),
        50,
        "another period counts apart"
    );
}

#[test]
fn a_clock_that_was_set_back_meanwhile_refills_nothing() {
    let disk = Disk::new();
    let first = disk.start();
    first.take(&set([Quota::daily(10)]), 8);
    first.snapshot.close().unwrap();
    let now = disk.clock.now().wall();
    disk.clock
        .set_wall(now.saturating_sub(Duration::from_secs(10 * 86_400)));
    assert_eq!(disk.start().left(Quota::daily(10)), 2);
}

#[test]
fn thresholds_are_not_told_again() {
    let disk = Disk::new();
    let crossings = |life: &Life| {
        let set = set([Quota::monthly(10).thresholds([50, 80])]);
        let (scopes, cost) = (ScopeValues::default(), Cost::requests(3));
        let call = LimitCall::new(&set, &scopes, &cost, life.clock.now());
        let decision = life.limits.try_decide(&call).unwrap().unwrap();
        decision
            .crossings
            .iter()
            .map(|crossing| crossing.percent)
            .collect::<Vec<_>>()
    };
    let first = disk.start();
    assert_eq!((crossings(&first), crossings(&first)), (vec![], vec![50]));
    first.snapshot.close().unwrap();
    assert_eq!(crossings(&disk.start()), [80]);
}

#[test]
fn a_charge_that_is_given_back_after_the_restart_of_another_is_left_alone() {
    let disk = Disk::new();
    let set = set([Quota::monthly(100)]);
    let first = disk.start();
    let (scopes, cost) = (ScopeValues::default(), Cost::requests(40));
    let call = LimitCall::new(&set, &scopes, &cost, disk.clock.now());
    let decision = first.limits.try_decide(&call).unwrap().unwrap();
    first
        .limits
        .settle(&call, &decision.receipt, &Settlement::Refund);
    first.snapshot.close().unwrap();
    assert_eq!(disk.start().left(Quota::monthly(100)), 100);
}

/// Two generations: 90 are left in the older, 80 in the newer.
fn two_generations(disk: &Disk) {
    let life = disk.start();
    for _ in 0..2 {
        life.take(&set([Quota::monthly(100)]), 10);
        life.snapshot.save().unwrap();
    }
}

fn damage(path: &Path, how: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    how(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_file_cut_at_any_length_gives_way_to_the_one_before() {
    let disk = Disk::new();
    two_generations(&disk);
    let whole = fs::read(disk.path()).unwrap();
    let previous = fs::read(disk.file(".previous")).unwrap();
    for length in 0..whole.len() {
        fs::write(disk.path(), &whole[..length]).unwrap();
        fs::write(disk.file(".previous"), &previous).unwrap();
        let life = disk.start();
        assert_eq!(
            life.snapshot.loaded().from,
            LoadedFrom::Previous,
            "cut at {length}"
        );
        assert_eq!(life.left(Quota::monthly(100)), 90);
    }
}

#[test]
fn a_flipped_bit_gives_way_to_the_file_before_which_stays_until_there_is_a_better_one() {
    let disk = Disk::new();
    two_generations(&disk);
    damage(&disk.path(), |bytes| bytes[30] ^= 4);
    for _ in 0..2 {
        // Killed before the first write, any number of times.
        let life = disk.start();
        assert_eq!(life.snapshot.loaded().from, LoadedFrom::Previous);
        assert_eq!(life.left(Quota::monthly(100)), 90);
    }
    disk.start().snapshot.close().unwrap();
    assert!(
        disk.file(".damaged").exists(),
        "kept for whoever wants to know"
    );
    assert_eq!(disk.start().snapshot.loaded().from, LoadedFrom::Current);
    fs::remove_file(disk.path()).unwrap();
    let life = disk.start();
    assert_eq!(
        life.left(Quota::monthly(100)),
        90,
        "the damaged one did not take its place"
    );
}

#[test]
fn a_write_that_was_killed_between_its_two_renames_costs_one_interval() {
    let disk = Disk::new();
    two_generations(&disk);
    fs::rename(disk.path(), disk.file(".previous")).unwrap();
    fs::write(disk.file(".new"), "half of a fi").unwrap();
    let life = disk.start();
    assert_eq!(life.snapshot.loaded().from, LoadedFrom::Previous);
    assert_eq!(life.left(Quota::monthly(100)), 80);
}

#[test]
fn when_no_file_can_be_read_the_choice_is_to_begin_at_zero_or_to_refuse() {
    let disk = Disk::new();
    two_generations(&disk);
    for file in [disk.path(), disk.file(".previous")] {
        damage(&file, |bytes| bytes.truncate(bytes.len() / 2));
    }
    for _ in 0..2 {
        let error = disk.try_start(OnDamage::Refuse).err().unwrap();
        assert_eq!(error.path(), "quota_snapshot");
        assert!(error.to_string().contains("cut short"), "{error}");
    }
    let life = disk.start();
    assert_eq!(life.snapshot.loaded().from, LoadedFrom::Damaged);
    assert_eq!(life.left(Quota::monthly(100)), 100);
    drop(life);
    assert_eq!(
        disk.start().snapshot.loaded().from,
        LoadedFrom::Damaged,
        "said each time"
    );
}

#[test]
fn a_second_gate_on_the_same_file_is_refused_until_the_first_has_ended() {
    let disk = Disk::new();
    let first = disk.start();
    let error = disk.try_start(OnDamage::BeginAtZero).err().unwrap();
    assert!(
        error.to_string().contains("belongs to another gate"),
        "{error}"
    );
    first.snapshot.close().unwrap();
    let second = disk.start();
    assert!(matches!(first.snapshot.save(), Err(SnapshotError::Closed)));
    first.snapshot.close().unwrap();
    drop(second);
    disk.start();
}

#[test]
fn a_directory_that_cannot_be_written_to_is_told_at_the_start() {
    let disk = Disk::new();
    fs::write(disk.file(""), "a file").unwrap();
    let open = |path: PathBuf| {
        let opened = QuotaSnapshot::at(path).open(Arc::new(MemoryLimits::new()));
        opened.unwrap_err().to_string()
    };
    let below_a_file = open(disk.path().join("quotas"));
    assert!(
        below_a_file.starts_with("quota_snapshot: no file can be made in"),
        "{below_a_file}"
    );
    let nowhere = open(disk.directory.path().join("no/such/quotas"));
    assert!(nowhere.contains("make the directory"), "{nowhere}");
    assert!(open(disk.directory.path().to_owned()).contains("names no file"));
}

#[test]
fn an_interval_out_of_range_is_refused() {
    let disk = Disk::new();
    for every in [Duration::ZERO, Duration::MAX] {
        let opened = QuotaSnapshot::at(disk.path())
            .every(every)
            .open(Arc::new(MemoryLimits::new()));
        assert!(opened.unwrap_err().to_string().contains("interval"));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_costs_no_call_and_is_counted() {
    let disk = Disk::new();
    let life = disk.start();
    life.take(&set([Quota::monthly(100)]), 10);
    life.snapshot.save().unwrap();
    life.take(&set([Quota::monthly(100)]), 10);
    // Every write to this device fails as on a full disk.
    std::os::unix::fs::symlink("/dev/full", disk.file(".new")).unwrap();
    let error = life.snapshot.save().unwrap_err();
    let SnapshotError::NotWritten(source) = &error else {
        panic!("{error:?}")
    };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(
        (life.snapshot.n_written(), life.snapshot.n_failed()),
        (1, 1)
    );
    assert_eq!(life.take(&set([Quota::monthly(100)]), 1), 79, "calls go on");
    let kept = disk.directory.path().join("copy");
    fs::copy(disk.path(), &kept).unwrap();
    life.snapshot.save().unwrap();
    drop(life);
    assert_eq!(disk.start().left(Quota::monthly(100)), 79);
    fs::copy(kept, disk.path()).unwrap();
    assert_eq!(
        disk.start().left(Quota::monthly(100)),
        90,
        "what failed had left the last file whole"
    );
}

#[test]
fn a_directory_that_is_removed_meanwhile_costs_no_call() {
    let disk = Disk::new();
    let life = disk.start();
    fs::remove_dir_all(disk.directory.path()).unwrap();
    assert!(matches!(
        life.snapshot.save(),
        Err(SnapshotError::NotWritten(_))
    ));
    assert_eq!(life.take(&set([Quota::monthly(100)]), 1), 99);
    assert!(life.snapshot.close().is_err());
}

#[test]
fn a_store_without_room_says_how_much_it_left_out() {
    let disk = Disk::new();
    let first = disk.start();
    for n in 0..5 {
        first.take(&set([Quota::monthly(100).named(format!("q{n}"))]), 1);
    }
    first.snapshot.close().unwrap();
    let small = Arc::new(MemoryLimits::new().max_keys(3));
    let snapshot = QuotaSnapshot::at(disk.path())
        .clock(Arc::new(disk.clock))
        .open(small)
        .unwrap();
    assert_eq!(
        (snapshot.loaded().n_restored, snapshot.loaded().n_left_out),
        (3, 2)
    );
}

#[tokio::test]
async fn a_gate_writes_in_the_background_and_at_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("quotas");
    let gate = || {
        Tollgate::builder()
            .plans([Plan::new("free").rule(Quota::monthly(100))])
            .quota_snapshot(&path, Duration::from_millis(10))
            .build()
            .unwrap()
    };
    let first = gate();
    let snapshot = first.quota_snapshot().unwrap();
    crate::common::eventually(|| snapshot.n_written() > 2).await;
    let issued = first
        .keys()
        .issue(tollgate::identity::NewKey::for_tenant("acme").plan("free"))
        .await
        .unwrap();
    assert_eq!(
        super::call(&first, issued.key.expose()).await,
        (200, Some(99))
    );
    let report = first.shutdown(Duration::from_secs(5)).await;
    assert_eq!(first.usage().counters().acked, 1, "{report:?}");
    let second = gate();
    let issued = second
        .keys()
        .issue(tollgate::identity::NewKey::for_tenant("acme").plan("free"))
        .await
        .unwrap();
    assert_eq!(
        super::call(&second, issued.key.expose()).await,
        (200, Some(98))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_under_way_is_settled_before_the_last_snapshot_is_written() {
    use http_body_util::BodyExt;
    use tollgate::{Meter, identity::NewKey, limit::Unit};
    use tower::{Layer, ServiceExt, service_fn};

    let directory = tempfile::tempdir().unwrap();
    let gate = || {
        let tokens = Quota::monthly(1_000).unit(Unit::custom("tokens"));
        Tollgate::builder()
            .plans([Plan::new("ai").rule(tokens)])
            .quota_snapshot(directory.path().join("quotas"), NEVER)
            .build()
            .unwrap()
    };
    let first = gate();
    let key = first
        .keys()
        .issue(NewKey::for_tenant("acme").plan("ai"))
        .await
        .unwrap()
        .key;
    let (more, parts) = tokio::sync::mpsc::unbounded_channel::<&'static str>();
    let parts = Arc::new(std::sync::Mutex::new(Some(parts)));
    let service = service_fn(move |request: http::Request<String>| {
        let meter = request.extensions().get::<Meter>().unwrap().clone();
        let parts = tokio_stream::wrappers::UnboundedReceiverStream::new(
            parts.lock().unwrap().take().unwrap(),
        );
        let parts = tokio_stream::StreamExt::map(parts, move |part| {
            meter.add("tokens", 10);
            Ok::<_, std::convert::Infallible>(part)
        });
        async {
            Ok::<_, std::convert::Infallible>(http::Response::new(axum::body::Body::from_stream(
                parts,
            )))
        }
    });
    let request = http::Request::get("/")
        .header("x-api-key", key.expose())
        .body(String::new());
    let mut answer = first
        .layer()
        .layer(service)
        .oneshot(request.unwrap())
        .await
        .unwrap();
    more.send("one").unwrap();
    assert!(answer.body_mut().frame().await.is_some());
    let reader =
        tokio::spawn(async move { answer.into_body().collect().await.unwrap().to_bytes() });
    let stopping = tokio::spawn({
        let first = first.clone();
        async move { first.shutdown(Duration::from_secs(20)).await }
    });
    // The service goes on to the end of its stream after the gate was told to stop.
    for part in ["two", "three"] {
        more.send(part).unwrap();
        tokio::task::yield_now().await;
    }
    drop(more);
    let report = stopping.await.unwrap();
    assert_eq!(&reader.await.unwrap()[..], b"twothree");
    assert_eq!(first.usage().counters().acked, 1, "{report:?}");
    let second = gate();
    assert_eq!(second.quota_snapshot().unwrap().loaded().n_restored, 1);
    let saved = second.quota_snapshot().unwrap();
    assert_eq!(saved.save().unwrap(), 1);
    let key = second
        .keys()
        .issue(NewKey::for_tenant("acme").plan("ai"))
        .await
        .unwrap()
        .key;
    assert_eq!(super::call(&second, key.expose()).await, (200, Some(970)));
}

#[test]
fn a_gate_that_counts_elsewhere_has_no_snapshot() {
    #[derive(Debug)]
    struct Elsewhere(MemoryLimits);
    #[async_trait::async_trait]
    impl LimitStore for Elsewhere {
        fn try_decide(
            &self,
            call: &LimitCall<'_>,
        ) -> Option<Result<tollgate::limit::Decision, tollgate::limit::LimitStoreError>> {
            self.0.try_decide(call)
        }
        async fn decide(
            self: Arc<Self>,
            call: tollgate::limit::OwnedLimitCall,
        ) -> Result<tollgate::limit::Decision, tollgate::limit::LimitStoreError> {
            self.0.try_decide(&call.as_call()).unwrap()
        }
        fn settle(
            &self,
            call: &LimitCall<'_>,
            receipt: &tollgate::limit::Receipt,
            settlement: &Settlement,
        ) {
            self.0.settle(call, receipt, settlement);
        }
    }
    let disk = Disk::new();
    let build = |builder: tollgate::TollgateBuilder| {
        builder
            .plans([Plan::new("free")])
            .quota_snapshot(disk.path(), NEVER)
            .build()
    };
    let error = build(Tollgate::builder().limits(Elsewhere(MemoryLimits::new()))).unwrap_err();
    assert_eq!(error.path(), "quota_snapshot");
    // The store in memory is known behind a handle, too.
    let bounded = build(Tollgate::builder().limits(MemoryLimits::new().max_keys(10)));
    bounded.unwrap().quota_snapshot().unwrap().close().unwrap();
    let shared = build(Tollgate::builder().limits(Arc::new(MemoryLimits::new())));
    shared.unwrap().quota_snapshot().unwrap().close().unwrap();
}

#[derive(Clone, Debug)]
struct Use {
    tenant: u8,
    rule: usize,
    units: u64,
    pause: u64,
}

fn quotas() -> Vec<Rule> {
    vec![
        Quota::hourly(u64::from(u32::MAX)).named("hour").overage(),
        Quota::daily(50)
            .time_zone("Europe/Berlin")
            .named("day")
            .warn(),
        Quota::monthly(1_000).named("month"),
        Quota::new(500, Period::Billing).named("billing"),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever was used, and whenever the process ends, each quota has the same left before and after.
    #[test]
    fn a_restart_at_any_moment_leaves_every_quota_as_it_was(
        uses in proptest::collection::vec(
            (0..4_u8, 0..4_usize, 0..400_u64, 0..3_000_u64)
                .prop_map(|(tenant, rule, units, pause)| Use { tenant, rule, units, pause }),
            0..40,
        ),
        restarts in proptest::collection::btree_set(0..40_usize, 1..4),
    ) {
        let disk = Disk::new();
        let anchor = Timestamp::from_unix_seconds(1_700_000_000);
        let sets: BTreeMap<(u8, usize), Arc<LimitSet>> = (0..4_u8)
            .flat_map(|tenant| (0..4).map(move |rule| (tenant, rule)))
            .map(|(tenant, rule)| {
                let owner = Owner::tenant(TenantId::new(format!("t{tenant}")).unwrap()).billing_anchor(anchor);
                let rules = RuleSet::compile([quotas().remove(rule)]).unwrap();
                ((tenant, rule), Arc::new(LimitSet::new(owner, rules)))
            })
            .collect();
        let look = |life: &Life| sets.values().map(|set| life.take(set, 0)).collect::<Vec<_>>();
        // Never restarted, beside the one that is.
        let steady = Life { limits: Arc::new(MemoryLimits::new()), ..disk.start() };
        drop(steady.snapshot.close());
        let mut life = disk.start();
        for (n, one) in uses.iter().enumerate() {
            disk.clock.advance(Duration::from_secs(one.pause));
            let set = &sets[&(one.tenant, one.rule)];
            prop_assert_eq!(life.take(set, one.units), steady.take(set, one.units));
            if restarts.contains(&n) {
                life.snapshot.close().unwrap();
                life = disk.start();
                prop_assert_eq!(look(&life), look(&steady));
            }
        }
    }
}
