//! The contracts of [`EventLedger`] and [`AccountStore`], call by call.

#![expect(
    clippy::panic,
    reason = "a conformance suite reports a difference by a panic, as a test does"
)]

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;

use super::expect;
use crate::{
    billing::{
        Account, AccountStore, Claim, Claimed, DeadLetter, EventKey, EventLedger, LedgerError, Try,
    },
    clock::Timestamp,
    id::Environment,
};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(30);
const CONTENT: [u8; 32] = [7; 32];
/// For a lease of 30 ms to end, on a machine that is busy.
const MAX_WAITS: usize = 2_000;

/// Tests a ledger against the contract of [`EventLedger`]. `make` gives an empty ledger each time it is called. Its clock
/// must run: a lease of 30 ms is waited for.
///
/// Needs a multi-thread runtime with time for the races to be races.
///
/// # Panics
///
/// With the difference, when the ledger does not keep the contract.
pub async fn event_ledger<L, F>(make: impl Fn() -> F)
where
    L: EventLedger,
    F: Future<Output = L>,
{
    handles_an_event_once(&make().await).await;
    gives_a_released_event_to_the_next(&make().await).await;
    gives_an_event_on_when_its_lease_has_ended(&make().await).await;
    keeps_dead_letters_until_they_are_discarded(&make().await).await;
    of_racing_claims_one_is_new(Arc::new(make().await)).await;
}

/// Tests a store against the contract of [`AccountStore`]. `make` gives an empty store each time it is called.
///
/// # Panics
///
/// With the difference, when the store does not keep the contract.
pub async fn account_store<S, F>(make: impl Fn() -> F)
where
    S: AccountStore,
    F: Future<Output = S>,
{
    replaces_the_version_that_was_read(&make().await).await;
    lists_in_order(&make().await).await;
    of_racing_saves_each_version_has_one(Arc::new(make().await)).await;
}

fn key(id: &str) -> EventKey {
    EventKey::new("stripe", id)
}

async fn claim(ledger: &impl EventLedger, id: &str, lease: Duration) -> Claimed {
    expect(ledger.claim(&key(id), &CONTENT, lease).await, "claim")
}

async fn new(ledger: &impl EventLedger, id: &str, lease: Duration) -> Claim {
    match claim(ledger, id, lease).await {
        Claimed::New(claim) => claim,
        other => panic!("the event is free: {other:?}"),
    }
}

async fn is_busy(ledger: &impl EventLedger, id: &str) {
    match claim(ledger, id, LONG).await {
        Claimed::InProgress { .. } => {}
        other => panic!("the event is claimed: {other:?}"),
    }
}

async fn is_done(ledger: &impl EventLedger, id: &str) {
    let claimed = claim(ledger, id, LONG).await;
    assert_eq!(claimed, Claimed::Done, "the event is done");
}

async fn handles_an_event_once(ledger: &impl EventLedger) {
    let claim = new(ledger, "evt_1", LONG).await;
    assert_eq!((claim.key.clone(), claim.attempt), (key("evt_1"), 1));
    is_busy(ledger, "evt_1").await;
    let other = ledger.claim(&key("evt_1"), &[8; 32], LONG).await;
    assert_eq!(
        expect(other, "claim"),
        Claimed::OtherContent,
        "what an event says is fixed by its first claim"
    );
    expect(ledger.complete(&claim).await, "complete");
    is_done(ledger, "evt_1").await;
    let other = ledger.claim(&key("evt_1"), &[8; 32], LONG).await;
    assert_eq!(expect(other, "claim"), Claimed::OtherContent);
    // Another event, and the same at another endpoint.
    new(ledger, "evt_2", LONG).await;
    let elsewhere = EventKey::new("other", "evt_1");
    match expect(ledger.claim(&elsewhere, &CONTENT, LONG).await, "claim") {
        Claimed::New(_) => {}
        other => panic!("another endpoint's event is another one: {other:?}"),
    }
    expect(ledger.release(&claim, Try::Counts).await, "release");
    is_done(ledger, "evt_1").await;
}

async fn gives_a_released_event_to_the_next(ledger: &impl EventLedger) {
    let first = new(ledger, "evt_1", LONG).await;
    expect(ledger.release(&first, Try::Counts).await, "release");
    let second = new(ledger, "evt_1", LONG).await;
    assert_eq!(second.attempt, 2, "a try that failed counts");
    assert_ne!(first.token, second.token, "each claim has its own token");
    match ledger.complete(&first).await {
        Err(LedgerError::ClaimLost) => {}
        other => panic!("a claim that was given back: {other:?}"),
    }
    expect(ledger.release(&first, Try::Counts).await, "release");
    is_busy(ledger, "evt_1").await;
    expect(ledger.release(&second, Try::Forgiven).await, "release");
    let third = new(ledger, "evt_1", LONG).await;
    assert_eq!(third.attempt, 2, "a try that was forgiven does not count");
    let other = ledger.claim(&key("evt_1"), &[8; 32], LONG).await;
    assert_eq!(expect(other, "claim"), Claimed::OtherContent);
}

async fn gives_an_event_on_when_its_lease_has_ended(ledger: &impl EventLedger) {
    let lost = new(ledger, "evt_1", SHORT).await;
    let mut waits = 0;
    let next = loop {
        match claim(ledger, "evt_1", LONG).await {
            Claimed::New(claim) => break claim,
            Claimed::InProgress { .. } if waits < MAX_WAITS => {
                waits += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            other => panic!("a lease of 30 ms has not ended: {other:?}"),
        }
    };
    assert_eq!(next.attempt, 2, "a try that ended in a crash counts");
    match ledger.complete(&lost).await {
        Err(LedgerError::ClaimLost) => {}
        other => panic!("a claim that somebody else has taken: {other:?}"),
    }
    match ledger.bury(&lost, letter(&lost, 1)).await {
        Err(LedgerError::ClaimLost) => {}
        other => panic!("a claim that somebody else has taken: {other:?}"),
    }
    assert_eq!(letters(ledger).await, [], "a lost claim buries nothing");
    let put_aside = letter(&next, 2);
    expect(ledger.bury(&next, put_aside.clone()).await, "bury");
    match ledger.bury(&lost, letter(&lost, 3)).await {
        Err(LedgerError::ClaimLost) => {}
        other => panic!("a claim that somebody else has finished: {other:?}"),
    }
    let kept = letters(ledger).await;
    assert_eq!(kept, [put_aside], "a lost claim takes no letter away");
    is_done(ledger, "evt_1").await;
}

fn letter(claim: &Claim, at: u64) -> DeadLetter {
    let body = Bytes::from_static(br#"{"name":"\u00e9 \" \n"}"#);
    let at = Timestamp::from_unix_seconds(at);
    DeadLetter::new(claim, "invoice.paid", at, "the reason", body, at)
}

async fn letters(ledger: &impl EventLedger) -> Vec<DeadLetter> {
    expect(ledger.dead_letters("stripe", 10).await, "dead_letters")
}

async fn keeps_dead_letters_until_they_are_discarded(ledger: &impl EventLedger) {
    match ledger.reopen(&key("evt_1")).await {
        Err(LedgerError::NotFound) => {}
        other => panic!("there is no such letter: {other:?}"),
    }
    let mut buried = Vec::new();
    for (id, at) in [("evt_1", 20), ("evt_2", 10)] {
        let claim = new(ledger, id, LONG).await;
        let letter = letter(&claim, at);
        expect(ledger.bury(&claim, letter.clone()).await, "bury");
        buried.insert(0, letter);
        is_done(ledger, id).await;
    }
    assert_eq!(letters(ledger).await, buried, "the oldest comes first");
    let one = ledger.dead_letters("stripe", 1).await;
    assert_eq!(expect(one, "dead_letters"), buried[..1]);
    let elsewhere = ledger.dead_letters("other", 10).await;
    assert_eq!(expect(elsewhere, "dead_letters"), []);

    let reopened = expect(ledger.reopen(&key("evt_1")).await, "reopen");
    assert_eq!(reopened, buried[1]);
    assert_eq!(letters(ledger).await.len(), 2, "it stays until discarded");
    let claim = new(ledger, "evt_1", LONG).await;
    assert_eq!(claim.attempt, 1, "it begins anew");
    expect(ledger.reopen(&key("evt_1")).await, "reopen");
    is_busy(ledger, "evt_1").await;
    expect(ledger.complete(&claim).await, "complete");
    expect(ledger.discard(&key("evt_1")).await, "discard");
    assert_eq!(letters(ledger).await, buried[..1]);
    is_done(ledger, "evt_1").await;
    match ledger.discard(&key("evt_1")).await {
        Err(LedgerError::NotFound) => {}
        other => panic!("there is no such letter: {other:?}"),
    }
}

async fn of_racing_claims_one_is_new(ledger: Arc<impl EventLedger>) {
    for id in ["evt_1", "evt_2", "evt_3", "evt_4"] {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let ledger = Arc::clone(&ledger);
            tasks.spawn(async move {
                match claim(&*ledger, id, LONG).await {
                    Claimed::New(_) => 1,
                    Claimed::InProgress { .. } => 0,
                    other => panic!("an event that nobody has finished: {other:?}"),
                }
            });
        }
        let mut n_new = 0;
        while let Some(done) = tasks.join_next().await {
            n_new += expect(done, "a racing claim");
        }
        assert_eq!(n_new, 1, "exactly one of racing claims is new");
    }
}

async fn load(store: &impl AccountStore, customer: &str) -> Option<Account> {
    expect(store.load(customer).await, "load")
}

async fn replaces_the_version_that_was_read(store: &impl AccountStore) {
    assert_eq!(load(store, "cus_1").await, None, "an empty store");
    let account = Account::new("cus_1", Environment::Test);
    match store.save(&account.at_version(1)).await {
        Err(LedgerError::Conflict) => {}
        other => panic!("an account that does not exist: {other:?}"),
    }
    expect(store.save(&account).await, "save");
    assert_eq!(load(store, "cus_1").await, Some(account.at_version(1)));
    match store.save(&account).await {
        Err(LedgerError::Conflict) => {}
        other => panic!("an account that exists: {other:?}"),
    }
    expect(store.save(&account.at_version(1)).await, "save");
    assert_eq!(load(store, "cus_1").await, Some(account.at_version(2)));
    assert_eq!(load(store, "cus_2").await, None);
}

async fn lists_in_order(store: &impl AccountStore) {
    for customer in ["cus_b", "cus_a", "cus_C", "cus_c"] {
        let account = Account::new(customer, Environment::Live);
        expect(store.save(&account).await, "save");
    }
    let list = async |after, limit| {
        let accounts = expect(store.list(after, limit).await, "list");
        let customers = accounts.iter().map(|it| it.customer().to_owned());
        customers.collect::<Vec<_>>()
    };
    assert_eq!(list(None, 10).await, ["cus_C", "cus_a", "cus_b", "cus_c"]);
    assert_eq!(list(None, 2).await, ["cus_C", "cus_a"]);
    assert_eq!(list(Some("cus_a"), 2).await, ["cus_b", "cus_c"]);
    assert_eq!(list(Some("cus_c"), 2).await, Vec::<String>::new());
}

async fn of_racing_saves_each_version_has_one(store: Arc<impl AccountStore>) {
    const N_CHANGES: u64 = 16;
    expect(
        store.save(&Account::new("cus_1", Environment::Live)).await,
        "save",
    );
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..N_CHANGES {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            loop {
                let Some(account) = load(&*store, "cus_1").await else {
                    panic!("the account is gone")
                };
                match store.save(&account).await {
                    Ok(()) => return,
                    Err(LedgerError::Conflict) => tokio::task::yield_now().await,
                    Err(error) => panic!("save: {error:?}"),
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        expect(done, "a racing task");
    }
    let version = load(&*store, "cus_1")
        .await
        .map(|account| account.version());
    assert_eq!(version, Some(1 + N_CHANGES), "no change was lost");
}
