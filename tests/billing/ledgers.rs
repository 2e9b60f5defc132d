//! Every ledger keeps the contract, and what a crash leaves behind is done again once.

use std::{
    env,
    io::Read as _,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tollgate::{
    billing::{
        Account, AccountStore, BillingEvent, BillingEventHandler, Claimed, EventKey, EventLedger,
        Handled, HandlerError, LedgerError, MIN_RETENTION, MemoryLedger, PostgresLedger,
        RedisLedger, StripeSignature, WebhookService,
    },
    clock::ManualClock,
    conformance,
    id::Environment,
    postgres_support::Postgres,
    redis_support::RedisConnector,
};
use tower::ServiceExt as _;

use super::support::{START, at, invoice};
use crate::common::{postgres::PostgresServer, redis::RedisServer};

const LEASE: Duration = Duration::from_secs(60);

async fn redis(url: &str) -> RedisLedger {
    let connector = RedisConnector::single(url).unwrap();
    let patience = Duration::from_secs(5);
    let connector = connector
        .response_timeout(patience)
        .connect_timeout(patience);
    RedisLedger::connect(connector).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_in_memory_keeps_the_contract() {
    conformance::event_ledger(|| async { MemoryLedger::new() }).await;
    conformance::account_store(|| async { MemoryLedger::new() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_in_redis_keeps_the_contract() {
    let server = RedisServer::start();
    let make = || async {
        server.raw("FLUSHALL\r\n");
        redis(&server.url()).await
    };
    conformance::event_ledger(make).await;
    conformance::account_store(make).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_in_postgresql_keeps_the_contract() {
    let server = PostgresServer::start();
    let postgres = server.migrated("conformance").await;
    let make = || async {
        sqlx::query(
            "TRUNCATE tollgate.billing_events, tollgate.billing_dead_letters, tollgate.billing_accounts",
        )
        .execute(postgres.pool())
        .await
        .unwrap();
        PostgresLedger::new(&postgres)
    };
    conformance::event_ledger(make).await;
    conformance::account_store(make).await;
}

#[tokio::test]
async fn a_ledger_in_memory_forgets_what_is_older_than_its_retention() {
    let clock = ManualClock::default();
    let ledger = MemoryLedger::new().clock(Arc::new(clock.clone()));
    let key = EventKey::new("stripe", "evt_1");
    let claimed = ledger.claim(&key, &[1; 32], LEASE).await.unwrap();
    let Claimed::New(claim) = claimed else {
        panic!("{claimed:?}")
    };
    ledger.complete(&claim).await.unwrap();
    clock.advance(MIN_RETENTION);
    let claimed = ledger.claim(&key, &[1; 32], LEASE).await.unwrap();
    assert_eq!(claimed, Claimed::Done);
    clock.advance(Duration::from_secs(1));
    let claimed = ledger.claim(&key, &[1; 32], LEASE).await.unwrap();
    assert!(matches!(claimed, Claimed::New(_)));
    let error = MemoryLedger::new().retention(MIN_RETENTION - Duration::from_secs(1));
    assert_eq!(error.unwrap_err().path(), "retention");
}

#[tokio::test]
async fn events_in_redis_are_remembered_for_thirty_days_and_accounts_for_ever() {
    let server = RedisServer::start();
    let ledger = redis(&server.url()).await;
    let key = EventKey::new("stripe", "evt_1");
    ledger.claim(&key, &[1; 32], LEASE).await.unwrap();
    ledger
        .save(&Account::new("cus_1", Environment::Live))
        .await
        .unwrap();
    let ttl: i64 = server.query(&["TTL", "tg:1:{b.stripe/evt_1}:event"]);
    assert_eq!(ttl, i64::try_from(MIN_RETENTION.as_secs()).unwrap());
    let ttl: i64 = server.query(&["TTL", "tg:1:{c.cus_1}:account"]);
    assert_eq!(ttl, -1);
    // What a script lost is sent again; what the server lost altogether is new.
    server.raw("SCRIPT FLUSH\r\n");
    let claimed = ledger.claim(&key, &[1; 32], LEASE).await.unwrap();
    assert!(matches!(claimed, Claimed::InProgress { .. }));
}

#[tokio::test]
async fn a_ledger_that_is_gone_is_unavailable_and_comes_back() {
    let mut server = RedisServer::start();
    let ledger = redis(&server.url()).await;
    let key = EventKey::new("stripe", "evt_1");
    server.kill();
    let claimed = ledger.claim(&key, &[1; 32], LEASE).await;
    assert!(
        matches!(claimed, Err(LedgerError::Unavailable(_))),
        "{claimed:?}"
    );
    let service = service(ledger.clone(), Counting::default());
    assert_eq!(
        deliver(&service).await,
        (503, "billing_unavailable".to_owned())
    );
    server.restart();
    assert_eq!(deliver(&service).await, (200, "processed".to_owned()));
    server.query::<i64>(&["DEL", "tg:1:{c.cus_1}:account"]);
    server.query::<i64>(&[
        "HSET",
        "tg:1:{c.cus_1}:account",
        "version",
        "1",
        "account",
        "{",
    ]);
    let corrupt = ledger.load("cus_1").await;
    assert!(
        matches!(corrupt, Err(LedgerError::Corrupt(_))),
        "{corrupt:?}"
    );
}

#[tokio::test]
async fn what_postgresql_remembers_for_long_enough_can_be_forgotten() {
    let server = PostgresServer::start();
    let postgres = server.migrated("purge").await;
    let ledger = PostgresLedger::new(&postgres);
    let key = |id: &str| EventKey::new("stripe", id);
    for id in ["old", "young", "claimed"] {
        let claimed = ledger.claim(&key(id), &[1; 32], LEASE).await.unwrap();
        let Claimed::New(claim) = claimed else {
            panic!("{claimed:?}")
        };
        if id != "claimed" {
            ledger.complete(&claim).await.unwrap();
        }
    }
    sqlx::query("UPDATE tollgate.billing_events SET first_seen = now() - interval '31 days' WHERE event_id <> 'young'")
        .execute(postgres.pool())
        .await
        .unwrap();
    assert_eq!(ledger.purge().await.unwrap(), 1);
    let claimed = ledger.claim(&key("young"), &[1; 32], LEASE).await.unwrap();
    assert_eq!(claimed, Claimed::Done);
}

/// Counts the events that it handles.
#[derive(Clone, Debug, Default)]
struct Counting(Arc<AtomicU32>);

#[async_trait]
impl BillingEventHandler for Counting {
    async fn handle(&self, _: &BillingEvent) -> Result<Handled, HandlerError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(Handled::Applied)
    }
}

/// Says that it has begun, and never ends.
#[derive(Clone, Debug)]
struct Dying;

#[async_trait]
impl BillingEventHandler for Dying {
    async fn handle(&self, _: &BillingEvent) -> Result<Handled, HandlerError> {
        println!("child: begun");
        std::future::pending().await
    }
}

fn service(ledger: impl EventLedger, handler: impl BillingEventHandler) -> WebhookService {
    WebhookService::builder(StripeSignature::new(["secret"]).unwrap())
        .ledger(ledger)
        .handler(handler)
        .clock(Arc::new(ManualClock::default()))
        .handler_deadline(Duration::from_millis(1_500))
        .lease(Duration::from_secs(2))
        .max_attempts(3)
        .build()
        .unwrap()
}

async fn deliver(service: &WebhookService) -> (u16, String) {
    let body = invoice("paid", START).to_string();
    let header = StripeSignature::new(["secret"])
        .unwrap()
        .sign(body.as_bytes(), at(START));
    let request = http::Request::post("/").header("stripe-signature", header);
    let response = service
        .clone()
        .oneshot(request.body(body).unwrap())
        .await
        .unwrap();
    let status = response.status().as_u16();
    let body = http_body_util::BodyExt::collect(response.into_body())
        .await
        .unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
    let word = answer["code"]
        .as_str()
        .or_else(|| answer["status"].as_str());
    (status, word.unwrap_or_default().to_owned())
}

/// Set for the child: where its ledger is.
const LEDGER: &str = "TOLLGATE_TEST_LEDGER";

/// This test again, as a process of its own, killed as soon as its handler has begun.
fn claim_and_die(test: &str, url: &str) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(LEDGER, url)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut text = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&text).contains("child: begun") {
        assert_eq!(
            output.read(&mut byte).unwrap(),
            1,
            "{}",
            String::from_utf8_lossy(&text)
        );
        text.push(byte[0]);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Delivers until the lease of the dead has ended.
async fn deliver_until_processed(service: &WebhookService) -> u32 {
    let mut n_conflicts = 0;
    for _ in 0..1_000 {
        match deliver(service).await {
            (409, _) => n_conflicts += 1,
            (200, word) => {
                assert_eq!(word, "processed");
                return n_conflicts;
            }
            other => panic!("{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the lease of two seconds has not ended")
}

async fn survives_kill_9(test: &str, url: &str, ledger: impl EventLedger) {
    let handled = Counting::default();
    let service = service(ledger, handled.clone());
    claim_and_die(test, url);
    let n_conflicts = deliver_until_processed(&service).await;
    assert!(
        n_conflicts > 0,
        "the dead process held the event for a while"
    );
    assert_eq!(
        deliver(&service).await,
        (200, "already_processed".to_owned())
    );
    assert_eq!(handled.0.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_event_whose_process_was_killed_is_handled_once_more_with_redis() {
    if let Ok(url) = env::var(LEDGER) {
        deliver(&service(redis(&url).await, Dying)).await;
        return;
    }
    let server = RedisServer::start();
    let ledger = redis(&server.url()).await;
    let test = "ledgers::an_event_whose_process_was_killed_is_handled_once_more_with_redis";
    survives_kill_9(test, &server.url(), ledger).await;
}

#[tokio::test]
async fn an_event_whose_process_was_killed_is_handled_once_more_with_postgresql() {
    if let Ok(url) = env::var(LEDGER) {
        let postgres = Postgres::connect(url).await.unwrap();
        deliver(&service(PostgresLedger::new(&postgres), Dying)).await;
        return;
    }
    let server = PostgresServer::start();
    let postgres = server.migrated("crash").await;
    let test = "ledgers::an_event_whose_process_was_killed_is_handled_once_more_with_postgresql";
    survives_kill_9(test, &server.url("crash"), PostgresLedger::new(&postgres)).await;
}
