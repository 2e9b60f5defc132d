//! Redelivery, reordering, concurrency and crashes: the end is always the same.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use async_trait::async_trait;
use proptest::prelude::*;
use serde_json::{Value, json};
use tollgate::{
    billing::{
        Account, AccountStore, BillingEventHandler as _, LedgerError, MemoryLedger, Provisioner,
    },
    clock::ManualClock,
    id::{Environment, TenantId},
    tenant::{AccessState, TenantRecord},
};

use super::support::{
    DAY, Mail, START, World, but, checkout, event, gate, invoice, seller, stripe, subscription,
};

/// What a customer has at the end: its tenant's record but for the version, and the keys.
#[derive(Debug, PartialEq)]
struct End {
    record: Option<TenantRecord>,
    keys: Vec<String>,
}

async fn end(world: &World) -> End {
    let tenant = world.tenant("cus_1").await;
    let record = tenant.map(|tenant| {
        let mut record = TenantRecord::clone(tenant.record());
        record.version = 0;
        record
    });
    let id = TenantId::new("cus_1").unwrap();
    let keys = world.gate.keys().list(&id).await.unwrap();
    let mut keys: Vec<_> = keys.iter().map(|key| key.id.to_string()).collect();
    keys.sort();
    End { record, keys }
}

/// Every order of these, by Heap's algorithm.
fn orders(events: &mut Vec<Value>, n: usize, visit: &mut impl FnMut(&[Value])) {
    if n <= 1 {
        visit(events);
        return;
    }
    for place in 0..n {
        orders(events, n - 1, visit);
        events.swap(if n.is_multiple_of(2) { place } else { 0 }, n - 1);
    }
}

/// Tells all events in every order; answers how many orders there were, and the one end that all had.
async fn all_orders(mut events: Vec<Value>) -> (usize, End) {
    let mut all = Vec::new();
    let n = events.len();
    orders(&mut events, n, &mut |order| all.push(order.to_vec()));
    let mut first: Option<End> = None;
    for order in &all {
        let world = World::new();
        for body in order {
            world.tell(body).await;
        }
        let end = end(&world).await;
        match &first {
            None => first = Some(end),
            Some(first) => assert_eq!(&end, first, "{order:#?}"),
        }
    }
    (all.len(), first.expect("one order"))
}

#[tokio::test]
async fn a_life_of_five_events_ends_alike_in_all_orders() {
    let (n_orders, end) = all_orders(vec![
        subscription("created", START, "active", "price_basic"),
        checkout(START + 1),
        subscription("updated", START + 100, "active", "price_pro"),
        invoice("payment_failed", START + 200),
        subscription("updated", START + 201, "past_due", "price_pro"),
    ])
    .await;
    assert_eq!(n_orders, 120);
    let record = end.record.expect("a tenant");
    assert_eq!((record.plan.as_str(), end.keys.len()), ("pro", 1));
    assert!(
        matches!(record.access, AccessState::Grace { until, .. } if until == super::support::at(START + 200 + 7 * DAY))
    );
}

#[tokio::test]
async fn a_life_that_fails_recovers_and_ends_does_so_in_all_orders() {
    let (n_orders, end) = all_orders(vec![
        subscription("created", START, "active", "price_pro"),
        checkout(START),
        invoice("payment_failed", START + 200),
        invoice("paid", START + 300),
        subscription("updated", START + 300, "active", "price_basic"),
        subscription("deleted", START + 300, "canceled", "price_basic"),
    ])
    .await;
    assert_eq!(n_orders, 720);
    let record = end.record.expect("a tenant");
    assert_eq!(record.access, AccessState::ReadOnly { suspend_at: None });
    assert_eq!(end.keys.len(), 1);
}

#[tokio::test]
async fn events_of_one_second_end_alike_in_all_orders() {
    let mut twin = subscription("updated", START + 10, "past_due", "price_basic");
    twin["id"] = json!("evt_twin");
    let (_, end) = all_orders(vec![
        subscription("created", START + 10, "incomplete", "price_pro"),
        subscription("updated", START + 10, "active", "price_pro"),
        twin,
        checkout(START + 10),
        invoice("payment_failed", START + 10),
    ])
    .await;
    assert_eq!(end.record.expect("a tenant").access.as_str(), "grace");
}

fn any_life() -> impl Strategy<Value = Vec<Value>> {
    let seconds = START..START + 40;
    let event = (0..10, seconds, 0..2_usize).prop_map(|(what, at, which)| {
        let price = ["price_basic", "price_pro"][which];
        let body = match what {
            0 => subscription("created", START, "active", price),
            1 => subscription("updated", at, "active", price),
            2 => subscription("updated", at, "past_due", price),
            3 => subscription("updated", at, "unpaid", price),
            4 => subscription("paused", at, "paused", price),
            5 => invoice("payment_failed", at),
            6 => invoice("paid", at),
            7 => subscription("deleted", at, "canceled", price),
            8 => subscription("created", at, "incomplete", price),
            _ => but(invoice("payment_failed", at), "parent", Value::Null),
        };
        // Two different events never share an id.
        let mut body = body;
        body["id"] = json!(format!("evt_{what}_{at}_{which}"));
        body
    });
    proptest::collection::vec(event, 1..12).prop_map(|mut events| {
        let mut seen = BTreeMap::new();
        events.retain(|event| seen.insert(event["id"].to_string(), ()).is_none());
        events.push(checkout(START + 3));
        events
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_life_ends_alike_in_another_order_and_with_redeliveries(
        life in any_life(),
        seeds in proptest::collection::vec(any::<prop::sample::Index>(), 30),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let world = World::new();
            for body in &life {
                world.tell(body).await;
            }
            let straight = end(&world).await;
            let other = World::new();
            let mut rest = life.clone();
            for (n, seed) in seeds.iter().enumerate() {
                if rest.is_empty() {
                    other.tell(seed.get(&life)).await;
                } else {
                    let body = rest.remove(seed.index(rest.len()));
                    other.tell(&body).await;
                    if n % 3 == 0 {
                        other.tell(&body).await;
                    }
                }
            }
            for body in &rest {
                other.tell(body).await;
            }
            prop_assert_eq!(end(&other).await, straight);
            prop_assert!(other.n_keys("cus_1").await <= 1);
            Ok(())
        })?;
    }

    #[test]
    fn without_a_payment_no_event_extends_grace(days in proptest::collection::vec(0..40_u64, 1..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let world = World::new();
            world.tell(&subscription("created", START, "active", "price_pro")).await;
            world.tell(&checkout(START)).await;
            let mut last = None;
            for (n, day) in days.iter().enumerate() {
                let at = START + 1 + day * DAY;
                let body = if n % 2 == 0 {
                    invoice("payment_failed", at)
                } else {
                    subscription("updated", at, "past_due", "price_pro")
                };
                world.tell(&body).await;
                if let AccessState::Grace { until, .. } = world.stands("cus_1").await.0 {
                    prop_assert!(last.is_none_or(|last| until <= last));
                    last = Some(until);
                }
            }
            prop_assert!(last.is_some());
            Ok(())
        })?;
    }
}

/// A store that fails at one of its calls, as if the process had ended there.
#[derive(Debug)]
struct Failing {
    inner: Arc<MemoryLedger>,
    /// Calls until one fails; below zero none does.
    left: AtomicI64,
    /// Whether the call that fails has been done all the same.
    does_it: bool,
}

impl Failing {
    fn fails(&self) -> bool {
        self.left.fetch_sub(1, Ordering::Relaxed) == 0
    }

    fn gone() -> LedgerError {
        LedgerError::Unavailable("the process has ended".into())
    }
}

#[async_trait]
impl AccountStore for Failing {
    async fn load(&self, customer: &str) -> Result<Option<Account>, LedgerError> {
        if self.fails() {
            return Err(Self::gone());
        }
        self.inner.load(customer).await
    }

    async fn save(&self, account: &Account) -> Result<(), LedgerError> {
        let fails = self.fails();
        if !fails || self.does_it {
            self.inner.save(account).await?;
        }
        if fails { Err(Self::gone()) } else { Ok(()) }
    }

    async fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<Account>, LedgerError> {
        self.inner.list(after, limit).await
    }
}

#[tokio::test]
async fn a_crash_at_any_step_leaves_what_the_next_delivery_finishes() {
    let life = [
        subscription("created", START, "active", "price_pro"),
        checkout(START + 1),
        invoice("payment_failed", START + 2),
    ];
    let world = World::new();
    for body in &life {
        world.tell(body).await;
    }
    let straight = end(&world).await;
    let mut n_crashes = 0;
    for does_it in [false, true] {
        for step in 0..20 {
            let clock = ManualClock::default();
            let gate = gate(&clock);
            let accounts = Arc::new(Failing {
                inner: Arc::new(MemoryLedger::new()),
                left: AtomicI64::new(step),
                does_it,
            });
            let mail = Mail::default();
            let provisioner = seller(&gate, Arc::clone(&accounts), &clock)
                .notifier(mail.clone())
                .build()
                .unwrap();
            for body in &life {
                while provisioner.handle(&event(body)).await.is_err() {
                    n_crashes += 1;
                }
            }
            let world = World {
                clock,
                gate,
                mail,
                provisioner,
            };
            assert_eq!(end(&world).await, straight, "step {step}");
            // At least once: a crash after a notice and before it was noted tells it again.
            assert!(
                (2..=3).contains(&world.mail.kinds().len()),
                "{:?}",
                world.mail.kinds()
            );
        }
    }
    assert!(n_crashes >= 20, "{n_crashes}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_make_one_tenant_one_key_and_the_newest_state() {
    for round in 0..20 {
        let world = Arc::new(World::new());
        let life = [
            subscription("created", START, "active", "price_basic"),
            checkout(START + 1),
            subscription("updated", START + 2, "active", "price_pro"),
            invoice("payment_failed", START + 3),
            invoice("paid", START + 4),
        ];
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..16 {
            let body = life[(n + round) % life.len()].clone();
            let world = Arc::clone(&world);
            tasks.spawn(async move { world.tell(&body).await });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        assert_eq!(
            world.stands("cus_1").await,
            (AccessState::Active, "pro".to_owned())
        );
        assert_eq!(world.n_keys("cus_1").await, 1);
        let told = world.mail.kinds();
        let issued = told
            .iter()
            .filter(|kind| matches!(kind, tollgate::billing::NoticeKind::KeyIssued { .. }));
        assert!(issued.count() >= 1, "{told:?}");
    }
}

#[tokio::test]
async fn customers_do_not_meet() {
    let world = World::new();
    for n in 0..20 {
        for body in [
            subscription("created", START, "active", "price_pro"),
            checkout(START),
        ] {
            let mut body = but(body, "customer", format!("cus_{n}").into());
            let id = format!("{}_{n}", body["data"]["object"]["id"].as_str().unwrap());
            body["data"]["object"]["id"] = json!(id);
            world.tell(&body).await;
        }
    }
    world
        .tell(&stripe(
            "customer.deleted",
            START + 1,
            json!({"id": "cus_7"}),
        ))
        .await;
    for n in 0..20 {
        let id = format!("cus_{n}");
        let expected = if n == 7 { "read-only" } else { "active" };
        assert_eq!(world.stands(&id).await.0.as_str(), expected);
        assert_eq!(world.n_keys(&id).await, 1);
    }
    let keys = async |provisioner: &Provisioner, checkout: &str| {
        let issued = provisioner
            .key_of_checkout(Environment::Live, checkout)
            .await
            .unwrap();
        issued.expect("a key").record.tenant.to_string()
    };
    assert_eq!(keys(&world.provisioner, "cs_1_3").await, "cus_3");
}
