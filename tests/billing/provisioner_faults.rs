//! What a provisioner is told wrongly, late or not at all.

use std::sync::{Arc, Mutex, OnceLock, atomic::Ordering};

use async_trait::async_trait;
use serde_json::{Value, json};
use tollgate::{
    billing::{
        BillingEventHandler as _, DifferenceKind, Handled, HandlerError, LifecyclePolicy,
        MemoryLedger, NoticeKind, ProvisionError, Provisioner, RefetchSubscription, Subscription,
        SubscriptionStatus, lifecycle::OnEnd,
    },
    clock::{Clock as _, ManualClock},
    id::Environment,
};

use super::provisioner::{active, bought, plan};
use super::support::{START, World, at, but, checkout, event, gate, invoice, seller, subscription};

#[tokio::test]
async fn each_fault_of_an_event_has_an_error_that_names_the_field() {
    let world = World::with(|seller| seller.currency("USD"));
    let failed = async |body: Value| {
        let event = event(&body);
        let error = world.provisioner.provision(&event).await.unwrap_err();
        let handled = world.provisioner.handle(&event).await;
        assert!(
            matches!(handled, Err(HandlerError::Failed(_))),
            "{handled:?}"
        );
        (error.field().unwrap(), error)
    };
    let good = || subscription("created", START, "active", "price_pro");
    let (field, error) = failed(subscription("created", START, "active", "price_gold")).await;
    assert_eq!(field, "data.object.items.data[0].price.id");
    assert!(matches!(error, ProvisionError::UnknownPrice { price, .. } if &*price == "price_gold"));
    let (field, error) = failed(but(good(), "items", json!({"data": []}))).await;
    assert_eq!(field, "data.object.items.data[0].price.id");
    assert!(matches!(error, ProvisionError::MissingField { .. }));
    let (field, error) = failed(but(good(), "currency", "eur".into())).await;
    assert_eq!(field, "data.object.currency");
    assert!(matches!(error, ProvisionError::OtherCurrency { found, .. } if &*found == "eur"));
    for body in [checkout(START), invoice("paid", START), good()] {
        let (field, error) = failed(but(body.clone(), "currency", "eur".into())).await;
        assert_eq!(field, "data.object.currency");
        assert!(matches!(error, ProvisionError::OtherCurrency { .. }));
        let (field, error) = failed(but(body, "customer", Value::Null)).await;
        assert_eq!(field, "data.object.customer");
        assert!(matches!(error, ProvisionError::MissingField { .. }));
    }
    for body in [checkout(START), good()] {
        assert_eq!(
            failed(but(body, "id", Value::Null)).await.0,
            "data.object.id"
        );
    }
    let (field, error) = failed(but(good(), "status", "frozen".into())).await;
    assert_eq!(field, "data.object.status");
    assert!(matches!(error, ProvisionError::UnknownStatus { .. }));
    let long = "x".repeat(300);
    let (field, error) = failed(but(checkout(START), "customer", long.into())).await;
    assert_eq!(field, "data.object.customer");
    assert!(matches!(error, ProvisionError::InvalidTenant { .. }));
    assert!(world.tenant("cus_1").await.is_none());

    let world = World::with(|seller| seller.refuse_unknown_customers(true));
    for body in [good(), invoice("payment_failed", START)] {
        let error = world
            .provisioner
            .provision(&event(&body))
            .await
            .unwrap_err();
        assert_eq!(error.field(), Some("data.object.customer"));
        assert!(
            matches!(error, ProvisionError::UnknownCustomer { customer, .. } if &*customer == "cus_1")
        );
    }
    world.tell(&checkout(START)).await;
    world.tell(&good()).await;
    assert_eq!(world.stands("cus_1").await, active("pro"));
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let clock = ManualClock::default();
    let gate = gate(&clock);
    let new = || seller(&gate, Arc::new(MemoryLedger::new()), &clock);
    let path = |built: Result<Provisioner, tollgate::error::ConfigError>| {
        built.unwrap_err().path().to_owned()
    };
    assert_eq!(
        path(new().price("price_x", "gold").build()),
        "prices[price_x]"
    );
    assert_eq!(
        path(new().price("price_pro", "basic").build()),
        "prices[price_pro]"
    );
    assert_eq!(
        path(new().entitlement("key", "gold").build()),
        "entitlements[key]"
    );
    assert_eq!(
        path(new().plan_policy("gold", LifecyclePolicy::new()).build()),
        "plan_policies[gold]"
    );
    assert_eq!(
        path(new().tenant_policy("", LifecyclePolicy::new()).build()),
        "tenant_policies[]"
    );
    let gold = LifecyclePolicy::new().on_end(OnEnd::Downgrade(plan("gold")));
    assert_eq!(path(new().policy(gold).build()), "policy.on_end");
    let none = Provisioner::builder(
        gate.keys(),
        gate.tenants(),
        Arc::new(MemoryLedger::new()),
        super::support::secret(),
    );
    assert_eq!(path(none.build()), "prices");
    assert_eq!(
        tollgate::auth::KeySecret::new("short").unwrap_err().path(),
        "key_secret"
    );
    assert_eq!(format!("{:?}", super::support::secret()), "KeySecret(..)");
}

#[tokio::test]
async fn people_are_told_again_until_they_were_told() {
    let world = World::new();
    bought(&world, "price_pro").await;
    world.mail.is_down.store(true, Ordering::Relaxed);
    let failed = event(&invoice("payment_failed", START + 10));
    for _ in 0..2 {
        let handled = world.provisioner.handle(&failed).await;
        assert!(
            matches!(handled, Err(HandlerError::Unavailable(_))),
            "{handled:?}"
        );
    }
    assert_eq!(
        world.stands("cus_1").await.0.as_str(),
        "grace",
        "access does not wait for the mail"
    );
    assert_eq!(world.mail.kinds().len(), 1);
    world.mail.is_down.store(false, Ordering::Relaxed);
    for _ in 0..2 {
        world.provisioner.handle(&failed).await.unwrap();
    }
    let kinds = world.mail.kinds();
    assert_eq!(kinds.len(), 2, "{kinds:?}");
    assert!(matches!(kinds[1], NoticeKind::GraceStarted { .. }));
}

/// Knows the subscription as it is now, and how often it was asked.
#[derive(Clone, Debug, Default)]
struct Truth(Arc<Mutex<(Option<Value>, u32)>>);

#[async_trait]
impl RefetchSubscription for Truth {
    async fn refetch(
        &self,
        subscription: &str,
    ) -> Result<Option<Subscription>, Box<dyn std::error::Error + Send + Sync>> {
        assert_eq!(subscription, "sub_1");
        let mut truth = self.0.lock().unwrap();
        truth.1 += 1;
        match &truth.0 {
            Some(value) => Ok(Some(Subscription::read(value))),
            None => Err("the provider does not answer".into()),
        }
    }
}

#[tokio::test]
async fn the_provider_is_asked_where_two_events_are_of_one_second() {
    let truth = Truth::default();
    let world = World::with(|seller| seller.refetch(truth.clone()));
    bought(&world, "price_basic").await;
    let one = subscription("updated", START + 10, "active", "price_pro");
    world.tell(&one).await;
    assert_eq!(
        truth.0.lock().unwrap().1,
        0,
        "a later second needs no asking"
    );
    let mut other = subscription("updated", START + 10, "active", "price_basic");
    other["id"] = json!("evt_of_the_same_second");
    let down = world.provisioner.handle(&event(&other)).await;
    assert!(
        matches!(down, Err(HandlerError::Unavailable(_))),
        "{down:?}"
    );
    truth.0.lock().unwrap().0 =
        Some(subscription("updated", 0, "past_due", "price_pro")["data"]["object"].clone());
    world.tell(&other).await;
    assert_eq!(truth.0.lock().unwrap().1, 2);
    let account = world.provisioner.account("cus_1").await.unwrap().unwrap();
    assert_eq!(account.status("sub_1"), Some(SubscriptionStatus::PastDue));
}

/// Hears of the end of a subscription while it asks for it.
#[derive(Clone, Debug, Default)]
struct Late(Arc<OnceLock<Provisioner>>);

#[async_trait]
impl RefetchSubscription for Late {
    async fn refetch(
        &self,
        _: &str,
    ) -> Result<Option<Subscription>, Box<dyn std::error::Error + Send + Sync>> {
        let answer = subscription("updated", 0, "active", "price_pro");
        let end = subscription("deleted", START + 10, "canceled", "price_pro");
        let provisioner = self.0.get().expect("a provisioner");
        provisioner.provision(&event(&end)).await?;
        Ok(Some(Subscription::read(&answer["data"]["object"])))
    }
}

#[tokio::test]
async fn an_end_that_comes_while_the_provider_is_asked_stays_one() {
    let late = Late::default();
    let world = World::with(|seller| seller.refetch(late.clone()));
    late.0.set(world.provisioner.clone()).unwrap();
    bought(&world, "price_basic").await;
    let one = subscription("updated", START + 10, "active", "price_pro");
    world.tell(&one).await;
    let mut other = one.clone();
    other["id"] = json!("evt_of_the_same_second");
    let handled = world.provisioner.handle(&event(&other)).await;
    assert_eq!(handled.unwrap(), Handled::Stale);
    let account = world.provisioner.account("cus_1").await.unwrap().unwrap();
    assert_eq!(account.status("sub_1"), Some(SubscriptionStatus::Canceled));
    assert_eq!(world.stands("cus_1").await.0.as_str(), "read-only");
}

#[tokio::test]
async fn what_the_provider_answers_of_a_second_stands_when_the_event_comes_again() {
    let truth = Truth::default();
    let world = World::with(|seller| seller.refetch(truth.clone()));
    bought(&world, "price_pro").await;
    let mut events = [("a", "past_due"), ("b", "unpaid")].map(|(id, status)| {
        let mut body = subscription("updated", START + 10, status, "price_pro");
        body["id"] = json!(format!("evt_{id}"));
        body
    });
    let paid = subscription("updated", 0, "active", "price_pro")["data"]["object"].clone();
    truth.0.lock().unwrap().0 = Some(paid);
    for _ in 0..2 {
        for body in &events {
            world.tell(body).await;
            world.tell(body).await;
        }
        assert_eq!(world.stands("cus_1").await, active("pro"));
        events.reverse();
    }
}

#[tokio::test]
async fn a_listing_of_the_provider_is_compared_and_taken_over() {
    let world = World::new();
    bought(&world, "price_pro").await;
    let gone = but(
        subscription("created", START, "active", "price_basic"),
        "id",
        "sub_gone".into(),
    );
    world.tell(&but(gone, "customer", "cus_2".into())).await;
    let listed = |id: &str, customer: &str, status: &str, price: &str| {
        let mut body = subscription("updated", 0, status, price);
        body["data"]["object"]["id"] = json!(id);
        body["data"]["object"]["customer"] = json!(customer);
        Subscription::read(&body["data"]["object"])
    };
    let same = [
        listed("sub_1", "cus_1", "active", "price_pro"),
        listed("sub_gone", "cus_2", "active", "price_basic"),
    ];
    let report = world.provisioner.compare(&same).await.unwrap();
    assert_eq!((report.n_equal, report.differences.len()), (2, 0));

    let listing = [
        listed("sub_1", "cus_1", "past_due", "price_pro"),
        listed("sub_new", "cus_3", "active", "price_pro"),
    ];
    let report = world.provisioner.compare(&listing).await.unwrap();
    let kinds: Vec<_> = report
        .differences
        .iter()
        .map(|it| (&*it.customer, &*it.subscription, it.kind.clone()))
        .collect();
    let status = DifferenceKind::Status {
        ours: SubscriptionStatus::Active,
        theirs: SubscriptionStatus::PastDue,
    };
    assert_eq!(
        kinds,
        [
            ("cus_1", "sub_1", status),
            ("cus_2", "sub_gone", DifferenceKind::NotListed),
            ("cus_3", "sub_new", DifferenceKind::Unknown),
        ]
    );
    let other_price = [listed("sub_1", "cus_1", "active", "price_basic")];
    let report = world.provisioner.compare(&other_price).await.unwrap();
    assert!(matches!(
        report.differences[0].kind,
        DifferenceKind::Prices { .. }
    ));

    let as_of = at(START + 100);
    for listed in &listing {
        world
            .provisioner
            .apply_listed(listed, Environment::Live, as_of)
            .await
            .unwrap();
    }
    assert_eq!(world.stands("cus_1").await.0.as_str(), "grace");
    let report = world.provisioner.compare(&listing).await.unwrap();
    assert_eq!((report.n_equal, report.differences.len()), (2, 1));
    // What an event tells later is newer than the listing, and what it told earlier is not.
    world
        .tell(&subscription("updated", START + 50, "active", "price_pro"))
        .await;
    assert_eq!(world.stands("cus_1").await.0.as_str(), "grace");
    world
        .tell(&subscription("updated", START + 200, "active", "price_pro"))
        .await;
    assert_eq!(world.stands("cus_1").await, active("pro"));
    assert_eq!(world.clock.now().wall(), at(START));
}
