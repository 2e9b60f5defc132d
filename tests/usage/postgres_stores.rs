//! Keys and tenants in PostgreSQL.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::Request;
use sqlx::{Connection, PgConnection};
use tollgate::{
    Tollgate,
    auth::{
        KeyDigest, KeyListener, KeyRecord, KeyStore, KeyStoreError, KeyUse, MemoryKeyStore,
        PostgresKeyStore,
    },
    clock::{Clock, ManualClock, Timestamp},
    conformance,
    id::{KeyId, PlanName, TenantId},
    identity::NewKey,
    limit::Rate,
    plan::Plan,
    postgres_support::Postgres,
    tenant::{
        AccessState, PostgresTenantStore, TenantListener, TenantRecord, TenantStore,
        TenantStoreError,
    },
};
use tower::{Layer, ServiceExt, service_fn};

use crate::common::{
    eventually,
    fault_proxy::{Fault, FaultProxy},
    postgres::PostgresServer,
};

const DAY: Duration = Duration::from_secs(86_400);

fn noon() -> Timestamp {
    ManualClock::default().now().wall()
}

fn id(text: &str) -> KeyId {
    KeyId::new(text).expect("an id")
}

fn acme() -> TenantId {
    TenantId::new("acme").expect("an id")
}

fn digest(n: u8) -> KeyDigest {
    KeyDigest::from_bytes([n; 32])
}

fn key(text: &str) -> KeyRecord {
    KeyRecord::new(id(text), acme(), "tg_live_…0000".into(), noon())
}

fn tenant() -> TenantRecord {
    TenantRecord::new(acme(), PlanName::new("free").expect("a name"))
}

/// What a cache would hear.
#[derive(Debug, Default)]
struct Heard {
    keys: Mutex<Vec<(KeyDigest, u64)>>,
    tenants: AtomicUsize,
    lost: AtomicUsize,
}

impl Heard {
    fn has(&self, digest: KeyDigest, version: u64) -> bool {
        self.keys.lock().unwrap().contains(&(digest, version))
    }

    fn lost(&self) -> usize {
        self.lost.load(Ordering::Acquire)
    }
}

impl KeyListener for Heard {
    fn key_changed(&self, digest: &KeyDigest, version: u64) {
        self.keys.lock().unwrap().push((*digest, version));
    }

    fn keys_lost(&self) {
        self.lost.fetch_add(1, Ordering::AcqRel);
    }
}

impl TenantListener for Heard {
    fn tenant_changed(&self, _: &TenantId) {
        self.tenants.fetch_add(1, Ordering::AcqRel);
    }

    fn tenants_lost(&self) {
        self.lost.fetch_add(1, Ordering::AcqRel);
    }
}

/// A listener of a store that listens by now.
async fn listener_of(store: &PostgresKeyStore) -> Arc<Heard> {
    let heard = Arc::new(Heard::default());
    let listener: Arc<dyn KeyListener> = Arc::<Heard>::clone(&heard);
    store.subscribe(Arc::downgrade(&listener));
    eventually(|| heard.lost() == 1).await;
    heard
}

async fn run(postgres: &Postgres, sql: &str) -> u64 {
    let done = sqlx::query(sql).execute(postgres.pool()).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"))
        .rows_affected()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_stores_keep_their_contracts() {
    let server = PostgresServer::start();
    let postgres = server.migrated("api").await;
    conformance::key_store(|| async {
        run(&postgres, "TRUNCATE tollgate.keys").await;
        PostgresKeyStore::new(&postgres)
    })
    .await;
    conformance::tenant_store(|| async {
        run(&postgres, "TRUNCATE tollgate.tenants").await;
        PostgresTenantStore::new(&postgres)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uses_are_noted_by_many_processes_at_once_and_the_latest_stays() {
    let server = PostgresServer::start();
    let postgres = server.migrated("api").await;
    let store = PostgresKeyStore::new(&postgres);
    for n in 0..20 {
        store
            .create(digest(n), key(&format!("k{n}")))
            .await
            .unwrap();
    }
    let mut tasks = tokio::task::JoinSet::new();
    for process in 0..8_u8 {
        let store = PostgresKeyStore::new(&postgres);
        tasks.spawn(async move {
            for round in 0..10 {
                // Each in an order of its own.
                let mut uses: Vec<_> = (0..20)
                    .map(|n| {
                        let after = u64::from(process) + 8 * round;
                        let at = noon().saturating_add(Duration::from_secs(after));
                        KeyUse::new(digest(n), id(&format!("k{n}")), at)
                    })
                    .collect();
                uses.rotate_left(usize::from(process) * 2);
                store
                    .touch(&uses)
                    .await
                    .expect("no process waits for another for ever");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("touched");
    }
    let used = store.last_used(&acme()).await.unwrap();
    assert_eq!(used.len(), 20);
    let last = noon().saturating_add(Duration::from_secs(7 + 8 * 9));
    assert!(used.values().all(|at| *at == last), "{used:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_comes_back_as_it_was_written() {
    let server = PostgresServer::start();
    let postgres = server.migrated("api").await;
    let (keys, tenants) = (
        PostgresKeyStore::new(&postgres),
        PostgresTenantStore::new(&postgres),
    );
    let mut record = key("k1");
    record.environment = tollgate::id::Environment::Test;
    record.counts_as = Some(id("k0"));
    record.plan = Some(PlanName::new("pro").unwrap());
    record.scopes = ["chat:read".into(), "a \"quoted\" one".into()].into();
    record.allowed_networks = vec!["10.0.0.0/8".parse().unwrap()];
    record.limits = vec![Rate::per_second(u32::MAX.into()).into()];
    record.expires_at = Some(Timestamp::MAX);
    // To the microsecond, and before PostgreSQL's own epoch.
    record.created_at = Timestamp::from_unix_micros(1);
    let created = keys.create(digest(1), record.clone()).await.unwrap();
    record.version = 1;
    assert_eq!(*created, record);
    assert_eq!(
        keys.find(&digest(1)).await.unwrap().as_deref(),
        Some(&record)
    );

    let mut record = tenant();
    record.access = AccessState::Grace {
        until: Timestamp::from_unix_micros(1_768_478_400_000_001),
        suspend_at: Some(Timestamp::MAX),
    };
    record.billing_anchor = Some(noon());
    record.pay_url = Some("https://pay.example/acme".into());
    tenants.create(record.clone()).await.unwrap();
    record.version = 1;
    assert_eq!(
        tenants.find(&acme()).await.unwrap().as_deref(),
        Some(&record)
    );
    record.pay_url = None;
    let replaced = tenants.replace(record).await.unwrap();
    assert_eq!(replaced.pay_url, None, "what is taken away is gone");
    assert_eq!(replaced.billing_anchor, Some(noon()));
    let found = tenants.find(&acme()).await.unwrap();
    assert_eq!(found, Some(replaced));
}

#[tokio::test(flavor = "multi_thread")]
async fn random_changes_end_as_in_memory() {
    let server = PostgresServer::start();
    let postgres = server.migrated("api").await;
    let (far, model) = (PostgresKeyStore::new(&postgres), MemoryKeyStore::new());
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |n: u64| {
        // xorshift64: the same steps in each run.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % n
    };
    for step in 0..300_u64 {
        let now = noon().saturating_add(Duration::from_secs(step));
        let name = format!("k{}", next(8));
        let digest = digest(u8::try_from(next(12)).unwrap());
        let mut record = key(&name);
        record.created_at = now;
        let results = match next(3) {
            0 => {
                if next(2) == 0 {
                    record.expires_at = Some(now.saturating_add(Duration::from_secs(next(40))));
                }
                let far = far.create(digest, record.clone()).await;
                [far, model.create(digest, record).await]
            }
            1 => {
                let old = id(&format!("k{}", next(8)));
                let until = now.saturating_add(Duration::from_secs(next(40)));
                let far = far.rotate(&old, until, digest, record.clone(), now).await;
                [far, model.rotate(&old, until, digest, record, now).await]
            }
            _ if next(8) == 0 => [
                far.revoke(&id(&name), now).await,
                model.revoke(&id(&name), now).await,
            ],
            _ => [
                far.find(&digest).await.and_then(found),
                model.find(&digest).await.and_then(found),
            ],
        };
        let [far_said, model_said] = results.map(|result| format!("{result:?}"));
        assert_eq!(far_said, model_said, "step {step}");
    }
    assert_eq!(
        far.list(&acme()).await.unwrap(),
        model.list(&acme()).await.unwrap()
    );
}

/// What was found, as a change answers.
fn found(found: Option<Arc<KeyRecord>>) -> Result<Arc<KeyRecord>, KeyStoreError> {
    found.ok_or(KeyStoreError::NotFound)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_by_another_process_or_by_hand_is_heard() {
    let server = PostgresServer::start();
    let postgres = server.migrated("api").await;
    let (here, there) = (
        PostgresKeyStore::new(&postgres),
        PostgresKeyStore::new(&postgres),
    );
    let heard = listener_of(&here).await;
    there.create(digest(1), key("k1")).await.unwrap();
    let until = noon().saturating_add(DAY);
    let next = key("k2");
    there
        .rotate(&id("k1"), until, digest(2), next, noon())
        .await
        .unwrap();
    eventually(|| heard.has(digest(1), 2) && heard.has(digest(2), 1)).await;
    there.revoke(&id("k2"), noon()).await.unwrap();
    eventually(|| heard.has(digest(2), 2)).await;

    assert_eq!(
        run(
            &postgres,
            "UPDATE tollgate.keys SET revoked_at = now() WHERE id = 'k1'"
        )
        .await,
        1
    );
    eventually(|| heard.has(digest(1), 3)).await;
    assert!(
        here.find(&digest(1))
            .await
            .unwrap()
            .unwrap()
            .revoked_at
            .is_some()
    );
    run(&postgres, "UPDATE tollgate.keys SET last_used_at = now()").await;
    run(&postgres, "DELETE FROM tollgate.keys WHERE id = 'k2'").await;
    eventually(|| {
        heard
            .keys
            .lock()
            .unwrap()
            .iter()
            .filter(|it| **it == (digest(2), 2))
            .count()
            == 2
    })
    .await;
    assert!(!heard.has(digest(1), 4), "when a key was used is no change");

    let tenants = PostgresTenantStore::new(&postgres);
    let listener: Arc<dyn TenantListener> = Arc::<Heard>::clone(&heard);
    tenants.subscribe(Arc::downgrade(&listener));
    eventually(|| heard.lost() == 2).await;
    PostgresTenantStore::new(&postgres)
        .create(tenant())
        .await
        .unwrap();
    eventually(|| heard.tenants.load(Ordering::Acquire) == 1).await;
    run(&postgres, "UPDATE tollgate.tenants SET plan = 'pro'").await;
    eventually(|| heard.tenants.load(Ordering::Acquire) == 2).await;
    let stale = tenants
        .replace(TenantRecord::clone(&tenant_of_version(1)))
        .await;
    assert!(
        matches!(stale, Err(TenantStoreError::Conflict)),
        "{stale:?}"
    );
}

fn tenant_of_version(version: u64) -> TenantRecord {
    let mut record = tenant();
    record.version = version;
    record
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_lost_makes_caches_forget() {
    // What is committed must be in the log before the crash.
    let mut server = PostgresServer::with(&["synchronous_commit=on"]);
    let postgres = server.migrated("api").await;
    let store = PostgresKeyStore::new(&postgres);
    let heard = listener_of(&store).await;
    server.crash();
    let down = store.find(&digest(1)).await;
    assert!(
        matches!(down, Err(KeyStoreError::Unavailable(_))),
        "{down:?}"
    );
    server.start_again();
    eventually(|| heard.lost() == 2).await;
    let other = PostgresKeyStore::connect(server.url("api")).await.unwrap();
    other.create(digest(1), key("k1")).await.unwrap();
    eventually(|| heard.has(digest(1), 1)).await;
    assert!(
        store.find(&digest(1)).await.unwrap().is_some(),
        "the pool is back"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gates_share_keys_and_a_revoked_one_stops_at_both() {
    let server = PostgresServer::start();
    let postgres = server.migrated("api").await;
    let gate = || {
        Tollgate::builder()
            .plans([Plan::new("free").rule(Rate::per_second(100))])
            .keys(PostgresKeyStore::new(&postgres))
            .tenants(PostgresTenantStore::new(&postgres))
            .build()
            .expect("a gate")
    };
    let (here, there) = (gate(), gate());
    let issued = here
        .keys()
        .issue(NewKey::for_tenant("acme").plan("free"))
        .await
        .unwrap();
    let layer = there.layer();
    let call = async || {
        let inner = service_fn(|_: Request<String>| async {
            Ok::<_, std::convert::Infallible>(http::Response::new(String::new()))
        });
        let request = Request::get("/").header("x-api-key", issued.key.expose());
        let request = request.body(String::new()).unwrap();
        layer
            .layer(inner)
            .oneshot(request)
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(call().await, 200);
    here.keys().revoke(&issued.record.id).await.unwrap();
    let mut status = 200;
    for _ in 0..1_000 {
        status = call().await;
        if status == 401 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(status, 401, "the other gate heard of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_record_is_corrupt_and_what_is_newer_is_kept() {
    let server = PostgresServer::start();
    let postgres = server.migrated("api").await;
    let (keys, tenants) = (
        PostgresKeyStore::new(&postgres),
        PostgresTenantStore::new(&postgres),
    );
    keys.create(digest(1), key("k1")).await.unwrap();
    tenants.create(tenant()).await.unwrap();
    run(
        &postgres,
        r#"UPDATE tollgate.keys SET rest = rest || '{"of_a_later_version": {"a": 1}}'"#,
    )
    .await;
    run(&postgres, r#"UPDATE tollgate.tenants SET rest = rest || '{"of_a_later_version": 18446744073709551615}'"#).await;
    let until = noon().saturating_add(DAY);
    keys.rotate(&id("k1"), until, digest(2), key("k2"), noon())
        .await
        .unwrap();
    keys.revoke(&id("k1"), noon()).await.unwrap();
    let mut changed = TenantRecord::clone(&tenants.find(&acme()).await.unwrap().unwrap());
    changed.pay_url = Some("https://pay.example".into());
    tenants.replace(changed).await.unwrap();
    for table in ["keys", "tenants"] {
        let sql =
            format!("UPDATE tollgate.{table} SET rest = rest WHERE rest ? 'of_a_later_version'");
        assert_eq!(run(&postgres, &sql).await, 1, "{table}");
    }
    // A row of the first version has nothing but what it must have.
    run(
        &postgres,
        r#"UPDATE tollgate.keys SET rest = '{"shown": "…"}'"#,
    )
    .await;
    run(&postgres, "UPDATE tollgate.tenants SET rest = '{}'").await;
    assert!(keys.find(&digest(1)).await.unwrap().is_some());
    assert!(tenants.find(&acme()).await.unwrap().is_some());

    for sql in [
        r#"UPDATE tollgate.keys SET rest = '[]'"#,
        r#"UPDATE tollgate.keys SET rest = '{"shown": 5}'"#,
        r#"UPDATE tollgate.keys SET rest = '{"shown": "…"}', created_at = 'infinity'"#,
        r#"UPDATE tollgate.keys SET created_at = now(), expires_at = '1969-12-31'"#,
    ] {
        run(&postgres, sql).await;
        for result in [
            keys.find(&digest(1)).await,
            keys.find_by_id(&id("k1")).await,
        ] {
            assert!(
                matches!(result, Err(KeyStoreError::Corrupt(_))),
                "{sql}: {result:?}"
            );
        }
        let listed = keys.list(&acme()).await;
        assert!(
            matches!(listed, Err(KeyStoreError::Corrupt(_))),
            "{sql}: {listed:?}"
        );
    }
    for sql in [
        r#"UPDATE tollgate.tenants SET access = '{"state": "unheard_of"}'"#,
        r#"UPDATE tollgate.tenants SET access = '{"state": "active"}', plan = ''"#,
    ] {
        run(&postgres, sql).await;
        let found = tenants.find(&acme()).await;
        assert!(
            matches!(found, Err(TenantStoreError::Corrupt(_))),
            "{sql}: {found:?}"
        );
    }
}

/// The error with all of its causes.
fn whole(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_serve_is_told_apart() {
    let server = PostgresServer::start();
    let url = server.create("bare").await;
    let store = PostgresKeyStore::connect(&url).await.unwrap();
    let error = store.find(&digest(1)).await.expect_err("no table");
    assert!(
        whole(&error).contains("run `Postgres::migrate`"),
        "{}",
        whole(&error)
    );

    let postgres = server.migrated("standby").await;
    run(
        &postgres,
        "ALTER DATABASE standby SET default_transaction_read_only = on",
    )
    .await;
    let store = PostgresKeyStore::connect(server.url("standby"))
        .await
        .unwrap();
    assert_eq!(store.find(&digest(1)).await.unwrap(), None);
    let created = store.create(digest(1), key("k1")).await;
    assert!(
        matches!(created, Err(KeyStoreError::ReadOnly)),
        "{created:?}"
    );
    let tenants = PostgresTenantStore::connect(server.url("standby"))
        .await
        .unwrap();
    let created = tenants.create(tenant()).await;
    assert!(
        matches!(created, Err(TenantStoreError::Unavailable(_))),
        "{created:?}"
    );

    server.migrated("slow").await;
    let proxy = FaultProxy::before(server.port).await;
    let url = format!("postgres://tollgate@{}/slow", proxy.addr);
    let store = PostgresKeyStore::connect(&url).await.unwrap();
    let store = store.deadline(Duration::from_millis(50)).unwrap();
    assert_eq!(store.find(&digest(1)).await.unwrap(), None);
    proxy.set(Fault::Hold);
    let error = store.find(&digest(1)).await.expect_err("no answer");
    assert!(
        whole(&error).contains("no answer within 50ms"),
        "{}",
        whole(&error)
    );
    let error = store.deadline(Duration::ZERO).expect_err("no time");
    assert!(error.to_string().starts_with("deadline: "), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_that_the_guide_names_suffice() {
    let server = PostgresServer::start();
    let postgres = server.migrated("api").await;
    for sql in [
        "CREATE ROLE gate LOGIN",
        "GRANT USAGE ON SCHEMA tollgate TO gate",
        "GRANT SELECT, INSERT, UPDATE ON tollgate.keys, tollgate.tenants TO gate",
    ] {
        run(&postgres, sql).await;
    }
    let url = server.url("api").replace("tollgate@", "gate@");
    let store = PostgresKeyStore::connect(&url).await.unwrap();
    let heard = listener_of(&store).await;
    store.create(digest(1), key("k1")).await.unwrap();
    let until = noon().saturating_add(DAY);
    store
        .rotate(&id("k1"), until, digest(2), key("k2"), noon())
        .await
        .unwrap();
    store.revoke(&id("k1"), noon()).await.unwrap();
    assert!(heard.has(digest(1), 3));
    let tenants = PostgresTenantStore::connect(&url).await.unwrap();
    let created = tenants.create(tenant()).await.unwrap();
    tenants
        .replace(TenantRecord::clone(&created))
        .await
        .unwrap();
    let mut own = PgConnection::connect(&url).await.unwrap();
    let deleted = sqlx::query("DELETE FROM tollgate.keys")
        .execute(&mut own)
        .await;
    assert!(deleted.is_err(), "and nothing can be deleted by it");
}
